"""From the keys of ``MODEL.SUPERLOSS`` to the losses of a detector, by registered names."""

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..config import check_has_keys
from ..losses import (
    AfterStart,
    CurriculumLoss,
    DataParams,
    FixedConfidence,
    ForwardCorrection,
    SuperLoss,
)
from ..losses.classification import CLASSIFICATION_LOSSES
from ..losses.tau import TAU_STRATEGIES, build_tau
from .superloss_term import GRANULARITIES, SuperLossTerm

__all__ = [
    "CLASSIFICATION_LOSS_REGISTRY",
    "TAU_REGISTRY",
    "ClassificationLoss",
    "losses_from_config",
]

# Of logits (R, C) and labels (R,); with an attribute `needs_annotation_ids` also of ids (R,).
ClassificationLoss = Callable[..., Tensor]

CLASSIFICATION_LOSS_REGISTRY = Registry("CLASSIFICATION_LOSS")
CLASSIFICATION_LOSS_REGISTRY.__doc__ = """
Losses by the names that ``MODEL.SUPERLOSS.CLS.LOSS`` takes.

A function is called with logits (R, C) and labels (R,) and returns (R,) losses. A class is built
without arguments, and the object is called likewise. A true attribute ``needs_annotation_ids`` adds
annotation ids (R,) to the call, -1 for RoIs without one.
"""

TAU_REGISTRY = Registry("TAU")
TAU_REGISTRY.__doc__ = """
Strategies for tau by the names that ``TAU`` takes.

A class or function is called with the keywords ``num_outcomes`` (None where classification is not a
softmax) and ``momentum``, and returns a module as :class:`~sl_detectron.losses.SuperLoss` takes it.
"""

for _loss in CLASSIFICATION_LOSSES.values():
    CLASSIFICATION_LOSS_REGISTRY.register(_loss)
for _strategy in TAU_STRATEGIES.values():
    TAU_REGISTRY.register(_strategy)

# Losses that are built with more than their name.
BUILT_LOSSES = ("data_params", "forward_correction", "curriculum_loss")
NUM_OUTCOMES = ("K+1", "K")
# Where the argument that an error begins with comes from.
_KEYS = {
    "tau": "{}.TAU",
    "lam": "{}.LAMBDA",
    "sigma": "{}.FIXED_SIGMA (0.0 for off)",
    "scope": "{}.SCOPE",
    "granularity": "{}.GRANULARITY",
    "momentum": "MOMENTUM",
    "warmup_iters": "WARMUP_ITERS",
}


def losses_from_config(
    cfg: CfgNode,
    num_softmax_classes: int | None,
    cls_granularities: Sequence[str] = ("sample", "instance"),
) -> dict[str, Any]:
    """Build the losses that ``MODEL.SUPERLOSS`` configures.

    Args:
        cfg: a config with the keys of :func:`~sl_detectron.add_superloss_config`
        num_softmax_classes: number of foreground classes K of a softmax classifier; None where
            classification is not a softmax, so that tau "logC" is undefined
        cls_granularities: what the detector can do

    Returns:
        ``superloss_cls`` and ``superloss_box_reg``, None for a term that is off, and
        ``classification_loss``, None for the detector's stock loss. "data_params" without
        ``NUM_ANNOTATIONS`` can predict, but raises when it is trained.

    Raises:
        KeyError: the config lacks the keys
        ValueError: a bad value; the message names key, value and choices
    """
    check_has_keys(cfg)
    node = cfg.MODEL.SUPERLOSS
    num_outcomes = _num_outcomes(node.CLS.NUM_OUTCOMES, num_softmax_classes)
    if not node.CLS.ENABLED:  # what fits another detector does not veto this one
        num_outcomes, cls_granularities = 2, GRANULARITIES
    return {
        "superloss_cls": _build_term("CLS", node, num_outcomes, cls_granularities),
        "superloss_box_reg": _build_term("BOX_REG", node, None, ("sample", "instance")),
        "classification_loss": _delayed(cfg, _classification_loss(node, num_softmax_classes)),
    }


