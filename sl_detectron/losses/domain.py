"""Checks of arguments: numbers at once, tensors on their device, without waiting for it."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["check_domain", "check_logits"]


def check_domain(name: str, value: Tensor | float, holds: Tensor | bool, accepted: str) -> None:
    """Refuse a value outside the domain of a loss; nan passes where ``holds`` says so.

    Args:
        name: of the argument, for the message
        value: what was given
        holds: whether the value is in the domain, of the value's shape
        accepted: the domain in words: "above 0"

    Raises:
        ValueError: a number is outside
        RuntimeError: a tensor has an entry outside. Read on the device: on a GPU it is raised
            by a later call, as no loss waits for its inputs.

    Example:
        >>> check_domain("sigma", -1.0, False, "above 0")
        Traceback (most recent call last):
        ValueError: sigma must be above 0; got -1.0
    """
    if isinstance(holds, Tensor):
        torch._assert_async(holds.all(), f"{name} must be {accepted}")
    elif not holds:
        raise ValueError(f"{name} must be {accepted}; got {value!r}")


def check_logits(logits: Tensor, labels: Tensor, others: Iterable[tuple[str, Tensor]] = ()) -> None:
    """Refuse logits that are not (R, C) floats, or labels and ``others`` that are not (R,) ints.

    Raises:
        ValueError: wrong shape or dtype; the message names the argument
    """
    if logits.dim() != 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point of shape (R, C); got {logits.dtype} of shape "
            f"{tuple(logits.shape)}"
        )
    for name, indices in (("labels", labels), *others):
        if indices.shape != logits.shape[:1] or indices.dtype != torch.int64:
            raise ValueError(
                f"{name} must be int64 of shape ({logits.shape[0]},), one for each row of the "
                f"logits; got {indices.dtype} of shape {tuple(indices.shape)}"
            )
