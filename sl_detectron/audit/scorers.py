"""The scores that a detector gives the annotations of one image.

ROI heads get the annotated boxes as proposals. A hook reads the output of their predictors, so that
any heads and predictors work. A RetinaNet scores an annotation by the anchors that its matcher
assigns to it.

Shape legend: S samples (boxes or anchors), K classes.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn

from ..data.formats.annotations import Record

__all__ = ["Answers", "Scorer", "SeenFeatures", "scorer_of"]


class Answers(NamedTuple):
    """As the fields of :class:`~sl_detectron.audit.score_annotations.AnnotationScores`, of one
    image; boxes in pixels of the input."""

    ids: Tensor
    losses: Tensor
    probabilities: Tensor
    background: Tensor
    boxes: Tensor = torch.empty(0, 4)


# Of a detector in evaluation mode, an input of one image, its targets with annotation ids;
# ``draw``: whether boxes are asked for, which costs trips to the host; and ``seen``.
Scorer = Callable[..., Answers]


class SeenFeatures(ExitStack):
    """While it is entered, notes what a backbone sees and makes.

    Args:
        backbone: of the detector
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self._pixels: Tensor | None = None
        self._maps: dict[str, Tensor] = {}
        self.callback(backbone.register_forward_hook(self._note).remove)

    def _note(self, _: nn.Module, args: tuple[Tensor], maps: Mapping[str, Tensor]) -> None:
        # A head may work in place.
        self._pixels, self._maps = args[0], {name: x.clone() for name, x in maps.items()}

    def of(self, pixels: Tensor) -> dict[str, Tensor] | None:
        """The features of such an input; None if it was another one."""
        same = self._pixels is not None and torch.equal(self._pixels, pixels)
        return self._maps if same else None


def _features(
    model: GeneralizedRCNN | RetinaNet, pixels: Tensor, seen: SeenFeatures | None
) -> dict[str, Tensor]:
    maps = seen.of(pixels) if seen is not None else None
    return model.backbone(pixels) if maps is None else maps


def scorer_of(model: nn.Module) -> Scorer:
    """What scores the annotations of one image by a detector of its kind.

    Raises:
        ValueError: the detector is neither a GeneralizedRCNN nor a RetinaNet
    """
    if isinstance(model, GeneralizedRCNN):
        return _score_boxes
    if isinstance(model, RetinaNet):
        return _score_anchors
    raise ValueError(
        f"a {type(model).__name__} cannot be audited: the detector must be a GeneralizedRCNN "
        "or a RetinaNet"
    )


def _score_boxes(
    model: GeneralizedRCNN,
    inputs: Record,
    targets: Instances,
    draw: bool = True,
    seen: SeenFeatures | None = None,
) -> Answers:
    images = model.preprocess_image([inputs])
    proposals = Instances(targets.image_size, proposal_boxes=targets.gt_boxes)
    proposals.objectness_logits = torch.zeros(len(targets), device=targets.gt_classes.device)
    answers: list[tuple[Tensor, ...]] = []
    boxes: list[Boxes] = []

    def ask(predictor: nn.Module, _: Any, output: tuple[Tensor, Tensor]) -> None:
        answers.append(_losses_and_probabilities(predictor, output[0], targets.gt_classes))
        if not draw:
            return
        # A stage of a cascade goes on from the boxes of the one before.
        staged = boxes and isinstance(model.roi_heads, CascadeROIHeads)
        start = boxes[-1] if staged else targets.gt_boxes
        drawn = Instances(targets.image_size, proposal_boxes=start, gt_classes=targets.gt_classes)
        # mypy: a method of a Module is a Tensor or a Module.
        predict: Any = predictor.predict_boxes_for_gt_classes
        boxes.append(Boxes(predict(output, [drawn])[0]))
        boxes[-1].clip(targets.image_size)

    predictors = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    with ExitStack() as hooks:
        for predictor in predictors:
            hooks.callback(predictor.register_forward_hook(ask).remove)
        model.roi_heads(images, _features(model, images.tensor, seen), [proposals], None)
    # Several for a cascade, which averages its stages at inference too.
    losses, probabilities, background = (sum(v) / len(answers) for v in zip(*answers))
    if not draw:
        return Answers(targets.gt_annotation_ids, losses, probabilities, background)
    last = boxes[-1:] if isinstance(model.roi_heads, CascadeROIHeads) else boxes
    drawn = torch.stack([found.tensor for found in last]).mean(dim=0)
    return Answers(targets.gt_annotation_ids, losses, probabilities, background, drawn)


def _losses_and_probabilities(
    predictor: FastRCNNOutputLayers, scores: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, class probabilities and that of background."""
    classes = scores[:, : predictor.num_classes]
    if not getattr(predictor, "use_sigmoid_ce", False):
        background = scores.softmax(dim=1)[:, predictor.num_classes]
        losses = F.cross_entropy(scores, labels, reduction="none")
        return losses, classes.softmax(dim=1), background
    target = F.one_hot(labels, predictor.num_classes).to(classes.dtype)
    losses = F.binary_cross_entropy_with_logits(classes, target, reduction="none")
    probabilities = classes.sigmoid()
    return losses.sum(dim=1), probabilities, 1 - probabilities.amax(dim=1)


def _score_anchors(
    model: RetinaNet,
    inputs: Record,
    targets: Instances,
    draw: bool = True,
    seen: SeenFeatures | None = None,
) -> Answers:
    images = model.preprocess_image([inputs])
    pyramid = _features(model, images.tensor, seen)
    features = [pyramid[name] for name in model.head_in_features]
    all_logits, all_deltas = model.head(features)
    logits = [permute_to_N_HWA_K(x, model.num_classes)[0] for x in all_logits]
    deltas = [permute_to_N_HWA_K(x, 4)[0] for x in all_deltas]
    anchors = Boxes.cat(model.anchor_generator(features))
    matched, labels = model.anchor_matcher(pairwise_iou(targets.gt_boxes, anchors))
    # Host trip: few of the anchors are matched.
    foreground = (labels == 1).nonzero()[:, 0]
    of = matched[foreground]
    scores = torch.cat(logits)[foreground]
    # Host trip: one_hot() looks at the classes.
    target = F.one_hot(targets.gt_classes[of], model.num_classes).to(scores.dtype)
    losses = sigmoid_focal_loss(
        scores,
        target,
        alpha=model.focal_loss_alpha,
        gamma=model.focal_loss_gamma,
    ).sum(dim=1)
    probabilities = scores.sigmoid()
    background = 1 - probabilities.amax(dim=1)
    ids = targets.gt_annotation_ids[of]
    if not draw:
        return Answers(ids, losses, probabilities, background)
    start = anchors.tensor[foreground]
    boxes = Boxes(model.box2box_transform.apply_deltas(torch.cat(deltas)[foreground], start))
    boxes.clip(targets.image_size)
    return Answers(ids, losses, probabilities, background, boxes.tensor)
