"""The SuperLoss of per-sample losses as pure functions: unreduced, for any task.

sigma* minimises SL, so d SL / d losses = sigma*: for autograd the confidence is a constant weight.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .domain import as_number, check_domain, is_compiling
from .lambert import Scalar, solve

__all__ = ["check_samples", "confidence", "superloss", "superloss_with_confidence"]


def superloss_with_confidence(
    losses: Tensor, tau: Scalar, lam: Scalar, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """SL = sigma * (losses - tau) + lam * log(sigma)^2 (eq. 6) with the sigma that minimises it.

    Args:
        losses: any shape, floating point, in nats or the unit of the task. 16 bit losses are
            computed in float32. A nan stays nan; +inf gets weight 0.
        tau: threshold between easy and hard in the unit of the losses, number or 0-d tensor. A
            constant for autograd.
        lam: regularisation above 0 in the unit of the losses, number or 0-d tensor. A constant
            for autograd.
        mask: bool, broadcasts to the shape of the losses. Samples outside keep their plain loss
            and sigma = 1.

    Returns:
        SL and sigma, both of the losses' shape and dtype; sigma has no gradient

    Raises:
        ValueError: if an argument is out of range or of the wrong dtype or shape. A `lam` tensor
            out of range is a RuntimeError: its check does not wait for the device. A `tau`
            tensor is not checked.

    Example:
        >>> value, sigma = superloss_with_confidence(torch.tensor([0.1, 1.0, 5.0]), 1.0, 0.25)
        >>> sigma
        tensor([2.7183, 1.0000, 0.2007])
        >>> value
        tensor([-2.1965,  0.0000,  1.4476])
    """
    check_samples(losses, mask)
    tau = _check_scalar("tau", tau, above=-math.inf)
    lam = _check_scalar("lam", lam, above=0)
    value, sigma = _SuperLoss.apply(losses, tau, lam, mask)
    return value, sigma.detach()


def superloss(losses: Tensor, tau: Scalar, lam: Scalar) -> Tensor:
    """SL = min over sigma of sigma * (losses - tau) + lam * log(sigma)^2 (eq. 6), unreduced.

    Args and errors as in :func:`superloss_with_confidence`.

    Returns:
        SL, shape and dtype of the losses. It is negative below tau.

    Example:
        Classification: down-weight images whose label looks wrong.

        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]], requires_grad=True)
        >>> labels = torch.tensor([0, 0])
        >>> losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        >>> superloss(losses, tau=math.log(2), lam=0.25).mean().backward()
        >>> logits.grad.norm(dim=1)
        tensor([0.0912, 0.1849])

        Regression: one wrong target does not set the fit.

        >>> errors = torch.nn.functional.smooth_l1_loss(
        ...     torch.zeros(4), torch.tensor([0.1, 0.2, 0.1, 9.0]), reduction="none"
        ... )
        >>> superloss(errors, tau=errors.median(), lam=0.25)
        tensor([0.0000, 0.0148, 0.0000, 2.1427])

        Contrastive loss: a pair of images with a wrong "same" flag is far apart.

        >>> distance = torch.tensor([0.2, 0.3, 2.0])
        >>> same = torch.tensor([1.0, 0.0, 1.0])
        >>> losses = same * distance**2 + (1 - same) * (1 - distance).clamp(min=0) ** 2
        >>> confidence(losses, tau=0.5, lam=0.25)
        tensor([2.7183, 1.0206, 0.2178])
    """
    return superloss_with_confidence(losses, tau, lam)[0]


def confidence(losses: Tensor, tau: Scalar, lam: Scalar) -> Tensor:
    """sigma* = exp(-W(max(-2/e, (losses - tau) / lam) / 2)) (eq. 10), in [0, e].

    Args and errors as in :func:`superloss_with_confidence`.

    Returns:
        sigma, shape and dtype of the losses, without gradient. Relative error below 1e-6 in
        float32 and 1e-14 in float64, where (losses - tau) / lam is below 1e36 (above it sigma
        goes to 0) and, for float32, |tau| / lam below 1e9. In 16 bits it is rounded to the dtype.

    Example:
        >>> confidence(torch.tensor([-9.0, 2.0, 2.5, torch.inf]), tau=2.0, lam=1.0)
        tensor([2.7183, 1.0000, 0.8156, 0.0000])
    """
    return superloss_with_confidence(losses.detach(), tau, lam)[1]


def _check_scalar(name: str, value: Scalar, above: float) -> Scalar:
    if isinstance(value, Tensor) and value.dim() == 0:
        return value.detach().to(torch.float64)
    number = math.nan if isinstance(value, Tensor) else as_number(value)
    # Comparisons, as torch.compile cannot trace math.isfinite.
    outside = not above < number < math.inf
    check_domain(name, value, outside, f"above {above} and below inf, a number or a 0-d tensor")
    return number


def check_samples(losses: Tensor, mask: Tensor | None) -> None:
    """Refuse losses and masks that :func:`superloss_with_confidence` cannot take.

    Raises:
        ValueError: wrong dtype, or a mask that does not broadcast to the losses
    """
    if not losses.is_floating_point():
        raise ValueError(f"losses must be floating point; got {losses.dtype}")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool; got {mask.dtype}")
    # Aligned at the last dimension, as broadcasting does.
    sizes = zip(mask.shape[::-1], losses.shape[::-1], strict=False)
    if mask.dim() > losses.dim() or any(m not in (1, n) for m, n in sizes):
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to losses of shape "
            f"{tuple(losses.shape)}"
        )


def _slope(sigma: Tensor, lam: Scalar, mask: Tensor | None) -> Tensor:
    """d sigma / d losses = -sigma^2 / (2 * lam * (1 - log(sigma))), and 0 at the cap."""
    wide = sigma if sigma.dtype == torch.float64 else sigma.float()
    below_cap = 1 - wide.log()
    slope = -wide.square() / (2 * lam * below_cap)
    # sigma misses e by some rounding: of the computation, or of a dtype of 16 bits.
    rounding = (32 if wide.dtype == sigma.dtype else 2) * torch.finfo(sigma.dtype).eps
    slope = slope.masked_fill(below_cap < rounding, 0.0).to(sigma.dtype)
    return slope if mask is None else torch.where(mask, slope, 0.0)


class _SuperLoss(torch.autograd.Function):
    """(SL, sigma), with sigma as the only new tensor that the backward pass keeps."""

    @staticmethod
    def forward(
        losses: Tensor, tau: Scalar, lam: Scalar, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if isinstance(lam, Tensor):
            # Here and not with the other checks, so that vmap over lam works.
            valid = ((lam > 0) & (lam < math.inf)).all()
            torch._assert_async(valid, "lam must be above 0 and below inf")
        # 16 bits hold neither the distance to the cap nor the range of sigma.
        wide = losses if losses.dtype == torch.float64 else losses.float()
        value, sigma = solve(wide, tau, lam)
        if mask is not None:
            value = torch.where(mask, value, wide)
            sigma = torch.where(mask, sigma, 1.0)
        value, sigma = value.to(losses.dtype), sigma.to(losses.dtype)
        if is_compiling():
            # torch 2.11 compiles a gradient of 0 for an output that was changed in place. The
            # copies are fused with what comes before them.
            value, sigma = value.clone(), sigma.clone()
        return value, sigma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, lam, mask = inputs
        ctx.lam, lam_tensor = (None, lam) if isinstance(lam, Tensor) else (lam, None)
        ctx.save_for_backward(output[1], lam_tensor, mask)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad_value: Tensor | None, grad_sigma: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        sigma, lam_tensor, mask = ctx.saved_tensors
        grad = None if grad_value is None else grad_value * sigma
        if grad_sigma is not None:
            # Only a second derivative comes here, through sigma in the line above.
            lam = ctx.lam if lam_tensor is None else lam_tensor
            bend = grad_sigma * _slope(sigma, lam, mask)
            grad = bend if grad is None else grad + bend
        return grad, None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], losses: Tensor, *rest: Scalar | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """Elementwise, so the batch is one more leading dimension."""
        num_dims = losses.dim() - (in_dims[0] is not None)

        def lead(value: Any, dim: int | None) -> Any:
            if dim is None:
                return value
            value = value.movedim(dim, 0)
            missing = num_dims + 1 - value.dim()
            return value.reshape(value.shape[0], *[1] * missing, *value.shape[1:])

        losses = lead(losses, in_dims[0]).expand(info.batch_size, *[-1] * num_dims)
        rest = tuple(lead(value, dim) for value, dim in zip(rest, in_dims[1:], strict=True))
        return _SuperLoss.apply(losses, *rest), (0, 0)
