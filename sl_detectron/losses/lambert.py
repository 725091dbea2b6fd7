"""sigma* = exp(-W(max(-2/e, beta) / 2)) and its SuperLoss, without iteration or table.

With q = sqrt(1 + e * beta / 2), 0 at the cap and 1 at the loss tau, sigma* is analytic in q. In
u = log((1 + q) / 2) also the other singularities of W are out of reach, so one rational function

    sigma* * ((1 + q) / 2)^2 = 1 + slope * u - u * N(u) / D(u)

covers everything from the cap to beta = 1e36. N and D are minimax fits of the relative error:
5e-9 for float32 and 2e-15 for float64. For large beta the straight line carries nearly all of the
value, which keeps the rounding of N and D out of it; at tau, u = 0 and sigma = 1 exactly.

Below, a scalar is a number or a 0-d float64 tensor: no value is ever read back from a device.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .domain import is_compiling

__all__ = ["Scalar", "solve"]

Scalar = float | Tensor

# (q / 2)^2 is clamped to these, which is the cap, and for +inf. sigma falls below _SMALLEST_SIGMA
# just before the upper end. At the lower end q is lost beside 1; a 0 would be 20 times slower to
# take the root of, by MKL.
_SQUARE_RANGE = (1e-37, 1e37)
_SMALLEST_SIGMA = 1e-35

# On a CPU large inputs are solved in blocks, whose intermediate values fit into its cache.
_BLOCK = 65536

_TWO_OVER_E = 2 / math.e
_TWO_OVER_E_REMAINDER = -2.4857507345576726e-17  # 2/e - float64(2/e)


class _Fit(NamedTuple):
    """Coefficients of the rational function above, lowest degree first; D(0) = 1 is left out."""

    slope: float
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]


# fmt: off
_FITS = {
    torch.float32: _Fit(
        1.35632856,
        (0.827846308, -0.00640008015, 0.0202148946, 0.00056872964, 0.000120545725, 4.4515674e-6,
         1.98230001e-7),
        (0.110327913, 0.0401190725, 0.00390970498, 0.000446326066, 3.0012335e-5, 1.67952427e-6,
         4.29191338e-8),
    ),
    torch.float64: _Fit(
        1.3581433928949973,
        (0.82966115758076855, 0.023821163016683542, 0.040044606130983481, 0.001711775204357159,
         0.00066618861372790957, 3.8640945790560523e-5, 4.6977382898816318e-6,
         2.9219273354612393e-7, 1.7075813052611355e-8, 8.7432077502990893e-10,
         2.8484888444837465e-11, 1.0988391140088248e-12, 7.902665361684187e-15),
        (0.14651256502074849, 0.068194981832511143, 0.0086828097012623718, 0.0016747971951199565,
         0.00017559165039839025, 1.8434269147265221e-5, 1.4637367426646721e-6,
         9.8634355118184125e-8, 5.5548309820391779e-9, 2.4908107457693e-10,
         8.8957208348632525e-12, 2.729392495115957e-13, 1.4702740299531512e-15),
    ),
}
# fmt: on


def _head(value: Scalar, bits: int) -> Scalar:
    """The value rounded to its leading bits (Veltkamp)."""
    scaled = value * (2.0 ** (53 - bits) + 1)
    return scaled - (scaled - value)


def _split(value: Scalar, dtype: torch.dtype) -> tuple[Scalar, Scalar]:
    """A value that the dtype holds, and the remainder."""
    if isinstance(value, Tensor):
        rounded = value.to(dtype)
        return rounded, (value - rounded).to(dtype)
    high = value if dtype == torch.float64 else _head(value, 24)
    return high, value - high


def _lower_end(tau: Scalar, lam: Scalar, dtype: torch.dtype) -> tuple[Scalar, Scalar]:
    """l0 = tau - 2 * lam / e, where the cap ends, as a value of the dtype plus its remainder.

    sigma behaves like sqrt(l - l0) there: without the remainder half of the digits are lost.
    """
    if dtype == torch.float32:
        return _split(tau - lam * _TWO_OVER_E, dtype)
    # Dekker's exact product and Knuth's exact sum.
    product = lam * _TWO_OVER_E
    lam_head, constant_head = _head(lam, 26), _head(_TWO_OVER_E, 26)
    lam_tail, constant_tail = lam - lam_head, _TWO_OVER_E - constant_head
    error = lam_head * constant_head - product
    error = error + lam_head * constant_tail + lam_tail * constant_head
    error = error + lam_tail * constant_tail
    high = tau - product
    back = high - tau
    low = (tau - (high - back)) - (product + back)
    return high, low - (error + lam * _TWO_OVER_E_REMAINDER)


def _subtract(losses: Tensor, high: Scalar, low: Scalar) -> Tensor:
    return torch.sub(losses, high).sub_(low)


def _polynomial(u: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """u * (c0 + c1 * u + c2 * u^2 + ...) / c0, in one pass over the memory per degree."""
    last = len(coefficients) - 1
    value = torch.addcmul(u, u, u, value=coefficients[last] / coefficients[last - 1])
    for i in range(last - 1, 0, -1):
        torch.addcmul(u, value, u, value=coefficients[i] / coefficients[i - 1], out=value)
    return value


def _sigma(losses: Tensor, tau: Scalar, lam: Scalar) -> Tensor:
    """sigma* of every loss; tiny instead of 0 where the loss is +inf, nan where it is nan."""
    slope, numerator, denominator = _FITS[losses.dtype]
    above_cap = _subtract(losses, *_lower_end(tau, lam, losses.dtype))
    square = above_cap.mul_(math.e / 8 / lam).clamp_(*_SQUARE_RANGE)
    v = square.sqrt_().add_(0.5)
    u = v.log()
    bend = _polynomial(u, numerator)
    divisor = _polynomial(u, denominator).add_(1 / denominator[0])
    value = torch.rsub(u, 1, alpha=-slope)
    value.addcdiv_(bend, divisor, value=-numerator[0] / denominator[0])
    return value.div_(v.square_())


def _solve_whole(losses: Tensor, tau: Scalar, lam: Scalar) -> tuple[Tensor, Tensor]:
    sigma = _sigma(losses, tau, lam)
    value = _subtract(losses, *_split(tau, losses.dtype)).mul_(sigma)
    # log(sigma) = -value / (2 * lam) above the cap and 1 below: no second logarithm, and right
    # also where lam is so large that sigma rounds to 1.
    if isinstance(lam, Tensor):
        lam = lam.to(losses.dtype)
        scaled_log = torch.maximum(value, -2 * lam)
        value.addcdiv_(scaled_log.square_(), lam, value=0.25)
    else:
        scaled_log = value.clamp(min=-2 * lam)
        value.addcmul_(scaled_log, scaled_log, value=0.25 / lam)
    return value, torch.threshold_(sigma, _SMALLEST_SIGMA, 0.0)


def _solve_in_blocks(losses: Tensor, tau: Scalar, lam: Scalar) -> tuple[Tensor, Tensor]:
    value, sigma = (
        torch.empty_like(losses, memory_format=torch.contiguous_format) for _ in range(2)
    )
    blocks = (tensor.reshape(-1).split(_BLOCK) for tensor in (losses, value, sigma))
    for losses_block, value_block, sigma_block in zip(*blocks, strict=True):
        solved = _solve_whole(losses_block, tau, lam)
        value_block.copy_(solved[0])
        sigma_block.copy_(solved[1])
    return value, sigma


def solve(losses: Tensor, tau: Scalar, lam: Scalar) -> tuple[Tensor, Tensor]:
    """SL = sigma * (losses - tau) + lam * log(sigma)^2 and sigma, at the minimum sigma*.

    Args:
        losses: per-sample losses, float32 or float64, any shape
        tau: threshold, number or float64 tensor that broadcasts to the losses
        lam: regularisation, number or float64 tensor that broadcasts to the losses

    Returns:
        SL and sigma, both of the losses' shape and dtype
    """
    per_sample = any(isinstance(x, Tensor) and x.dim() > 0 for x in (tau, lam))
    large = losses.is_cpu and not is_compiling() and losses.numel() > _BLOCK
    if large and not per_sample:
        return _solve_in_blocks(losses, tau, lam)
    return _solve_whole(losses, tau, lam)
