"""The SuperLoss as a module that holds the threshold tau, and a fixed confidence in its place."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from .domain import as_number, check_domain
from .superloss import check_samples, superloss_with_confidence
from .tau import ConstantTau, ExpAverageTau, LogCTau, build_tau

__all__ = ["FixedConfidence", "SuperLoss"]


class SuperLoss(nn.Module):
    """SL = sigma * (losses - tau) + lam * log(sigma)^2, unreduced, with a fixed or running tau.

    A running tau is part of the state dict and learns in training mode with gradients only. Keep
    the module outside of non-reentrant activation checkpoints: they would call it twice a step.

    Args:
        tau: "logC", the log of `num_outcomes` (nats); "Avg", the mean of all losses so far;
            "ExpAvg", their exponential running average; a number, also as a string; or a custom
            module that :func:`~sl_detectron.losses.tau.build_tau` describes
        lam: regularisation above 0 in the unit of the losses. The paper uses 1 on clean and 0.25
            on noisy labels.
        num_outcomes: number of softmax outcomes, for "logC"
        momentum: share of the old tau that one batch keeps, for "ExpAvg"
        normalize: whether SL is divided by the exponential running average of sigma, so that the
            mean weight of the samples is 1, as that of the plain loss. Without it easy samples, and
            so most, weigh up to e.

    Raises:
        ValueError: if an argument is out of range

    Example:
        >>> criterion = SuperLoss(tau="ExpAvg", lam=0.25)
        >>> losses = torch.tensor([0.1, 2.9], requires_grad=True)  # one a sample, of any task
        >>> criterion(losses).mean().backward()
        >>> criterion.tau
        tensor(1.5000, dtype=torch.float64)
        >>> SuperLoss(tau="logC", lam=1.0, num_outcomes=21).tau
        tensor(3.0445, dtype=torch.float64)
    """

    def __init__(
        self,
        tau: str | float | nn.Module = "ExpAvg",
        lam: float = 0.25,
        num_outcomes: int | None = None,
        momentum: float = 0.9,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        # Only tau has names, so only tau comes as a string.
        self.lam = math.nan if isinstance(lam, str) else as_number(lam)
        check_domain("lam", lam, not 0 < self.lam < math.inf, "a finite number above 0")
        self.threshold = build_tau(tau, num_outcomes=num_outcomes, momentum=momentum)
        # Of sigma what a running tau is of losses: over ranks, in the state dict, in training only.
        self.mean_sigma = ExpAverageTau(momentum) if normalize else None

    @property
    @torch.jit.unused
    def tau(self) -> Tensor:
        """The tau that the next call reads, 0-d; a running one is nan before any loss."""
        return cast(Tensor, self.threshold.tau)

    @torch.jit.unused
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """SL of the losses; in training a running tau then takes them in.

        Args:
            losses: any shape, floating point
            mask: bool, broadcasts to the losses: the samples that go through the SuperLoss and
                count in tau. The others keep their plain loss.

        Returns:
            SL, shape and dtype of the losses
        """
        return self.with_confidence(losses, mask)[0]

    def with_confidence(self, losses: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Like a call, with sigma beside SL: no gradient, and 1 outside the mask.

        sigma is the confidence of eq. 10, also where SL is normalised.
        """
        # Before tau learns: a call that is refused leaves no trace.
        check_samples(losses, mask)
        tau = self.threshold(losses, mask)
        if type(self.threshold) in (ConstantTau, LogCTau):
            tau = self.threshold.value  # the same; the arithmetic of a number needs no kernels
        value, sigma = superloss_with_confidence(losses, tau, self.lam, mask)
        if self.mean_sigma is not None:
            # No sample has a weight where all losses are infinite.
            scaled = value / self.mean_sigma(sigma, mask).clamp_min(1e-6)
            value = scaled if mask is None else torch.where(mask, scaled, value)
        return value, sigma

    def extra_repr(self) -> str:
        return f"lam={self.lam}"


class FixedConfidence(nn.Module):
    """sigma * losses with one sigma for all samples, in the place of a :class:`SuperLoss`.

    The SuperLoss also changes how much a loss weighs in a total: most samples get a sigma above 1.
    This module at the same mean sigma separates that effect from the choice of samples.

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
        check_domain("sigma", sigma, not 0 < sigma < math.inf, "a finite number above 0")
        self.sigma = float(sigma)

    @torch.jit.unused
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weighted losses, shape and dtype of the losses; plain outside the mask."""
        return self.with_confidence(losses, mask)[0]

    def with_confidence(self, losses: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`SuperLoss.with_confidence`, without a threshold."""
        check_samples(losses, mask)
        # By the number: sigma is rounded to 16 bits, which a product of 16 bits would show.
        value = losses * self.sigma
        sigma = torch.full_like(losses, self.sigma, requires_grad=False)
        if mask is not None:
            value, sigma = torch.where(mask, value, losses), torch.where(mask, sigma, 1.0)
        return value, sigma

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"
