"""The threshold tau between easy and hard samples: fixed, or an average of past losses.

A strategy is called once per step with the losses of the batch. It returns the tau for this batch,
which the batch itself enters only if it is the first one, and then takes the batch in. Nothing is
read back from the device, and with several processes every one holds the same tau.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["AverageTau", "ConstantTau", "ExpAverageTau"]


class _KeepDtype(nn.Module):
    """Buffers move with the module but keep their dtype, also through ``.half()``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self.get_buffer(name)
            if new.dtype != old.dtype:
                # From the old values, as the cast has rounded the new ones; meta has none.
                source = new if old.is_meta else old
                self.register_buffer(
                    name,
                    source.to(device=new.device, dtype=old.dtype),
                    persistent=name not in self._non_persistent_buffers_set,
                )
        return self


class ConstantTau(_KeepDtype):
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
        # to_empty() leaves memory as it finds it, and no checkpoint holds this buffer.
        self.tau.fill_(self.value)
        return self

    @torch.jit.unused
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        """The constant, 0-d float64."""
        return self.tau.clone()


class AverageTau(_KeepDtype):
    """tau = mean of all finite losses of the training so far.

    The buffers `mean` (float64) and `count` (int64, number of losses) are part of the state dict.

    Example:
        >>> strategy = AverageTau()
        >>> strategy.tau
        tensor(nan, dtype=torch.float64)
        >>> strategy(torch.tensor([1.0, 3.0]))
        tensor(2., dtype=torch.float64)
        >>> strategy(torch.tensor([8.0]))
        tensor(2., dtype=torch.float64)
        >>> strategy.tau
        tensor(4., dtype=torch.float64)
    """

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

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
            tau, 0-d float64. Until a loss was seen in training the mean of this batch, and 0 where
            that has no finite loss either.
        """
        learns = self.training and torch.is_grad_enabled()
        batch_mean, num_losses = self._batch_mean(losses.detach(), mask, over_processes=learns)
        tau = torch.where(self.count > 0, self.mean, batch_mean)
        if learns:
            self.mean.copy_(torch.lerp(tau, batch_mean, self._rate(num_losses)))
            self.count.add_(num_losses.to(torch.int64))
        return tau

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
        sums = torch.stack([total, counts.sum(dtype=torch.float64)])
        if over_processes and _num_processes() > 1:
            dist.all_reduce(sums)
        return sums[0] / sums[1].clamp(min=1), sums[1]


class ExpAverageTau(AverageTau):
    """tau = momentum * tau + (1 - momentum) * mean of the batch's finite losses.

    Args:
        momentum: share of the old tau that one batch keeps, in [0, 1)

    Example:
        >>> strategy = ExpAverageTau(momentum=0.75)
        >>> strategy(torch.tensor([1.0, 3.0]))
        tensor(2., dtype=torch.float64)
        >>> strategy(torch.tensor([10.0]))
        tensor(2., dtype=torch.float64)
        >>> strategy.tau
        tensor(4., dtype=torch.float64)
    """

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum!r}")
        self.momentum = momentum

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"

    def _rate(self, num_losses: Tensor) -> Tensor:
        # A batch without a loss has no mean to move to.
        return num_losses.clamp(max=1) * (1 - self.momentum)


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
