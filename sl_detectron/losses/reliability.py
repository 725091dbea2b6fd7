"""The reliability loss of R2D2: a confidence in [0, 1] for an average precision."""

from torch import Tensor

from .domain import check_domain, widen

__all__ = ["r2d2_reliability"]


def r2d2_reliability(average_precision: Tensor | float, sigma: Tensor | float) -> Tensor:
    """sigma * (1 - AP) + (1 - sigma) / 2 (eq. 2; Revaud et al. 2019, corrected by the SuperLoss).

    Linear in sigma: the best sigma is 0 for AP < 0.5 and 1 for AP > 0.5, never between.
    d loss / d average_precision = -sigma.

    Args:
        average_precision: AP in [0, 1], differentiable, of a patch; it broadcasts with sigma
        sigma: reliability in [0, 1]

    Returns:
        losses in [0, 1], of the broadcast shape, in float32 at least

    Raises:
        ValueError: a number out of range
        RuntimeError: an entry of a tensor out of range

    Example:
        >>> import torch
        >>> r2d2_reliability(torch.tensor([0.9, 0.5, 0.2]), sigma=torch.tensor([1.0, 0.7, 0.0]))
        tensor([0.1000, 0.5000, 0.5000])
    """
    for name, value in (("average_precision", average_precision), ("sigma", sigma)):
        check_domain(name, value, (value < 0) | (value > 1), "in [0, 1]")
    average_precision, sigma = widen(average_precision, sigma)
    return sigma * (1 - average_precision) + (1 - sigma) / 2
