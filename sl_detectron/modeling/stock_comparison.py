"""Whether detectron2's classes, as they are in this process, still make detectron2's losses."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .per_anchor_losses import PerAnchorLosses
from .per_roi_losses import PerRoILosses
from .trial_batch import trial_batch

__all__ = ["MAKERS", "SAMPLES", "compare_anchor_losses", "compare_roi_losses", "remedy"]

# For each loss the methods of detectron2's class that make it, and the one that says what it is for
# each sample.
MAKERS: dict[type, dict[str, tuple[tuple[str, ...], str]]] = {
    FastRCNNOutputLayers: {
        "loss_cls": (("losses", "sigmoid_cross_entropy_loss"), "classification_losses"),
        "loss_box_reg": (("losses", "box_reg_loss"), "foreground_box_losses"),
    },
    RetinaNet: {
        "loss_cls": (("losses",), "classification_losses"),
        "loss_box_reg": (("losses",), "foreground_box_losses"),
    },
}
# Steps at which they are compared: a change may depend on the step.
_STEPS = (0, 1_000_000)
SAMPLES = {FastRCNNOutputLayers: ("RoI", "PerRoILosses"), RetinaNet: ("anchor", "PerAnchorLosses")}


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
def compare_roi_losses(predictor: nn.Module, keys: list[str]) -> None:
    """Compare the losses of detectron2's class, as it is in this process, with those per RoI.

    Args:
        predictor: a :class:`FastRCNNOutputLayers`, whose settings count
        keys: of the losses to compare

    Raises:
        TypeError: they differ: detectron2's class was edited or patched
    """
    device = next((p.device for p in predictor.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return
    stand_in: Any = _RoIStandIn(predictor)
    box_dim = len(stand_in.box2box_transform.weights)
    batch = trial_batch(stand_in.num_classes, box_dim, device)
    structure = RotatedBoxes if box_dim == 5 else Boxes
    rois = Instances((200, 200), gt_classes=batch.labels)
    rois.proposal_boxes, rois.gt_boxes = structure(batch.boxes), structure(batch.gt_boxes)
    images = [rois[: len(rois) // 3], rois[len(rois) // 3 :]]
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

    def run() -> Mapping[str, Tensor]:
        predictions = batch.scores, batch.deltas
        found: Mapping[str, Tensor] = FastRCNNOutputLayers.losses(stand_in, predictions, images)
        return found

    for found in _losses_at_steps(FastRCNNOutputLayers, run):
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
def compare_anchor_losses(model: RetinaNet, keys: list[str]) -> None:
    """As :func:`compare_roi_losses`, of a RetinaNet."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return
    stand_in: Any = _AnchorStandIn(model)
    scores, labels, deltas, boxes, gt_boxes = trial_batch(stand_in.num_classes, 4, device)
    logits, deltas = scores[None, :, :-1], deltas[None, :, :4]
    given = [Boxes(boxes)], [logits], [labels], [deltas], [gt_boxes]
    foreground = (labels < stand_in.num_classes)[None]
    losses = {
        "loss_cls": stand_in.classification_losses(logits, labels[None]),
        "loss_box_reg": stand_in.foreground_box_losses(boxes, gt_boxes[None], deltas, foreground),
    }
    for found in _losses_at_steps(RetinaNet, lambda: RetinaNet.losses(stand_in, *given)):
        # The normalizer moves with each call.
        expected = {key: losses[key].sum() / stand_in.loss_normalizer for key in keys}
        _check_changed(RetinaNet, expected, found)


def _losses_at_steps(
    stock: type, run: Callable[[], Mapping[str, Tensor]]
) -> Iterator[Mapping[str, Tensor]]:
    """The losses of a small batch early and late in a training run.

    Raises:
        TypeError: the class needs what detectron2's does not have: it was edited or patched
    """
    for step in _STEPS:
        try:
            with EventStorage(step):
                found = run()
        except Exception as error:
            raise TypeError(
                f"{stock.__name__}.losses() was edited or patched: on a small batch, with what "
                f"detectron2's needs, it ends in {type(error).__name__}: {error}. The SuperLoss "
                f"would train on the losses without that change. {remedy(stock)}, or switch the "
                "terms of the SuperLoss off"
            ) from error
        yield found


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
    for key, value in expected.items():
        # Sums of float32 in another order are off by some 1e-6.
        if key in found and abs(float(found[key] - value)) <= 1e-6 + 2e-5 * abs(float(value)):
            continue
        makers, per_sample = MAKERS[stock][key]
        names = " or ".join(f"{maker}()" for maker in makers)
        is_now = f"{float(found[key]):.6g}" if key in found else "absent"
        raise TypeError(
            f"{stock.__name__} does not make detectron2's {key}: on a small batch it is "
            f"{is_now}, not {float(value):.6g}. {names}, or what they call, was "
            "edited or patched, and the SuperLoss would train on the loss without that change. "
            f"{remedy(stock, per_sample)}, or switch {key.replace('loss', 'superloss')} off"
        )


def remedy(stock: type, *per_sample: str) -> str:
    """The advice of a message: a subclass that defines its loss for each sample."""
    sample, mixin = SAMPLES[stock]
    methods = per_sample or tuple(method for _, method in MAKERS[stock].values())
    return (
        f"Make it in a subclass with a method {'() and '.join(methods)}() that returns the loss "
        f"of each {sample} (see sl_detectron.modeling.{mixin})"
    )
