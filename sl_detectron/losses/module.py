"""The SuperLoss as a module that keeps its own threshold tau."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .superloss import check_samples, superloss_with_confidence
from .tau import AverageTau, ConstantTau, ExpAverageTau

__all__ = ["FixedConfidence", "SuperLoss"]


class SuperLoss(nn.Module):
    """SL = sigma * (losses - tau) + lam * log(sigma)^2, unreduced, with a fixed or running tau.

    A running tau is part of the state dict and learns in training mode with gradients only. Keep
    the module outside of non-reentrant activation checkpoints: they would call it twice a step.

    Args:
        tau: "logC", the log of `num_outcomes` (nats); "Avg", the mean of all losses so far;
            "ExpAvg", their exponential running average; or a number, also as a string
        lam: regularisation above 0 in the unit of the losses. The paper uses 1 on clean and 0.25
            on noisy labels.
        num_outcomes: number of softmax outcomes, for "logC"
        momentum: share of the old tau that one batch keeps, for "ExpAvg"

    Raises:
        ValueError: if an argument is out of range

    Example:
        >>> import torch
        >>> criterion = SuperLoss(tau="ExpAvg", lam=0.25)
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]], requires_grad=True)
        >>> losses = torch.nn.functional.cross_entropy(
        ...     logits, torch.tensor([0, 0]), reduction="none"
        ... )
        >>> criterion(losses).mean().backward()
        >>> criterion.tau
        tensor(1.1269, dtype=torch.float64)
        >>> SuperLoss(tau="logC", lam=1.0, num_outcomes=21).tau
        tensor(3.0445, dtype=torch.float64)
    """

    def __init__(
        self,
        tau: str | float = "ExpAvg",
        lam: float = 0.25,
        num_outcomes: int | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        # Only tau has names, so only tau comes as a string.
        self.lam = math.nan if isinstance(lam, str) else _number(lam)
        if not 0 < self.lam < math.inf:
            raise ValueError(f"lam must be a finite number above 0; got {lam!r}")
        self.threshold = _build_threshold(tau, num_outcomes, momentum)

    @property
    @torch.jit.unused
    def tau(self) -> Tensor:
        """The tau that the next call reads, 0-d float64; a running one is nan before any loss."""
        return self.threshold.tau

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
        """Like a call, with sigma beside SL: no gradient, and 1 outside the mask."""
        # Before tau learns: a call that is refused leaves no trace.
        check_samples(losses, mask)
        tau = self.threshold(losses, mask)
        return superloss_with_confidence(losses, tau, self.lam, mask)

    def extra_repr(self) -> str:
        return f"lam={self.lam}"


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


def _build_threshold(
    tau: str | float, num_outcomes: int | None, momentum: float
) -> ConstantTau | AverageTau:
    if tau == "Avg":
        return AverageTau()
    if tau == "ExpAvg":
        return ExpAverageTau(momentum)
    if tau == "logC":
        if num_outcomes is None or num_outcomes < 2:
            raise ValueError(
                "tau 'logC' needs num_outcomes, the number of softmax outcomes, at least 2; got "
                f"{num_outcomes!r}. Without a softmax use 'Avg', 'ExpAvg' or a number."
            )
        return ConstantTau(math.log(num_outcomes))
    value = _number(tau)
    if not math.isfinite(value):
        raise ValueError(f"tau must be 'logC', 'Avg', 'ExpAvg' or a finite number; got {tau!r}")
    return ConstantTau(value)


def _number(value: Any) -> float:
    """The value as a float; nan for what is no number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan
