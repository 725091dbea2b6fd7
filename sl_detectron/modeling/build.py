"""From the keys of ``MODEL.SUPERLOSS`` to the terms of a detector's loss."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from ..losses import DataParams, FixedConfidence, SuperLoss
from ..losses.classification import CLASSIFICATION_LOSSES
from .superloss_term import SCOPES, SuperLossTerm

__all__ = ["ClassificationLoss", "classification_loss_from_config", "superloss_terms_from_config"]

# Of logits (R, C) and labels (R,); DataParams also takes annotation ids (R,).
ClassificationLoss = Callable[[Tensor, Tensor], Tensor] | DataParams

TAU_NAMES = ("logC", "Avg", "ExpAvg")
NUM_OUTCOMES = ("K+1", "K")


def superloss_terms_from_config(
    cfg: CfgNode,
    num_softmax_classes: int | None,
    cls_granularities: Sequence[str] = ("sample", "instance"),
) -> dict[str, SuperLossTerm | None]:
    """Build the terms that ``MODEL.SUPERLOSS`` asks for.

    Args:
        cfg: a config with the keys of :func:`~sl_detectron.add_superloss_config`
        num_softmax_classes: number of foreground classes K of a softmax classifier; None where
            classification is not a softmax, so that tau "logC" is undefined
        cls_granularities: what the detector can do

    Returns:
        ``superloss_cls`` and ``superloss_box_reg``, None for a term that is off

    Raises:
        KeyError: the config lacks the keys
        ValueError: a bad value; the message names key, value and choices
    """
    if "SUPERLOSS" not in cfg.MODEL:
        raise KeyError(
            "the config has no MODEL.SUPERLOSS: call sl_detectron.add_superloss_config(cfg) "
            "right after get_cfg()"
        )
    node = cfg.MODEL.SUPERLOSS
    _check(0 <= node.MOMENTUM < 1, "MOMENTUM", node.MOMENTUM, "a number in [0, 1)")
    _check(node.WARMUP_ITERS >= 0, "WARMUP_ITERS", node.WARMUP_ITERS, "0 or above")
    num_outcomes = _num_outcomes(node.CLS, num_softmax_classes)
    return {
        "superloss_cls": _build_term("CLS", node, num_outcomes, cls_granularities),
        "superloss_box_reg": _build_term("BOX_REG", node, None, ("sample", "instance")),
    }


def classification_loss_from_config(cfg: CfgNode, softmax: bool) -> ClassificationLoss | None:
    """The loss of ``MODEL.SUPERLOSS.CLS.LOSS`` where it is not the head's own.

    Args:
        cfg: a config with the keys of :func:`~sl_detectron.add_superloss_config`
        softmax: whether the head classifies by a softmax

    Returns:
        a per-sample loss; None for the head's own. "data_params" without ``NUM_ANNOTATIONS`` can
        predict, but raises when it is trained.

    Raises:
        ValueError: an unknown loss, or one that needs a softmax where there is none
    """
    node = cfg.MODEL.SUPERLOSS
    name, names = node.CLS.LOSS, (*CLASSIFICATION_LOSSES, "data_params")
    _check(name in names, "CLS.LOSS", name, f"one of {names}")
    if name == "cross_entropy":
        return None
    _check(softmax, "CLS.LOSS", name, "'cross_entropy' where classification is not a softmax")
    if name != "data_params":
        return CLASSIFICATION_LOSSES[name]
    lam, num = node.DATA_PARAMS.LAMBDA, node.DATA_PARAMS.NUM_ANNOTATIONS
    _check(0 <= lam < math.inf, "DATA_PARAMS.LAMBDA", lam, "a finite number, at least 0")
    _check(num >= 0, "DATA_PARAMS.NUM_ANNOTATIONS", num, "0 or above")
    return DataParams(num_samples=num, lam=lam) if num else _uncounted


def _uncounted(logits: Tensor, labels: Tensor) -> Tensor:
    raise ValueError(
        "MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS is 0, but data_params learns a number for "
        "every training annotation: set it, or train with SuperLossTrainer, which counts them"
    )


def _check(ok: bool, key: str, value: Any, accepted: str) -> None:
    if not ok:
        raise ValueError(f"MODEL.SUPERLOSS.{key} must be {accepted}; got {value!r}")


def _num_outcomes(node: CfgNode, num_softmax_classes: int | None) -> int | None:
    accepted = f"one of {NUM_OUTCOMES}"
    _check(node.NUM_OUTCOMES in NUM_OUTCOMES, "CLS.NUM_OUTCOMES", node.NUM_OUTCOMES, accepted)
    if num_softmax_classes is None:
        return None
    return num_softmax_classes + (node.NUM_OUTCOMES == "K+1")


def _build_term(
    key: str, superloss_node: CfgNode, num_outcomes: int | None, granularities: Sequence[str]
) -> SuperLossTerm | None:
    node = superloss_node[key]
    names = TAU_NAMES if num_outcomes else TAU_NAMES[1:]
    accepted = f'one of {names} or a quoted number such as "1.5"'
    if not num_outcomes:
        accepted += " (logC is defined for softmax classification only)"
    _check(node.TAU in names or _is_number(node.TAU), f"{key}.TAU", node.TAU, accepted)
    lam, sigma = node.LAMBDA, node.FIXED_SIGMA
    _check(0 < lam < math.inf, f"{key}.LAMBDA", lam, "a finite number above 0")
    _check(0 <= sigma < math.inf, f"{key}.FIXED_SIGMA", sigma, "a finite number, 0.0 for off")
    _check(node.SCOPE in SCOPES, f"{key}.SCOPE", node.SCOPE, f"one of {SCOPES}")
    granularity, accepted = node.GRANULARITY, f"one of {tuple(granularities)} here"
    _check(granularity in granularities, f"{key}.GRANULARITY", granularity, accepted)
    if not node.ENABLED:
        return None
    superloss: SuperLoss | FixedConfidence
    if sigma > 0:
        superloss = FixedConfidence(sigma)
    else:
        momentum = superloss_node.MOMENTUM
        superloss = SuperLoss(node.TAU, lam, num_outcomes=num_outcomes, momentum=momentum)
    warmup_iters = superloss_node.WARMUP_ITERS
    return SuperLossTerm(key.lower(), superloss, node.SCOPE, granularity, warmup_iters)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
