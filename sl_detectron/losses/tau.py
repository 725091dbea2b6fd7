"""Strategies for the threshold tau: constant, average and exponential running average."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["AverageTau", "ConstantTau", "ExpAverageTau"]


class _Float64Buffers(nn.Module):
    """Buffers that keep their dtype through ``.half()`` and ``.to(dtype)``."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is None or new is None or new.dtype == old.dtype:
                continue
            source = new if old.is_meta else old
            self._buffers[name] = source.to(device=new.device, dtype=old.dtype)
        return self


class ConstantTau(_Float64Buffers):
    """tau = value, never changed by a batch."""

    value: Tensor

    def __init__(self, value: float) -> None:
        super().__init__()
        # Not in the state dict: a changed config must win over a checkpoint.
        self.register_buffer("value", torch.tensor(value, dtype=torch.float64), persistent=False)

    @property
    def tau(self) -> Tensor:
        return self.value

    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.value


class AverageTau(_Float64Buffers):
    """tau = mean of all finite losses seen in training."""

    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @property
    def tau(self) -> Tensor:
        return torch.where(self.count > 0, self.mean, math.nan)

    def _rate(self, num_losses: Tensor) -> Tensor:
        return num_losses / (self.count + num_losses).clamp(min=1)

    @torch.no_grad()
    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        counted = losses.isfinite()
        if mask is not None:
            counted = counted & mask
        total = torch.where(counted, losses, 0.0).sum(dtype=torch.float64)
        stats = torch.stack([total, counted.sum(dtype=torch.float64)])
        if (
            self.training
            and dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size() > 1
        ):
            dist.all_reduce(stats)
        total, num = stats.unbind()
        batch_mean = total / num.clamp(min=1)
        tau = torch.where(self.count > 0, self.mean, batch_mean)
        if self.training:
            rate = torch.where(self.count > 0, self._rate(num), 1.0)
            rate = torch.where(num > 0, rate, 0.0)
            self.mean.add_(rate * (batch_mean - self.mean))
            self.count.add_(num.to(torch.int64))
        return tau


class ExpAverageTau(AverageTau):
    """tau = momentum * tau + (1 - momentum) * mean of the batch."""

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum!r}")
        self.momentum = momentum

    def _rate(self, num_losses: Tensor) -> Tensor:
        return torch.full_like(num_losses, 1 - self.momentum)
