"""The SuperLoss of a batch of per-sample losses, as pure functions."""

import math
from typing import Any

import torch
from torch import Tensor

from .lambert import confidence_kernel

__all__ = ["confidence", "superloss", "superloss_with_confidence"]


class _SuperLoss(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        losses: Tensor, tau: float | Tensor, lam: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        wide = losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses
        sigma = confidence_kernel(wide, tau, lam)
        y = (wide - tau) * sigma
        y = torch.where(wide.isinf(), wide, y)
        value = y + y * y / (4 * lam)
        value = torch.where(wide == -math.inf, wide, value)
        if mask is not None:
            value = torch.where(mask, value, wide)
            sigma = torch.where(mask, sigma, 1.0)
        return value.to(losses.dtype), sigma.to(losses.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (sigma,) = ctx.saved_tensors
        return grads[0] * sigma, None, None, None


def superloss_with_confidence(
    losses: Tensor, tau: float | Tensor, lam: float | Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """SL = sigma * (losses - tau) + lam * log(sigma)^2 and its sigma."""
    if not isinstance(lam, Tensor) and not (0 < lam < math.inf):
        raise ValueError(f"lam must be a finite number above 0; got {lam!r}")
    if mask is not None:
        mask = mask.expand_as(losses)
    value, sigma = _SuperLoss.apply(losses, tau, lam, mask)
    return value, sigma


def superloss(losses: Tensor, tau: float | Tensor, lam: float | Tensor) -> Tensor:
    """SL = sigma * (losses - tau) + lam * log(sigma)^2."""
    return superloss_with_confidence(losses, tau, lam)[0]


def confidence(losses: Tensor, tau: float | Tensor, lam: float | Tensor) -> Tensor:
    """sigma* = exp(-W(max(-2/e, (losses - tau) / lam) / 2)), without gradient."""
    return superloss_with_confidence(losses.detach(), tau, lam)[1]
