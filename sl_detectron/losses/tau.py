"""The threshold tau between easy and hard samples: fixed, or an average of past losses.

A strategy is called once per step with the losses of the batch. It returns the tau for this batch
and then updates its average with the batch. Only the very first batch determines its own tau.
Nothing is read back from the device, and all processes have the same tau.

A CUDA graph may contain the call: the buffers are updated in place, so a replay reads the tau of
the replay before it. A count on the device, not a Python flag, marks the first batch; all shapes
are those of the losses. A capture does fix the training mode and the number of processes.

:func:`build_tau` describes the interface of a custom strategy.
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .domain import as_number, check_domain, is_compiling
from .ranks import num_processes, sum_over_ranks

__all__ = ["TAU_STRATEGIES", "AverageTau", "ConstantTau", "ExpAverageTau", "build_tau"]

# torch.compile of 2.11 to 2.13 loses an update of a buffer in place, where the losses have a
# gradient; a new buffer in its place is kept.
_LOSES_UPDATES = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)


class ConstantTau(nn.Module):
    """tau = value, whatever the losses are.

    Args:
        value: tau in the unit of the losses

    Example:
        >>> ConstantTau(1.5)(torch.rand(3))
        tensor(1.5000, dtype=torch.float64)
    """

    tau: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        # Not part of the state dict: at resume the config decides, not the checkpoint.
        tau = torch.tensor(value, dtype=torch.float64)
        self.register_buffer("tau", tau, persistent=False)
        self.value = value

    def extra_repr(self) -> str:
        return f"value={self.value}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        # A cast rounds it; to_empty() leaves memory as it finds it, and no checkpoint holds it.
        self.tau = torch.full_like(self.tau, self.value, dtype=torch.float64)
        return self

    @torch.jit.unused
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """The constant, 0-d float64."""
        return self.tau.clone()


class AverageTau(nn.Module):
    """tau = mean of all finite losses of the training so far.

    The buffers `mean` (float64) and `count` (int64, number of losses) are part of the state dict.

    Example:
        >>> strategy = AverageTau()
        >>> strategy.tau
        tensor(nan, dtype=torch.float64)
        >>> strategy(torch.tensor([1.0, 3.0])), strategy(torch.tensor([8.0])), strategy.tau
        (tensor(2., dtype=torch.float64), tensor(2., dtype=torch.float64),
         tensor(4., dtype=torch.float64))
    """

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            # From the old values, as a cast has rounded the new ones; meta has none.
            source = new if old.is_meta or new.dtype == old.dtype else old
            setattr(self, name, source.to(device=new.device, dtype=old.dtype))
        return self

    @property
    @torch.jit.unused
    def tau(self) -> Tensor:
        """The tau that the next batch gets, 0-d float64; nan before the first loss."""
        return torch.where(self.count > 0, self.mean, math.nan)

    @torch.jit.unused
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """The tau of this batch; in training the batch then enters the average.

        Training is training mode with gradients enabled: a forward for batch statistics or for
        a validation loss, under ``torch.no_grad()``, leaves tau as it is.

        Args:
            losses: any shape. In training every process calls, also with an empty batch.
            mask: bool, broadcasts to the losses: which of them count

        Returns:
            tau, 0-d float64. Before the first training loss it is the mean of this batch, or 0 if
            the batch has no finite loss.
        """
        learns = self.training and torch.is_grad_enabled()
        batch_mean, num_losses = self._batch_mean(losses.detach(), mask, over_processes=learns)
        tau = torch.where(self.count > 0, self.mean, batch_mean)
        if learns:
            self._take_in(tau, batch_mean, num_losses)
        return tau

    def _take_in(self, tau: Tensor, batch_mean: Tensor, num_losses: Tensor) -> None:
        rate, num = self._rate(num_losses), num_losses.to(torch.int64)
        if is_compiling() and _LOSES_UPDATES:
            self.mean, self.count = torch.lerp(tau, batch_mean, rate), self.count + num
        else:
            torch.lerp(tau, batch_mean, rate, out=self.mean)
            self.count.add_(num)

    def _rate(self, num_losses: Tensor) -> Tensor:
        """The share of this batch in the new mean."""
        return num_losses / (self.count + num_losses).clamp(min=1)

    def _batch_mean(
        self, losses: Tensor, mask: Tensor | None, over_processes: bool
    ) -> tuple[Tensor, Tensor]:
        """Mean and number of the finite losses in the mask, here or over all processes."""
        counts = losses.abs() < math.inf
        if mask is not None:
            counts = counts & mask
        total = torch.where(counts, losses, 0.0).sum(dtype=torch.float64)
        num_losses = counts.sum(dtype=torch.float64)
        if over_processes and num_processes() > 1:
            total, num_losses = sum_over_ranks(torch.stack([total, num_losses]))
        return total / num_losses.clamp(min=1), num_losses


class ExpAverageTau(AverageTau):
    """tau = momentum * tau + (1 - momentum) * mean of the batch's finite losses.

    Args:
        momentum: share of the old tau that one batch keeps, in [0, 1)

    Example:
        >>> strategy = ExpAverageTau(momentum=0.75)
        >>> [strategy(torch.tensor(losses)).item() for losses in ([1.0, 3.0], [10.0], [4.0])]
        [2.0, 2.0, 4.0]
    """

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        check_domain("momentum", momentum, not 0 <= momentum < 1, "in [0, 1)")
        self.momentum = momentum

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"

    def _rate(self, num_losses: Tensor) -> Tensor:
        # A batch without a loss has no mean to move to.
        return num_losses.clamp(max=1) * (1 - self.momentum)


class LogCTau(ConstantTau):
    """tau = log(num_outcomes) in nats: the cross-entropy of a uniform softmax.

    Args:
        num_outcomes: number of softmax outcomes; a head checks that it matches its classes
    """

    def __init__(self, num_outcomes: int) -> None:
        super().__init__(math.log(num_outcomes))
        self.num_outcomes = num_outcomes


def logC(*, num_outcomes: int | None = None, **_: Any) -> LogCTau:
    """log(num_outcomes) in nats."""
    if num_outcomes is None or num_outcomes < 2:
        raise ValueError(
            "tau 'logC' needs num_outcomes, the number of softmax outcomes, at least 2; got "
            f"{num_outcomes!r}. Without a softmax use 'Avg', 'ExpAvg' or a number."
        )
    return LogCTau(num_outcomes)


def Avg(**_: Any) -> AverageTau:
    """The mean of all losses so far."""
    return AverageTau()


def ExpAvg(*, momentum: float = 0.9, **_: Any) -> ExpAverageTau:
    """The exponential running average of the losses."""
    return ExpAverageTau(momentum)


# By config name; each takes the keyword arguments of build_tau and ignores those it does not need.
TAU_STRATEGIES: MappingProxyType[str, Callable[..., nn.Module]] = MappingProxyType(
    {strategy.__name__: strategy for strategy in (logC, Avg, ExpAvg)}
)


def build_tau(
    tau: str | float | nn.Module, *, num_outcomes: int | None = None, momentum: float = 0.9
) -> nn.Module:
    """The strategy for tau by its name, for a number, or the custom module that is given.

    A custom module is called with the losses and a mask or None, as :meth:`AverageTau.forward` is,
    and returns the tau of this batch, 0-d on their device. Its attribute `tau` is what the next
    call reads. It should learn in training with gradients only, hold its state in buffers, and
    learn the same in all processes.

    Args:
        tau: a name in `TAU_STRATEGIES`, a finite number, also as a string, or a module
        num_outcomes, momentum: as of :class:`~sl_detectron.losses.SuperLoss`

    Raises:
        ValueError: an argument out of range

    Example:
        >>> class RisingTau(nn.Module):  # a curriculum: step by step more samples are easy
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.register_buffer("tau", torch.zeros(()))
        ...
        ...     def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        ...         tau = self.tau.clone()
        ...         if self.training and torch.is_grad_enabled():
        ...             self.tau += 0.5
        ...         return tau
        >>> from sl_detectron.losses import SuperLoss
        >>> criterion = SuperLoss(tau=RisingTau())
        >>> criterion(torch.tensor([0.0, 1.0])), criterion.tau
        (tensor([0.0000, 0.6080]), tensor(0.5000))
    """
    if isinstance(tau, nn.Module):
        accepted = "a module with an attribute `tau`, the threshold that its next call reads"
        check_domain("tau", tau, not hasattr(tau, "tau"), accepted)
        return tau
    if isinstance(tau, str) and tau in TAU_STRATEGIES:
        return TAU_STRATEGIES[tau](num_outcomes=num_outcomes, momentum=momentum)
    value = as_number(tau)
    names = ", ".join(map(repr, TAU_STRATEGIES))
    check_domain("tau", tau, not math.isfinite(value), f"{names} or a finite number")
    return ConstantTau(value)