def _build_term(
    key: str, superloss_node: CfgNode, num_outcomes: int | None, granularities: Sequence[str]
) -> SuperLossTerm | None:
    node, warmup_iters = superloss_node[key], superloss_node.WARMUP_ITERS
    accepted = f"one of {tuple(granularities)} here"
    _check(node.GRANULARITY in granularities, f"{key}.GRANULARITY", node.GRANULARITY, accepted)
    superloss: nn.Module
    try:
        # Also where it is off: every value in a config should be valid for some detector.
        momentum = superloss_node.MOMENTUM
        tau = _build_tau(node.TAU, num_outcomes, momentum)
        superloss = SuperLoss(tau, node.LAMBDA, momentum=momentum, normalize=node.NORMALIZE)
        if node.FIXED_SIGMA != 0:
            superloss = FixedConfidence(node.FIXED_SIGMA)
        name, scope = key.lower(), node.SCOPE
        term = SuperLossTerm(name, superloss, scope, node.GRANULARITY, warmup_iters)
    except ValueError as error:
        argument = str(error).partition(" ")[0]
        where = _KEYS.get(argument, "{}").format(key)
        raise ValueError(f"MODEL.SUPERLOSS.{where}: {error}") from error
    return term if node.ENABLED else None


def _build_tau(tau: str, num_outcomes: int | None, momentum: float) -> nn.Module:
    names = [name for name, _ in TAU_REGISTRY if num_outcomes or name != "logC"]
    if tau == "logC" and num_outcomes == 1:
        raise ValueError(
            "tau 'logC' of one outcome is 0, which no loss is below: MODEL.SUPERLOSS.CLS."
            "NUM_OUTCOMES is 'K' with one class; set it to 'K+1'"
        )
    if tau in names:
        strategy: nn.Module = TAU_REGISTRY.get(tau)(num_outcomes=num_outcomes, momentum=momentum)
        return strategy
    try:
        float(tau)
    except ValueError:
        only = "" if num_outcomes else " (logC is defined for softmax classification only)"
        raise ValueError(
            f'tau must be one of {names} or a quoted number such as "1.5"{only}; got {tau!r}'
        ) from None
    return build_tau(tau)


def _classification_loss(node: CfgNode, num_classes: int | None) -> ClassificationLoss | None:
    """The loss of ``CLS.LOSS``; None for the detector's stock loss."""
    name, rate = node.CLS.LOSS, node.CLS.NOISE_RATE
    names = [*(name for name, _ in CLASSIFICATION_LOSS_REGISTRY), *BUILT_LOSSES]
    _check(name in names, "CLS.LOSS", name, f"one of {names}")
    _check(rate < 1, "CLS.NOISE_RATE", rate, "in [0, 1), or below 0 for unknown")
    if name == "cross_entropy":
        return None
    softmax = num_classes is not None
    _check(softmax, "CLS.LOSS", name, "'cross_entropy' where classification is not a softmax")
    if name == "forward_correction":
        return ForwardCorrection(num_classes or 0, None if rate < 0 else rate)
    if name == "curriculum_loss":
        return CurriculumLoss(max(rate, 0.0))
    if name != "data_params":
        registered = CLASSIFICATION_LOSS_REGISTRY.get(name)
        loss: ClassificationLoss = registered() if isinstance(registered, type) else registered
        return loss
    num = node.DATA_PARAMS.NUM_ANNOTATIONS
    _check(num >= 0, "DATA_PARAMS.NUM_ANNOTATIONS", num, "0 or above")
    try:
        criterion = DataParams(num_samples=num or 1, lam=node.DATA_PARAMS.LAMBDA)
    except ValueError as error:
        raise ValueError(f"MODEL.SUPERLOSS.DATA_PARAMS.LAMBDA: {error}") from error
    return criterion if num else _uncounted


def _delayed(cfg: CfgNode, loss: ClassificationLoss | None) -> ClassificationLoss | None:
    """The loss, from ``CLS.LOSS_START`` on if there is one."""
    start = cfg.MODEL.SUPERLOSS.CLS.LOSS_START
    _check(0 <= start <= 1, "CLS.LOSS_START", start, "in [0, 1]")
    steps = round(start * cfg.SOLVER.MAX_ITER)
    return loss if loss is None or not steps else AfterStart(loss, steps)


def _uncounted(logits: Tensor, labels: Tensor) -> Tensor:
    raise ValueError(
        "MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS is 0, but data_params learns a number for "
        "every training annotation: set it, or train with SuperLossTrainer and a loader of "
        "build_noisy_train_loader, whose annotations it counts"
    )


def _num_outcomes(form: str, num_softmax_classes: int | None) -> int | None:
    _check(form in NUM_OUTCOMES, "CLS.NUM_OUTCOMES", form, f"one of {NUM_OUTCOMES}")
    if num_softmax_classes is None:
        return None
    return num_softmax_classes + (form == "K+1")


def _check(ok: bool, key: str, value: Any, accepted: str) -> None:
    if not ok:
        raise ValueError(f"MODEL.SUPERLOSS.{key} must be {accepted}; got {value!r}")
