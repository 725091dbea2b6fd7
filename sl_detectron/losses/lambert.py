"""sigma* = exp(-W(max(-2/e, beta) / 2)) without iteration, table or host round trip."""

import math

import torch
from torch import Tensor

__all__ = ["confidence_kernel"]

_P = (2.71828092, 1.80617118, 0.577170434, 0.116280013, 0.0163538343, 0.00153297471, 0.000138689856)
_Q = (1.0, 0.078663407, 0.0351136633, 0.00326723282, 0.000362882213, 2.55928916e-5)


def _horner(coefficients: tuple[float, ...], u: Tensor) -> Tensor:
    value = torch.full_like(u, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * u + c
    return value


def confidence_kernel(losses: Tensor, tau: float | Tensor, lam: float | Tensor) -> Tensor:
    """sigma* of float32 or float64 losses."""
    low = tau - lam * (2 / math.e)
    if isinstance(low, Tensor):
        high = low.to(losses.dtype)
        shifted = (losses - high) - (low - high).to(losses.dtype)
    else:
        shifted = losses - low
    v = (shifted / lam * (math.e / 2)).clamp(0, 1e37).sqrt() + 1
    u = v.log()
    sigma = _horner(_P, u) / _horner(_Q, u) / v / v
    if losses.dtype == torch.float64:
        z = torch.clamp((losses - tau) / (2 * lam), min=-1 / math.e)
        polished = sigma * (1 - sigma.log()) / (1 + z * sigma)
        sigma = torch.where(v > 1.001, polished, sigma)
    return sigma.masked_fill(losses == math.inf, 0.0)
