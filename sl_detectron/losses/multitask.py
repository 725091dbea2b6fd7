"""The multi-task loss: one learned uncertainty for each task.

Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018.
Shape legend: N tasks; (...) any shape, for example none or one entry for each sample.
"""

import math

import torch
from torch import Tensor, nn

from .domain import check_domain, widen

__all__ = ["MultitaskLoss", "multitask"]


def multitask(losses: Tensor, sigma: Tensor) -> Tensor:
    """Sum over tasks of losses / (2 * sigma^2) + log(sigma) (eq. 5).

    The best sigma is sqrt(loss), so the minimum is (1 + log(loss)) / 2 a task: -inf at loss 0, and
    below 0 there is none. That is why negative losses, the SuperLoss among them, are refused.

    Args:
        losses: (..., N) at least 0, one for each task
        sigma: uncertainty above 0, (N,) or (..., N): the inverse of a confidence

    Returns:
        (...) sums over the tasks, in float32 at least

    Raises:
        ValueError: shapes that do not fit
        RuntimeError: a loss is negative or a sigma not above 0

    Example:
        >>> multitask(torch.tensor([4.0, 0.5]), sigma=torch.tensor([2.0, 1.0]))
        tensor(1.4431)
    """
    check_domain("sigma", sigma, sigma <= 0, "above 0")
    _check_losses(losses, sigma.shape[-1] if sigma.dim() else 0)
    losses, sigma = widen(losses, sigma)
    # Two divisions: the square of a small sigma underflows.
    return (losses / sigma / sigma / 2 + sigma.log()).sum(dim=-1)


class MultitaskLoss(nn.Module):
    """:func:`multitask` with learned s = log(sigma^2), one for each task.

    Args:
        num_tasks: N
        init_sigma: above 0, the same for all; 1, the default, halves every loss at the start

    Raises:
        ValueError: an argument out of range

    Example:
        >>> criterion = MultitaskLoss(num_tasks=2)
        >>> losses = torch.tensor([4.0, 0.5], requires_grad=True)
        >>> criterion(losses).backward()
        >>> losses.grad, criterion.log_variance.grad
        (tensor([0.5000, 0.5000]), tensor([-1.5000,  0.2500]))
    """

    def __init__(self, num_tasks: int, init_sigma: float = 1.0) -> None:
        super().__init__()
        check_domain("num_tasks", num_tasks, not num_tasks >= 1, "at least 1")
        check_domain("init_sigma", init_sigma, not 0 < init_sigma < math.inf, "finite and above 0")
        self.log_variance = nn.Parameter(torch.full((num_tasks,), 2 * math.log(init_sigma)))

    def forward(self, losses: Tensor) -> Tensor:
        """(..., N) losses, at least 0, to their (...) sums; errors as in :func:`multitask`."""
        _check_losses(losses, len(self.log_variance))
        losses, s = widen(losses, self.log_variance)
        # As multitask(losses, exp(s / 2)), which would overflow long before exp(-s) does.
        # A loss that stays 0 drives s down without end: 0 * inf would be nan.
        return 0.5 * (losses * (-s.clamp(min=-80)).exp() + s).sum(dim=-1)

    def sigma(self) -> Tensor:
        """(N,) uncertainties, without gradient."""
        return (0.5 * self.log_variance.detach()).exp()

    def extra_repr(self) -> str:
        return f"num_tasks={len(self.log_variance)}"


def _check_losses(losses: Tensor, num_tasks: int) -> None:
    if losses.dim() == 0 or losses.shape[-1] != num_tasks:
        raise ValueError(
            f"losses must have one entry for each of the {num_tasks} sigmas in the last "
            f"dimension; got shape {tuple(losses.shape)}"
        )
    accepted = "at least 0: this loss has no minimum for negative ones"
    check_domain("losses", losses, losses < 0, accepted)
