"""Score every annotation with a trained detector, stock or not, in one pass over the images.

ROI heads get the annotated boxes as proposals. A hook reads the output of their predictors, so that
any heads and predictors work. A RetinaNet scores an annotation by the anchors that its matcher
assigns to it.

Shape legend: S samples (boxes or anchors), K classes.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from tqdm import tqdm

from ..data.formats.annotations import Record
from ..data.images import BrokenImage, read_image, warn_of_turned
from .features import FeaturePooler

__all__ = ["AnnotationScores", "score_annotations", "scorer_of"]

logger = logging.getLogger(__name__)


class AnnotationScores(NamedTuple):
    """What a detector says about annotations.

    Args:
        ids: (S,) int64 annotation ids
        losses: (S,) classification losses of the given labels, nats
        probabilities: (S, K); of a softmax without background, of a sigmoid as they are
        detections: per record what the detector finds, boxes in pixels of the image as it is on
            disk; empty if not asked for
        features: (G, D) of annotations, see :class:`FeaturePooler`; of none if not asked for
        feature_ids: (G,) int64 their annotation ids
        feature_images: (G,) int64 position of their record
    """

    ids: Tensor
    losses: Tensor
    probabilities: Tensor
    detections: list[Instances]
    features: Tensor = torch.empty(0, 0)
    feature_ids: Tensor = torch.empty(0, dtype=torch.int64)
    feature_images: Tensor = torch.empty(0, dtype=torch.int64)


@torch.no_grad()
def score_annotations(
    model: nn.Module,
    records: Sequence[Record],
    cfg: CfgNode,
    detect: bool = False,
    progress: bool = False,
    pool: bool = False,
) -> AnnotationScores:
    """Score every annotation with a model in evaluation mode, at the size of test images.

    Args:
        model: a :class:`GeneralizedRCNN` or a :class:`RetinaNet`, or derived from one
        records: from :meth:`~sl_detectron.data.annotation_ids.AnnotationTable.records`
        cfg: of the model; ``INPUT`` counts
        detect: whether to run its detection too
        progress: whether to show a progress bar
        pool: whether to pool features of the annotations

    Returns:
        on the CPU

    Raises:
        ValueError: the detector is of another kind
    """
    score = scorer_of(model)
    model.eval()
    warn_of_turned(records, "the audited images")
    augmentations = T.AugmentationList(detection_utils.build_augmentation(cfg, is_train=False))
    parts, detections, pooled = [], [], []
    with FeaturePooler(model.backbone) if pool else nullcontext() as pooler:
        for i, record in enumerate(tqdm(records, unit="image", disable=not progress)):
            try:
                inputs, targets = _load(record, augmentations, cfg.INPUT.FORMAT)
            except BrokenImage as error:
                if cfg.DATALOADER.get("BROKEN_IMAGES", "error") != "skip":
                    raise
                logger.warning("Not audited: %s", str(error).partition("; repair it")[0])
                detections.append(_no_detections())
                continue
            targets = targets.to(model.device)
            if len(targets):
                parts.append([values.cpu() for values in score(model, inputs, targets)])
            if len(targets) and pooler is not None:
                ids = targets.gt_annotation_ids.cpu()
                features = pooler.pool(targets.gt_boxes.tensor)
                pooled.append((features, ids, torch.full_like(ids, i)))
            if detect:
                detections.append(model([inputs])[0]["instances"].to("cpu"))
    if not parts:
        raise ValueError("the training sets have no annotation")
    ids, losses, probabilities = (torch.cat(values) for values in zip(*parts))
    scores = AnnotationScores(ids, losses.float(), probabilities.float(), detections)
    if pooled:
        features, feature_ids, images = (torch.cat(values) for values in zip(*pooled))
        scores = scores._replace(features=features, feature_ids=feature_ids, feature_images=images)
    return scores


# Of a detector in evaluation mode, an input of one image and its targets with annotation ids:
# (S,) ids, (S,) losses, (S, K) probabilities.
Scorer = Callable[[Any, Record, Instances], tuple[Tensor, Tensor, Tensor]]


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


def _no_detections() -> Instances:
    scores = torch.zeros(0)
    return Instances(
        (1, 1), pred_boxes=Boxes(scores.reshape(0, 4)), scores=scores, pred_classes=scores.long()
    )


def _load(record: Record, augmentations: T.Augmentation, image_format: str) -> Any:
    """A detector's input, and its annotations in the coordinates of that input."""
    image = read_image(record, image_format)
    height, width = image.shape[:2]
    augmented = T.AugInput(image)
    transform = augmentations(augmented)
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    targets = Instances(augmented.image.shape[:2])
    corners = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    targets.gt_boxes = Boxes(torch.as_tensor(transform.apply_box(corners)).float())
    targets.gt_boxes.clip(targets.image_size)
    for field, key in (("gt_classes", "category_id"), ("gt_annotation_ids", "annotation_id")):
        targets.set(field, torch.tensor([a[key] for a in annotations], dtype=torch.int64))
    pixels = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
    return {"image": pixels, "height": height, "width": width}, targets


def _score_boxes(
    model: GeneralizedRCNN, inputs: Record, targets: Instances
) -> tuple[Tensor, Tensor, Tensor]:
    images = model.preprocess_image([inputs])
    proposals = Instances(targets.image_size, proposal_boxes=targets.gt_boxes)
    proposals.objectness_logits = torch.zeros(len(targets), device=targets.gt_classes.device)
    answers: list[tuple[Tensor, Tensor]] = []

    def ask(predictor: nn.Module, _: Any, output: tuple[Tensor, Tensor]) -> None:
        answers.append(_losses_and_probabilities(predictor, output[0], targets.gt_classes))

    predictors = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    with ExitStack() as hooks:
        for predictor in predictors:
            hooks.callback(predictor.register_forward_hook(ask).remove)
        model.roi_heads(images, model.backbone(images.tensor), [proposals], None)
    # Several for a cascade, which averages its stages at inference too.
    losses, probabilities = (sum(values) / len(answers) for values in zip(*answers))
    return targets.gt_annotation_ids, losses, probabilities


def _losses_and_probabilities(
    predictor: FastRCNNOutputLayers, scores: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    classes = scores[:, : predictor.num_classes]
    if not getattr(predictor, "use_sigmoid_ce", False):
        return F.cross_entropy(scores, labels, reduction="none"), classes.softmax(dim=1)
    target = F.one_hot(labels, predictor.num_classes).to(classes.dtype)
    losses = F.binary_cross_entropy_with_logits(classes, target, reduction="none")
    return losses.sum(dim=1), classes.sigmoid()


def _score_anchors(
    model: RetinaNet, inputs: Record, targets: Instances
) -> tuple[Tensor, Tensor, Tensor]:
    images = model.preprocess_image([inputs])
    pyramid = model.backbone(images.tensor)
    features = [pyramid[name] for name in model.head_in_features]
    logits = [permute_to_N_HWA_K(x, model.num_classes)[0] for x in model.head(features)[0]]
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
    return targets.gt_annotation_ids[of], losses, scores.sigmoid()
