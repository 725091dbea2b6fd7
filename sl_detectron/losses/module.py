"""The SuperLoss as a module with its own threshold tau."""

import math

from torch import Tensor, nn

from .superloss import superloss_with_confidence
from .tau import AverageTau, ConstantTau, ExpAverageTau

__all__ = ["SuperLoss"]


def _build_threshold(tau: str | float, num_outcomes: int | None, momentum: float) -> nn.Module:
    if tau == "Avg":
        return AverageTau()
    if tau == "ExpAvg":
        return ExpAverageTau(momentum)
    if tau == "logC":
        if num_outcomes is None or num_outcomes < 2:
            raise ValueError(
                f"tau 'logC' needs num_outcomes, the number of softmax outcomes (>= 2); "
                f"got {num_outcomes!r}"
            )
        return ConstantTau(math.log(num_outcomes))
    try:
        value = float(tau)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"tau must be one of 'logC', 'Avg', 'ExpAvg' or a number; got {tau!r}")
    return ConstantTau(value)


class SuperLoss(nn.Module):
    """SL = sigma * (losses - tau) + lam * log(sigma)^2 with a constant or running tau."""

    def __init__(
        self,
        tau: str | float = "ExpAvg",
        lam: float = 0.25,
        num_outcomes: int | None = None,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.lam = float(lam)
        if not 0 < self.lam < math.inf:
            raise ValueError(f"lam must be a finite number above 0; got {lam!r}")
        self.threshold = _build_threshold(tau, num_outcomes, momentum)

    @property
    def tau(self) -> Tensor:
        """The tau that the next call reads, 0-d float64; nan before the first batch."""
        return self.threshold.tau

    def extra_repr(self) -> str:
        return f"lam={self.lam}"

    def with_confidence(self, losses: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tau = self.threshold(losses.detach(), mask)
        return superloss_with_confidence(losses, tau, self.lam, mask)

    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.with_confidence(losses, mask)[0]
