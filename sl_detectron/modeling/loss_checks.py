"""Checks when a model is built: whose losses the SuperLoss would replace, and by what terms."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .build import ClassificationLoss
from .per_anchor_losses import PerAnchorLosses
from .per_roi_losses import PerRoILosses
from .superloss_term import SuperLossTerm
from .trial_batch import trial_batch

__all__ = ["check_anchor_losses", "check_roi_losses"]

# For each loss the methods of detectron2's class that make it, and the one that says what it is for
# each sample.
_MAKERS: dict[type, dict[str, tuple[tuple[str, ...], str]]] = {
    FastRCNNOutputLayers: {
        "loss_cls": (("losses", "sigmoid_cross_entropy_loss"), "classification_losses"),
        "loss_box_reg": (("losses", "box_reg_loss"), "foreground_box_losses"),
    },
    RetinaNet: {
        "loss_cls": (("losses",), "classification_losses"),
        "loss_box_reg": (("losses",), "foreground_box_losses"),
    },
}
_SAMPLES = {FastRCNNOutputLayers: ("RoI", "PerRoILosses"), RetinaNet: ("anchor", "PerAnchorLosses")}


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
    stock = [k for k in replaced if replaced[k] and _check_restated(*classes, k)]
    if stock:
        _compare_roi_losses(predictor, stock)


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
    stock = [k for k in terms if terms[k] is not None and _check_restated(*classes, k)]
    if stock:
        _compare_anchor_losses(model, stock)


class _RoIStandIn(FastRCNNOutputLayers, PerRoILosses):
    """A predictor without the methods of a custom class, which may count calls."""

    def __init__(self, predictor: nn.Module) -> None:
        nn.Module.__init__(self)
        for name in (
            *("num_classes", "box2box_transform", "smooth_l1_beta", "box_reg_loss_type"),
            *("loss_weight", "use_sigmoid_ce", "use_fed_loss", "fed_loss_cls_weights"),
        ):
            if hasattr(predictor, name):  # detectron2 0.6 has not all of them
                self.__dict__[name] = getattr(predictor, name)
        # No class is drawn beside those that occur.
        self.fed_loss_num_classes = 0


@torch.no_grad()
def _compare_roi_losses(predictor: nn.Module, keys: list[str]) -> None:
    """Compare the losses of detectron2's class, as it is in this process, with those per RoI."""
    device = next((p.device for p in predictor.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return
    stand_in: Any = _RoIStandIn(predictor)
    box_dim = len(stand_in.box2box_transform.weights)
    batch = trial_batch(stand_in.num_classes, box_dim, device)
    structure = RotatedBoxes if box_dim == 5 else Boxes
    proposals = Instances((200, 200), gt_classes=batch.labels)
    proposals.proposal_boxes, proposals.gt_boxes = structure(batch.boxes), structure(batch.gt_boxes)
    with EventStorage():
        found = FastRCNNOutputLayers.losses(stand_in, (batch.scores, batch.deltas), [proposals])
    per_roi = {}
    if "loss_cls" in keys:
        if getattr(stand_in, "use_fed_loss", False):
            stand_in._federated_classes = batch.labels.unique()
        per_roi["loss_cls"] = stand_in.classification_losses(batch.scores, batch.labels)
    if "loss_box_reg" in keys:
        boxes = batch.boxes, batch.gt_boxes, batch.deltas
        per_roi["loss_box_reg"] = stand_in.foreground_box_losses(*boxes, batch.labels)
    weight = stand_in.loss_weight
    expected = {k: weight.get(k, 1.0) * v.sum() / len(batch.labels) for k, v in per_roi.items()}
    _check_changed(FastRCNNOutputLayers, expected, found)


class _AnchorStandIn(RetinaNet, PerAnchorLosses):
    """A RetinaNet without the methods of a custom class, with a loss normalizer of its own."""

    def __init__(self, model: RetinaNet) -> None:
        nn.Module.__init__(self)
        for name in (
            *("num_classes", "focal_loss_alpha", "focal_loss_gamma", "box2box_transform"),
            *("smooth_l1_beta", "box_reg_loss_type"),
        ):
            self.__dict__[name] = getattr(model, name)


@torch.no_grad()
def _compare_anchor_losses(model: RetinaNet, keys: list[str]) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return
    stand_in: Any = _AnchorStandIn(model)
    scores, labels, deltas, boxes, gt_boxes = trial_batch(stand_in.num_classes, 4, device)
    logits, deltas = scores[None, :, :-1], deltas[None, :, :4]
    with EventStorage():
        found = RetinaNet.losses(stand_in, [Boxes(boxes)], [logits], [labels], [deltas], [gt_boxes])
    foreground = (labels < stand_in.num_classes)[None]
    losses = {
        "loss_cls": stand_in.classification_losses(logits, labels[None]),
        "loss_box_reg": stand_in.foreground_box_losses(boxes, gt_boxes[None], deltas, foreground),
    }
    expected = {key: losses[key].sum() / stand_in.loss_normalizer for key in keys}
    _check_changed(RetinaNet, expected, found)


def _check_restated(cls: type, extension: type, stock: type, key: str) -> bool:
    """Refuse to put the SuperLoss of detectron2's losses in the place of other losses.

    A class that overrides a method which makes a loss may make any other one of it: that its values
    equal detectron2's on one batch says nothing about the next.

    Args:
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
    makers, per_sample = _MAKERS[stock][key]
    sample, mixin = _SAMPLES[stock]
    for base in cls.__mro__[: cls.__mro__.index(stock)]:
        if per_sample in vars(base):
            return False
        if issubclass(base, extension):  # restates our losses, by its custom choice
            continue
        restated = [maker for maker in makers if maker in vars(base)]
        if restated:
            raise TypeError(
                f"{base.__name__}.{restated[0]}() may change {key}, so what it is for each "
                f"{sample} is not known. If it leaves {key} as it is and adds other losses, say so "
                f"in {base.__name__} by a line, {per_sample} = {mixin}.{per_sample} (from "
                f"sl_detectron.modeling); else give it a method {per_sample}() with the same "
                f"arguments, or switch {key.replace('loss', 'superloss')} off"
            )
    return True


def _check_changed(
    stock: type, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Refuse detectron2's class where its losses are no longer detectron2's: edited or patched.

    Args:
        stock: the class of detectron2
        expected: 0-d losses of a small batch as detectron2 makes them
        found: of the same batch by the class as it is

    Raises:
        TypeError: a loss differs by more than rounding
    """
    sample, mixin = _SAMPLES[stock]
    for key, value in expected.items():
        if abs(float(found[key]) - float(value)) <= 1e-6 + 1e-4 * abs(float(value)):
            continue
        makers, per_sample = _MAKERS[stock][key]
        names = " or ".join(f"{maker}()" for maker in makers)
        raise TypeError(
            f"{stock.__name__} does not make detectron2's {key}: on a small batch it is "
            f"{float(found[key]):.6g}, not {float(value):.6g}. {names}, or what they call, was "
            "edited or patched, and the SuperLoss would train on the loss without that change. "
            f"Make it in a subclass with a method {per_sample}() that says what the loss is for "
            f"each {sample} (see sl_detectron.modeling.{mixin}), or switch "
            f"{key.replace('loss', 'superloss')} off"
        )


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
