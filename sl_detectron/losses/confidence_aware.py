"""The introspection loss: a confidence for binary labels on similarity scores."""

import torch
from torch import Tensor

from .domain import check_domain, widen

__all__ = ["introspection"]

# log(sinh(x) / x) = sum of these times x^2, x^4, ...: below _SERIES_END the direct formula loses
# digits, and its gradient more of them.
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)
_SERIES_END = 0.25


def introspection(
    similarity: Tensor | float, labels: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """log((exp(sigma) - 1) / sigma) - sigma * y * s (eq. 1; Novotny et al. 2018).

    The negative log likelihood of s under a density on [0, 1] that grows like exp(sigma * y * s).
    It goes to 0 for sigma -> 0, and for sigma -> inf to inf, but for y * s = 1: there like
    -log(sigma). |d loss / d similarity| = sigma.

    Args:
        similarity: s in [0, 1], the score of a pair; it broadcasts with the others
        labels: y, -1 or 1, of any dtype
        sigma: reliability above 0

    Returns:
        losses in nats, of the broadcast shape, in float32 at least

    Raises:
        ValueError: a number out of range
        RuntimeError: an entry of a tensor out of range

    Example:
        >>> introspection(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([1, -1, -1]), sigma=2.0)
        tensor([-0.6386,  2.9614,  1.3614])
    """
    check_domain("similarity", similarity, (similarity < 0) | (similarity > 1), "in [0, 1]")
    check_domain("labels", labels, (labels != 1) & (labels != -1), "-1 or 1")
    check_domain("sigma", sigma, sigma <= 0, "above 0")
    similarity, labels, sigma = widen(similarity, labels, sigma)
    signed = similarity * labels
    half = sigma / 2
    small = half < _SERIES_END
    # Either branch gets arguments that it can take: where() would pass on the other's nan gradient.
    square = torch.where(small, half, 0.0).square()
    series = torch.zeros_like(square)
    for coefficient in reversed(_SERIES):
        series = (series + coefficient) * square
    large = torch.where(small, 1.0, sigma)
    # exp(sigma) is taken out of the logarithm, and sigma * (1 - y * s) together: neither
    # overflows nor cancels.
    direct = sigma * (1 - signed) + torch.log(-torch.expm1(-large)) - large.log()
    return torch.where(small, sigma * (0.5 - signed) + series, direct)
