"""Classification losses that resist wrong labels, one value per sample, on softmax logits.

Shape legend: R samples, C classes. p is the softmax of the logits, y the label, t its one-hot
vector. All losses take and check `logits` and `labels` as :func:`cross_entropy` does, and return
(R,) losses in nats unless noted; a parameter out of its range raises ValueError.
"""

import math
from collections.abc import Callable
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from .domain import check_domain, check_logits, widen

__all__ = [
    "CLASSIFICATION_LOSSES",
    "cross_entropy",
    "generalized_cross_entropy",
    "symmetric_cross_entropy",
    "hard_bootstrapping",
    "soft_bootstrapping",
    "focal_loss",
    "lncis",
    "truncated_generalized_cross_entropy",
    "self_paced",
]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y.

    Args:
        logits: (R, C) floating point of any width, computed in float32 at least
        labels: (R,) int64 in [0, C)

    Returns:
        (R,) losses in nats, float32 or float64

    Raises:
        ValueError: wrong shape or dtype

    Example:
        >>> cross_entropy(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.6931, 3.0486])
    """
    return -_log_probability(logits, labels)[0]


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """(1 - p_y^q) / q (Zhang and Sabuncu 2018, eq. 6): cross-entropy for q -> 0, 1 - p_y for q = 1.

    Args:
        logits, labels: as in :func:`cross_entropy`
        q: in (0, 1]; a larger one resists more noise and learns more slowly

    Returns:
        (R,) losses in [0, 1 / q]

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        >>> generalized_cross_entropy(logits, torch.tensor([0, 1]))
        tensor([0.5492, 1.2595])
    """
    check_domain("q", q, not 0 < q <= 1, "in (0, 1]")
    log_p, _ = _log_probability(logits, labels)
    return torch.expm1(q * log_p) / -q


def symmetric_cross_entropy(
    logits: Tensor, labels: Tensor, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> Tensor:
    """-alpha * log p_y - beta * sum p * log t, with log 0 = log_zero (Wang et al. 2019, eq. 7).

    The second, reverse term is -beta * log_zero * (1 - p_y).

    Args:
        logits, labels: as in :func:`cross_entropy`
        alpha: weight of the cross-entropy, at least 0. The paper: 0.1 for CIFAR-10, 6 for CIFAR-100
        beta: weight of the reverse cross-entropy, at least 0. The paper: 1 and 0.1
        log_zero: what stands for log 0, at most 0

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        >>> symmetric_cross_entropy(logits, torch.tensor([0, 1]))
        tensor([2.0693, 4.1152])
    """
    check_domain("alpha", alpha, not alpha >= 0, "at least 0")
    check_domain("beta", beta, not beta >= 0, "at least 0")
    check_domain("log_zero", log_zero, not log_zero <= 0, "at most 0")
    log_p, _ = _log_probability(logits, labels)
    return -alpha * log_p + beta * log_zero * torch.expm1(log_p)


def hard_bootstrapping(logits: Tensor, labels: Tensor, beta: float = 0.8) -> Tensor:
    """-beta * log p_y - (1 - beta) * log max p (Reed et al. 2014, eq. 7).

    The label is mixed with the class that the model predicts.

    Args:
        logits, labels: as in :func:`cross_entropy`
        beta: share of the label, in [0, 1]

    Example:
        >>> hard_bootstrapping(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.6931, 2.4486])
    """
    check_domain("beta", beta, not 0 <= beta <= 1, "in [0, 1]")
    log_p, log_all = _log_probability(logits, labels)
    return -beta * log_p - (1 - beta) * log_all.amax(dim=1)


def soft_bootstrapping(logits: Tensor, labels: Tensor, beta: float = 0.95) -> Tensor:
    """-sum (beta * t + (1 - beta) * p) * log p (Reed et al. 2014, eq. 6).

    The second term is the entropy of p; its gradient goes through both factors. Arguments as in
    :func:`hard_bootstrapping`.

    Example:
        >>> soft_bootstrapping(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.6931, 2.9057])
    """
    check_domain("beta", beta, not 0 <= beta <= 1, "in [0, 1]")
    log_p, log_all = _log_probability(logits, labels)
    # A logit of -inf, as 16 bits make of a large one, adds 0 to the entropy and not 0 * inf.
    finite = log_all.clamp(min=torch.finfo(log_all.dtype).min)
    return -beta * log_p - (1 - beta) * (log_all.exp() * finite).sum(dim=1)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """-(1 - p_y)^gamma * log p_y (Lin et al. 2017, eq. 4, of a softmax): cross-entropy for gamma 0.

    It weighs easy samples down and so wrong labels up: a reference, not a defence.

    Args:
        logits, labels: as in :func:`cross_entropy`
        gamma: at least 0

    Example:
        >>> focal_loss(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]))
        tensor([0.1733, 2.7663])
    """
    check_domain("gamma", gamma, not gamma >= 0, "at least 0")
    log_p, _ = _log_probability(logits, labels)
    # Where p_y rounds to 1, the slope of (1 - p_y)^gamma is infinite for gamma < 1: 0 * inf.
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)
    return -((-torch.expm1(log_p)) ** gamma) * log_p


def lncis(logits: Tensor, labels: Tensor, log_zero: float = math.log(1e-4)) -> Tensor:
    """Cross-entropy, but -sum p * log t where label and prediction are objects (Yang et al. 2020).

    "Learning with noisy class labels for instance segmentation", section 3.2: background is the
    last class, and its labels are right, so samples with that label or that prediction have the
    cross-entropy; among objects the reverse cross-entropy with log 0 = log_zero cannot be pulled
    far by a wrong label. Both have weight 1.

    Args:
        logits, labels: as in :func:`cross_entropy`
        log_zero: what stands for log 0, at most 0; the paper clamps t at 1e-4

    Example:
        >>> logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 3.0], [3.0, 0.0, 0.0]])
        >>> lncis(logits, torch.tensor([1, 1, 2]))
        tensor([8.7933, 3.0949, 3.0949])
    """
    check_domain("log_zero", log_zero, not log_zero <= 0, "at most 0")
    log_p, log_all = _log_probability(logits, labels)
    background = logits.shape[1] - 1
    is_background = (labels == background) | (log_all.argmax(dim=1) == background)
    return torch.where(is_background, -log_p, log_zero * torch.expm1(log_p))


def truncated_generalized_cross_entropy(
    logits: Tensor, labels: Tensor, q: float = 0.7, k: float = 0.5
) -> Tensor:
    """(1 - max(p_y, k)^q) / q (Zhang and Sabuncu 2018, eq. 9): no gradient where p_y <= k.

    The paper prunes from its 40th epoch on. A detector too must be trained before, see
    :class:`~sl_detectron.losses.AfterStart`: at first every object has p_y below k.

    Args:
        logits, labels: as in :func:`cross_entropy`
        q: in (0, 1]
        k: probability below which a label is taken for wrong, in [0, 1)

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
        >>> truncated_generalized_cross_entropy(logits, torch.tensor([0, 0, 1]))
        tensor([0.5492, 0.0478, 0.5492])
    """
    check_domain("k", k, not 0 <= k < 1, "in [0, 1)")
    return generalized_cross_entropy(logits, labels, q).clamp(max=(1 - k**q) / q)


def self_paced(logits: Tensor, labels: Tensor, threshold: float | None = None) -> Tensor:
    """min(-log p_y, threshold) (Kumar et al. 2010, eq. 4, minimised over v in {0, 1}).

    v * (loss - threshold) is least for v = 1 below the threshold and 0 above. The paper raises
    the threshold until all samples are in; with wrong labels some should stay out, so it is fixed.
    As :func:`truncated_generalized_cross_entropy` it needs a detector that was trained before.

    Args:
        logits, labels: as in :func:`cross_entropy`
        threshold: in nats, above 0; None for log C, the loss of a guess

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
        >>> self_paced(logits, torch.tensor([0, 0, 1]))
        tensor([0.6931, 0.0486, 0.6931])
    """
    check_domain("threshold", threshold, threshold is not None and not threshold > 0, "above 0")
    log_p, log_all = _log_probability(logits, labels)
    return (-log_p).clamp(max=math.log(log_all.shape[1]) if threshold is None else threshold)


def _log_probability(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) log p_y and (R, C) log p."""
    check_logits(logits, labels)
    log_all = F.log_softmax(widen(logits)[0], dim=1)
    return log_all.gather(1, labels[:, None]).squeeze(1), log_all


# By the name that a config gives; each takes (R, C) logits and (R,) labels.
CLASSIFICATION_LOSSES: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {
        loss.__name__: loss
        for loss in (
            cross_entropy,
            generalized_cross_entropy,
            symmetric_cross_entropy,
            hard_bootstrapping,
            soft_bootstrapping,
            focal_loss,
            lncis,
            truncated_generalized_cross_entropy,
            self_paced,
        )
    }
)
