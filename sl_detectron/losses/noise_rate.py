"""Losses that take the rate of wrong labels as an argument, or estimate it during training.

Shape legend: R samples, C classes of a softmax, the last of which is background; K = C - 1.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .domain import check_domain, check_logits, widen
from .ranks import gather_rows, sum_over_ranks

__all__ = ["AfterStart", "CurriculumLoss", "ForwardCorrection"]

# Samples that one process sends to the others, at most.
_MOST_SAMPLES = 8192


class ForwardCorrection(nn.Module):
    """-log sum_i p_i T_iy, T_ij = P(given j | true i) (Patrini et al. 2017, theorem 2).

    The paper estimates T from one perfect example of each class, by a network trained before.
    Ours: T counts which label is given where the model predicts class i, in an exponential average
    of about 100 batches, and its diagonal starts with a pseudo-count of 1. Background is never
    confused: label noise changes the class of an object.

    Args:
        num_classes: K
        rate: T of symmetric noise, in [0, 1); 0 is the cross-entropy; None to estimate T

    Example:
        >>> loss = ForwardCorrection(num_classes=2, rate=0.25)
        >>> loss(torch.tensor([[3.0, 0.0, -9.0]]), torch.tensor([1]))
        tensor([1.2957])
    """

    learns_once = True
    counts: Tensor

    def __init__(self, num_classes: int, rate: float | None = None) -> None:
        super().__init__()
        check_domain("rate", rate, rate is not None and not 0 <= rate < 1, "in [0, 1) or None")
        self.rate = rate
        counts = torch.eye(num_classes)
        if rate is not None and num_classes > 1:
            counts = counts * (1 - rate) + (1 - counts) * rate / (num_classes - 1)
        self.register_buffer("counts", counts, persistent=rate is None)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(R, C) logits and (R,) labels to (R,) losses in nats."""
        check_logits(logits, labels)
        log_p = F.log_softmax(widen(logits)[0], dim=1)
        is_object = labels < len(self.counts)
        given = torch.where(is_object, labels, 0)
        transition = (self.counts / self.counts.sum(dim=1, keepdim=True)).to(log_p.dtype)
        log_t = transition.log().clamp_min(torch.finfo(log_p.dtype).min)
        corrected = (log_p[:, :-1] + log_t.T[given]).logsumexp(dim=1)
        if self.rate is None and self.training and torch.is_grad_enabled():
            self._count(log_p.detach(), given, is_object)
        return -torch.where(is_object, corrected, log_p[:, -1])

    def _count(self, log_p: Tensor, given: Tensor, is_object: Tensor) -> None:
        """Counts with a pseudo-count that is not forgotten: 0.99 (n - I) + batch + I."""
        batch = torch.zeros_like(self.counts)
        predicted = log_p[:, :-1].argmax(dim=1)
        batch.index_put_((predicted, given), is_object.to(batch), accumulate=True)
        eye = torch.eye(len(batch), device=batch.device)
        self.counts.copy_(0.99 * (self.counts - eye) + sum_over_ranks(batch) + eye)


class CurriculumLoss(nn.Module):
    """v * cross-entropy, v in {0, 1} for objects by the sorted losses of the whole batch.

    (Lyu and Tsang 2020, algorithm 1 with the noise-pruned threshold.) With losses l above the 0-1
    loss in rising order, v_i = 1 while l_1 + .. + l_i <= T + 1 - i, T = (1 - rate)^2 n +
    (1 - rate) * number of errors. The paper's l is a hinge of the margin; ours, as the loss is
    trained with logits, the cross-entropy / log 2. Background has v = 1: its labels are right.
    The batch is that of all processes.

    Args:
        rate: fraction of wrong labels, in [0, 1); 0 prunes nothing

    Example:
        >>> logits = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0], [6.0, 0.0, 0.0]])
        >>> CurriculumLoss(rate=0.25)(logits, torch.tensor([0, 0, 1]))
        tensor([0.0360, 0.5514, 0.0000])
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        check_domain("rate", rate, not 0 <= rate < 1, "in [0, 1)")
        self.rate = rate

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(R, C) logits and (R,) labels to (R,) losses in nats."""
        check_logits(logits, labels)
        wide = widen(logits)[0]
        losses = F.cross_entropy(wide, labels, reduction="none")
        is_object = labels < logits.shape[1] - 1
        values = torch.stack([losses.detach() / math.log(2), wide.argmax(dim=1) != labels], dim=1)
        values = torch.where(is_object[:, None], values, math.nan)
        if torch.is_grad_enabled():  # else it may be a forward of one process
            values = gather_rows(values, _MOST_SAMPLES)
        upper = values[:, 0].sort().values  # nan, which is no object, comes last
        keep = 1 - self.rate
        threshold = keep**2 * (~upper.isnan()).sum() + keep * values[:, 1].nansum()
        place = torch.arange(1, len(upper) + 1, device=upper.device)
        chosen = upper.cumsum(0) <= threshold + 1 - place
        largest = torch.where(chosen, upper, -math.inf).amax(0, keepdim=True) if len(upper) else 0
        # Not "kept": a loss of nan stays one.
        dropped = is_object & (losses.detach() / math.log(2) > largest)
        return torch.where(dropped, 0.0, losses)


class AfterStart(nn.Module):
    """Cross-entropy in the first steps, then a loss that needs useful predictions.

    A loss that drops suspect samples drops every object as long as the model predicts only
    background. The loss is called from the first step on, so that its statistics are up to date.

    Args:
        loss: a module or function of logits, labels and perhaps ids
        start: steps of cross-entropy, counted in the state dict
    """

    # A head that asks for the losses of several classes in a step lets it count only once.
    learns_once = True
    num_steps: Tensor

    def __init__(self, loss: Any, start: int) -> None:
        super().__init__()
        check_domain("start", start, start < 0, "0 or above")
        self.loss = loss
        self.start = start
        self.needs_annotation_ids = getattr(loss, "needs_annotation_ids", False)
        self.register_buffer("num_steps", torch.tensor(0))

    def forward(self, logits: Tensor, labels: Tensor, *ids: Tensor) -> Tensor:
        """As the loss."""
        check_logits(logits, labels)
        plain = F.cross_entropy(widen(logits)[0], labels, reduction="none")
        losses: Tensor = torch.where(
            self.num_steps >= self.start, self.loss(logits, labels, *ids), plain
        )
        if self.training and torch.is_grad_enabled():
            self.num_steps += 1
        return losses
