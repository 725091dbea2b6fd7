"""Checks of arguments: numbers at once, tensors on their device, without waiting for it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_number", "check_domain", "check_logits", "is_compiling", "widen"]

# torch before 2.3 lacks it, and cannot compile the SuperLoss in any case.
is_compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", lambda: False)


def as_number(value: Any) -> float:
    """The value as a float; nan for what is no number, a bool among them."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def check_domain(name: str, value: Any, outside: Tensor | bool, accepted: str) -> None:
    """Refuse a value outside the domain of a loss.

    Args:
        name: of the argument, for the message
        value: what was given
        outside: whether the value is out of the domain; for a tensor in its shape, so that
            comparisons let nan pass: it stays nan in the loss
        accepted: the domain in words: "above 0"

    Raises:
        ValueError: a number is outside
        RuntimeError: a tensor has an entry outside. Found on the device: on a GPU a later call
            raises it, as no loss waits for its inputs.

    Example:
        >>> check_domain("sigma", -1.0, True, "above 0")
        Traceback (most recent call last):
        ValueError: sigma must be above 0; got -1.0
    """
    if isinstance(outside, Tensor):
        torch._assert_async(~outside.any(), f"{name} must be {accepted}")
    elif outside:
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


def widen(*values: Tensor | float) -> list[Tensor]:
    """The values as tensors of one floating point dtype, float32 at least, on one device.

    Example:
        >>> widen(0.5, torch.tensor([1, -1]), torch.tensor(2.0, dtype=torch.bfloat16))
        [tensor(0.5000), tensor([ 1., -1.]), tensor(2.)]
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype, device = torch.float32, tensors[0].device if tensors else None
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    # full: a number is filled in on the device, where a copy of it would wait for the host.
    return [
        value.to(device, dtype)
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=dtype, device=device)
        for value in values
    ]
