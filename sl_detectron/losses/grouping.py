"""Replace the losses of samples that share one label by their mean."""

import torch
from torch import Tensor

__all__ = ["group_mean"]


def group_mean(losses: Tensor, groups: Tensor) -> Tensor:
    """Mean loss of each sample's group, differentiable, without a host round trip.

    The sum over samples stays what it was. Under the SuperLoss of the result all samples of a group
    have one confidence: sum_i SL(mean of i's group) = sum_groups size * SL(mean).

    Args:
        losses: (S,) per-sample losses; 16 bit ones are averaged in float32
        groups: (S,) int64, any values; samples of equal value form a group

    Returns:
        (S,), dtype of the losses

    Raises:
        ValueError: the shapes differ or are not 1-d

    Example:
        >>> group_mean(torch.tensor([1.0, 4.0, 3.0]), torch.tensor([7, -1, 7]))
        tensor([2., 4., 2.])
    """
    if losses.dim() != 1 or losses.shape != groups.shape:
        raise ValueError(
            f"losses and groups must be 1-d and of one length; got {tuple(losses.shape)} and "
            f"{tuple(groups.shape)}"
        )
    # Ranks 0, 1, 2, ... in the place of arbitrary values: no table of unknown size is needed.
    ordered, order = groups.sort()
    is_new = torch.zeros_like(ordered)
    is_new[1:] = ordered[1:] != ordered[:-1]
    rank = torch.empty_like(order).scatter(0, order, is_new.cumsum(0))
    wide = losses if losses.dtype == torch.float64 else losses.float()
    total = torch.zeros_like(wide).scatter_add(0, rank, wide)
    count = torch.zeros_like(wide).scatter_add(0, rank, torch.ones_like(wide))
    return (total / count.clamp(min=1))[rank].to(losses.dtype)
