"""A confidence that is a number: what a comparison with the SuperLoss needs beside it."""

import math

import torch
from torch import Tensor, nn

from .superloss import check_samples

__all__ = ["FixedConfidence"]


class FixedConfidence(nn.Module):
    """sigma * losses with one sigma for all samples, in the place of a :class:`SuperLoss`.

    The SuperLoss also changes how much a loss weighs in a total: most samples get a sigma above 1.
    With this module at the same mean sigma one can tell that effect from the choice of samples.

    Args:
        sigma: above 0; e is what the SuperLoss gives to easy samples

    Raises:
        ValueError: sigma is not a finite number above 0

    Example:
        >>> value, sigma = FixedConfidence(2.0).with_confidence(torch.tensor([1.0, 3.0]))
        >>> value, sigma
        (tensor([2., 6.]), tensor([2., 2.]))
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be a finite number above 0; got {sigma!r}")
        self.sigma = float(sigma)

    @torch.jit.unused
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weighted losses, shape and dtype of the losses; plain outside the mask."""
        return self.with_confidence(losses, mask)[0]

    def with_confidence(self, losses: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`SuperLoss.with_confidence`, without a threshold."""
        check_samples(losses, mask)
        sigma = torch.full_like(losses, self.sigma, requires_grad=False)
        if mask is not None:
            sigma = torch.where(mask, sigma, 1.0)
        return losses * sigma, sigma

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"
