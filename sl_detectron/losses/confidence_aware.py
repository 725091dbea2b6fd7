"""The paper's other confidence-aware losses: equations 1, 2 and 5 of its supplementary.

introspection (Novotny et al., CVPR 2018), the reliability loss of R2D2 (Revaud et al., NeurIPS
2019) and the multi-task loss (Kendall et al., CVPR 2018); DataParams, equation 3, is in
:mod:`.data_params`. Shape legend: N tasks; (...) any shape, none included. Arguments are computed
in float32 at least, and are refused out of their range: a number by a ValueError, an entry of a
tensor by a RuntimeError, which is found on the device, as no loss waits for its inputs.
"""

import math

import torch
from torch import Tensor, nn

from .domain import check_domain, widen

__all__ = ["MultitaskLoss", "introspection", "multitask", "r2d2_reliability"]

# log(sinh(x) / x) = sum of these times x^2, x^4, ...: below _SERIES_END the direct formula loses
# digits, and its gradient more of them.
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)
_SERIES_END = 0.25


def introspection(
    similarity: Tensor | float, labels: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """log((exp(sigma) - 1) / sigma) - sigma * y * s (eq. 1).

    The negative log likelihood of s under a density on [0, 1] that grows like exp(sigma * y * s).
    It goes to 0 for sigma -> 0, and for sigma -> inf to inf, but for y * s = 1: there like
    -log(sigma). |d loss / d similarity| = sigma.

    Args:
        similarity: s in [0, 1], the score of a pair; it broadcasts with the others
        labels: y, -1 or 1, of any dtype
        sigma: reliability above 0

    Returns:
        (...) losses in nats, of the broadcast shape

    Raises:
        ValueError, RuntimeError: an argument out of range

    Example:
        >>> introspection(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([1, -1, -1]), sigma=2.0)
        tensor([-0.6386,  2.9614,  1.3614])
    """
    check_domain("similarity", similarity, (similarity < 0) | (similarity > 1), "in [0, 1]")
    check_domain("labels", labels, (labels != 1) & (labels != -1), "-1 or 1")
    check_domain("sigma", sigma, sigma <= 0, "above 0")
    similarity, labels, sigma = widen(similarity, labels, sigma)
    signed = similarity * labels
    half = sigma / 2
    small = half < _SERIES_END
    # Either branch gets arguments that it can take: where() would pass on the other's nan gradient.
    square = torch.where(small, half, 0.0).square()
    series = torch.zeros_like(square)
    for coefficient in reversed(_SERIES):
        series = (series + coefficient) * square
    large = torch.where(small, 1.0, sigma)
    # exp(sigma) is taken out of the logarithm, and sigma * (1 - y * s) together: neither
    # overflows nor cancels.
    direct = sigma * (1 - signed) + torch.log(-torch.expm1(-large)) - large.log()
    return torch.where(small, sigma * (0.5 - signed) + series, direct)


def r2d2_reliability(average_precision: Tensor | float, sigma: Tensor | float) -> Tensor:
    """sigma * (1 - AP) + (1 - sigma) / 2 (eq. 2, which corrects a typo of R2D2's paper).

    Linear in sigma: the best sigma is 0 for AP < 0.5 and 1 for AP > 0.5, never between.
    d loss / d average_precision = -sigma.

    Args:
        average_precision: AP in [0, 1], differentiable, of a patch; it broadcasts with sigma
        sigma: reliability in [0, 1]

    Returns:
        (...) losses in [0, 1], of the broadcast shape

    Raises:
        ValueError, RuntimeError: an argument out of range

    Example:
        >>> r2d2_reliability(torch.tensor([0.9, 0.5, 0.2]), sigma=torch.tensor([1.0, 0.7, 0.0]))
        tensor([0.1000, 0.5000, 0.5000])
    """
    for name, value in (("average_precision", average_precision), ("sigma", sigma)):
        check_domain(name, value, (value < 0) | (value > 1), "in [0, 1]")
    average_precision, sigma = widen(average_precision, sigma)
    return sigma * (1 - average_precision) + (1 - sigma) / 2


def multitask(losses: Tensor, sigma: Tensor) -> Tensor:
    """Sum over tasks of losses / (2 * sigma^2) + log(sigma) (eq. 5).

    The best sigma is sqrt(loss), so the minimum is (1 + log(loss)) / 2 a task: -inf at loss 0, and
    below 0 there is none. That is why negative losses, the SuperLoss among them, are refused.

    Args:
        losses: (..., N) at least 0, one for each task
        sigma: uncertainty above 0, (N,) or (..., N): the inverse of a confidence

    Returns:
        (...) sums over the tasks

    Raises:
        ValueError: shapes that do not fit
        RuntimeError: a loss is negative or a sigma not above 0

    Example:
        >>> multitask(torch.tensor([4.0, 0.5]), sigma=torch.tensor([2.0, 1.0]))
        tensor(1.4431)
    """
    check_domain("sigma", sigma, sigma <= 0, "above 0")
    _check_tasks(losses, sigma.shape[-1] if sigma.dim() else 0)
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
        _check_tasks(losses, len(self.log_variance))
        losses, s = widen(losses, self.log_variance)
        # As multitask(losses, exp(s / 2)), which would overflow long before exp(-s) does.
        # A loss that stays 0 drives s down without end: 0 * inf would be nan.
        return 0.5 * (losses * (-s.clamp(min=-80)).exp() + s).sum(dim=-1)

    def sigma(self) -> Tensor:
        """(N,) uncertainties, without gradient."""
        return (0.5 * self.log_variance.detach()).exp()

    def extra_repr(self) -> str:
        return f"num_tasks={len(self.log_variance)}"


def _check_tasks(losses: Tensor, num_tasks: int) -> None:
    if losses.dim() == 0 or losses.shape[-1] != num_tasks:
        raise ValueError(
            f"losses must have one entry for each of the {num_tasks} sigmas in the last "
            f"dimension; got shape {tuple(losses.shape)}"
        )
    accepted = "at least 0: this loss has no minimum for negative ones"
    check_domain("losses", losses, losses < 0, accepted)
