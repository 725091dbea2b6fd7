"""Checks when a model is built: whose losses the SuperLoss would replace, and by what terms."""

from typing import Any

from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from .build import ClassificationLoss
from .stock_comparison import MAKERS, SAMPLES, compare_anchor_losses, compare_roi_losses, remedy
from .superloss_term import SuperLossTerm

__all__ = ["check_anchor_losses", "check_roi_losses"]


def check_roi_losses(
    predictor: Any,
    superloss_class: type,
    extension: type,
    superloss_cls: SuperLossTerm | None,
    superloss_box_reg: SuperLossTerm | None,
    classification_loss: ClassificationLoss | None,
) -> None:
    """Refuse terms that do not fit a box predictor, and losses that they would not be of.

    Args:
        predictor: a :class:`FastRCNNOutputLayers`
        superloss_class: what it is to be
        extension: the class that replaces losses
        superloss_cls, superloss_box_reg, classification_loss: what it is to get

    Raises:
        TypeError: a custom class restates a loss, or detectron2's was changed
        ValueError: a term or the loss does not fit
    """
    for term in (superloss_cls, superloss_box_reg):
        if term is not None and term.granularity == "class":
            raise ValueError("granularity 'class' is for dense detectors, not for RoIs")
    softmax = not getattr(predictor, "use_sigmoid_ce", False)
    if classification_loss is not None and not softmax:
        raise ValueError(
            f"classification_loss {classification_loss!r} is a loss of softmax logits, but "
            f"{type(predictor).__name__} has use_sigmoid_ce"
        )
    _check_num_outcomes(superloss_cls, predictor.num_classes if softmax else None)
    _check_num_outcomes(superloss_box_reg, None)
    replaced = {
        "loss_cls": superloss_cls is not None and classification_loss is None,
        "loss_box_reg": superloss_box_reg is not None,
    }
    classes = superloss_class, extension, FastRCNNOutputLayers
    stock = [k for k in replaced if replaced[k] and _check_restated(predictor, *classes, k)]
    if stock:
        compare_roi_losses(predictor, stock)


def check_anchor_losses(
    model: RetinaNet,
    extension: type,
    superloss_cls: SuperLossTerm | None,
    superloss_box_reg: SuperLossTerm | None,
) -> None:
    """As :func:`check_roi_losses`, of a RetinaNet."""
    terms = {"loss_cls": superloss_cls, "loss_box_reg": superloss_box_reg}
    for term in terms.values():
        _check_num_outcomes(term, None)
    if superloss_box_reg is not None and superloss_box_reg.granularity == "class":
        raise ValueError("granularity 'class' is for the classification term only")
    classes = type(model), extension, RetinaNet
    stock = [k for k in terms if terms[k] is not None and _check_restated(model, *classes, k)]
    if stock:
        compare_anchor_losses(model, stock)


def _check_restated(instance: Any, cls: type, extension: type, stock: type, key: str) -> bool:
    """Refuse to put the SuperLoss of detectron2's losses in the place of other losses.

    A class that overrides a method which makes a loss may make any other one of it: that its values
    equals detectron2's on one batch may differ on the next.

    Args:
        instance: what has the losses, perhaps with methods that were set on the object
        cls: a subclass of ``extension`` and perhaps of custom classes
        extension: the class that replaces losses
        stock: the class of detectron2 that they extend
        key: the loss that the SuperLoss replaces

    Returns:
        whether the loss is detectron2's; False where a class says what it is for each sample

    Raises:
        TypeError: a custom class restates the loss, and neither it nor a class derived from it says
            what the loss is for each sample
    """
    makers, per_sample = MAKERS[stock][key]
    sample, mixin = SAMPLES[stock]
    if per_sample in vars(instance):
        return False
    for maker in makers:
        if maker in vars(instance):
            raise TypeError(
                f"{maker}() was set on an object of {type(instance).__name__}, and may change "
                f"{key}. {remedy(stock, per_sample)}, or switch "
                f"{key.replace('loss', 'superloss')} off"
            )
    for base in cls.__mro__[: cls.__mro__.index(stock)]:
        if per_sample in vars(base):
            return False
        if issubclass(base, extension):  # restates our losses, by its custom choice
            continue
        restated = [maker for maker in makers if maker in vars(base)]
        if restated:
            raise TypeError(
                f"{base.__name__}.{restated[0]}() may change {key}, so its value for "
                f"each {sample} is unknown. If it only adds other losses, declare that in "
                f"{base.__name__} by a line, {per_sample} = {mixin}.{per_sample} (from "
                f"sl_detectron.modeling); else give it a method {per_sample}() with the same "
                f"arguments, or switch {key.replace('loss', 'superloss')} off"
            )
    return True


def _check_num_outcomes(term: SuperLossTerm | None, num_softmax_classes: int | None) -> None:
    """Refuse a tau that is the log of another number of outcomes than the classifier has.

    Args:
        term: whose tau may have the attribute ``num_outcomes``, as "logC" has it
        num_softmax_classes: number of foreground classes K; None where the loss is no softmax

    Raises:
        ValueError: the numbers differ, or there is no softmax
    """
    threshold = getattr(getattr(term, "superloss", None), "threshold", None)
    num_outcomes = getattr(threshold, "num_outcomes", None)
    if num_outcomes is None or term is None:
        return
    if num_softmax_classes is None:
        raise ValueError(
            f"the term {term.name!r} has tau 'logC', which is defined for softmax classification "
            "only: take 'Avg', 'ExpAvg' or a number"
        )
    choices = (num_softmax_classes + 1, num_softmax_classes)
    if num_outcomes not in choices:
        raise ValueError(
            f"the term {term.name!r} has tau 'logC' of num_outcomes={num_outcomes}, but the box "
            f"predictor has num_classes={num_softmax_classes}: num_outcomes must be {choices[0]}, "
            f"with background, or {choices[1]}"
        )
