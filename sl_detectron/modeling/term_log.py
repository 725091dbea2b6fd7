"""What a term of a loss logs, when, and where to."""

import math

import torch
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor

__all__ = ["batch_scalars", "storage_to_log_to", "training_storage"]

# As detectron2's PeriodicWriter, which writes no values of the iterations between.
LOG_PERIOD = 20


def training_storage() -> EventStorage | None:
    """The storage of the training loop, if there is one."""
    try:
        storage: EventStorage = get_event_storage()
    except (AssertionError, IndexError):  # there is no training loop
        return None
    return storage


def storage_to_log_to() -> EventStorage | None:
    """The storage of the training loop in an iteration that is logged."""
    storage = training_storage()
    return storage if storage is not None and (storage.iter + 1) % LOG_PERIOD == 0 else None


def batch_scalars(
    losses: Tensor,
    sigma: Tensor,
    foreground: Tensor,
    mask: Tensor | None,
    divisor: float | Tensor,
) -> dict[str, Tensor]:
    """Summary of a batch; the mean over no sample is nan."""

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, values, 0).sum(dtype=torch.float64) / where.sum()

    in_scope = torch.ones_like(foreground) if mask is None else mask
    capped = (sigma > math.e * (1 - 1e-5)).to(sigma.dtype)
    return {
        "raw_loss": losses.sum() / divisor,
        "sigma_foreground": mean(sigma, foreground),
        "sigma_background": mean(sigma, ~foreground),
        "capped_share": mean(capped, in_scope),
    }
