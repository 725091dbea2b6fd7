"""Score every annotation with a trained detector, stock or not, in one pass over the images.

Shape legend: S samples (boxes or anchors), K classes.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.formats.annotations import Record
from .few_classes import MAX_DENSE, Distributions, FewClasses
from .image_pass import NO_ANNOTATION, each_image
from .scorers import Answers, Scorer, SeenFeatures, scorer_of

__all__ = ["AnnotationScores", "joined_scores", "score_annotations"]


class AnnotationScores(NamedTuple):
    """The scores that a detector gives annotations.

    Args:
        ids: (S,) int64 annotation ids
        losses: (S,) classification losses of the given labels, nats
        probabilities: (S, K); of a softmax without background, of a sigmoid as they are; of many
            classes the largest ones
        detections: per record what the detector finds, boxes in pixels of the image as it is on
            disk; empty if not asked for
        background: (S,) probability that there is no object of any class
        boxes: (S, 4) the box that the detector draws for the given class where the annotation's box
            is its proposal, or from an anchor of it; XYXY in pixels of the image on disk. None if
            there was no detection
    """

    ids: Tensor
    losses: Tensor
    probabilities: Distributions
    detections: list[Instances]
    background: Tensor = torch.empty(0)
    boxes: Tensor = torch.empty(0, 4)


_NOTHING = AnnotationScores(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0), [])


@torch.no_grad()
def score_annotations(
    model: nn.Module,
    records: Sequence[Record],
    cfg: CfgNode,
    detect: bool = False,
    progress: bool = False,
) -> AnnotationScores | None:
    """Score every annotation with a model in evaluation mode, at the size of test images.

    Where detectron2's ``launch`` started several processes, all of them call this, and each looks
    at a share of the images. An image is looked at alone, so that the result depends neither on
    their number nor on that of ``DATALOADER.NUM_WORKERS``.

    Args:
        model: a :class:`GeneralizedRCNN` or a :class:`RetinaNet`, or derived from one
        records: from :meth:`~sl_detectron.data.annotation_ids.AnnotationTable.records`, the same
            in all processes
        cfg: of the model; ``INPUT`` and ``DATALOADER`` count. With ``TEST.AUG.ENABLED`` and its
            ``FLIP`` an annotation has samples of the mirrored image too; detections stay those
            of the image as it is
        detect: whether to run its detection too
        progress: whether to show a progress bar

    Returns:
        on the CPU, of all images; None in other processes than the main one

    Raises:
        ValueError: the detector is of another kind, or there is no annotation
    """
    score = scorer_of(model)
    model.eval()
    mirrors = cfg.TEST.AUG.ENABLED and cfg.TEST.AUG.FLIP
    parts: list[AnnotationScores] = []
    for _, image in each_image(records, cfg, progress):
        if image is None:
            parts.append(_NOTHING._replace(detections=[_no_detections()]))
        else:
            parts.append(_look(model, score, *image, detect, mirrors))
    shares = comm.gather(joined_scores(parts))
    if not comm.is_main_process():
        return None
    scores = joined_scores(shares)
    if not scores.probabilities.shape[1:]:
        raise ValueError(NO_ANNOTATION)
    return scores


def _look(
    # mypy: an attribute of a Module is a Tensor or a Module.
    model: Any,
    score: Scorer,
    inputs: Record,
    targets: Instances,
    detect: bool,
    mirrors: bool,
) -> AnnotationScores:
    """The scores that a detector gives the annotations of one image."""
    scores, seen = _NOTHING, None
    targets = targets.to(model.device)
    found = _no_detections()
    if detect:
        # First: the features that the detector makes anyway are then at hand for the scores.
        with SeenFeatures(model.backbone) as seen:
            found = model([inputs])[0]["instances"]
    if len(targets):
        scores = _scores_of(score(model, inputs, targets, draw=detect, seen=seen), inputs, targets)
    if len(targets) and mirrors:
        other, others = _mirrored(inputs, targets)
        answers = score(model, other, others, draw=detect)
        answers = answers._replace(boxes=_mirrored_boxes(answers.boxes, targets.image_size[1]))
        scores = joined_scores([scores, _scores_of(answers, inputs, targets)])
    if detect:
        # Masks as large as the image would not fit into memory for all images.
        kept = {name: found.get(name) for name in ("pred_boxes", "scores", "pred_classes")}
        scores = scores._replace(detections=[Instances(found.image_size, **kept).to("cpu")])
    return scores


def _scores_of(answers: Answers, inputs: Record, targets: Instances) -> AnnotationScores:
    """On the CPU, with boxes in pixels of the image on disk."""
    ids, *values = (x.cpu() for x in answers)
    losses, every, background, boxes = (x.float() for x in values)
    probabilities: Distributions = every
    if every.shape[1] > MAX_DENSE:
        probabilities = FewClasses.of(every, _labels_of(targets, ids))
    height, width = targets.image_size
    sizes = torch.tensor([inputs["width"] / width, inputs["height"] / height]).repeat(2)
    scores = AnnotationScores(ids, losses, probabilities, [])
    return scores._replace(background=background, boxes=boxes * sizes)


def _mirrored(inputs: Record, targets: Instances) -> tuple[Record, Instances]:
    """An input with its annotations, left and right exchanged."""
    boxes = Boxes(_mirrored_boxes(targets.gt_boxes.tensor, targets.image_size[1]))
    others = Instances(targets.image_size, **{**targets.get_fields(), "gt_boxes": boxes})
    return {**inputs, "image": inputs["image"].flip(-1)}, others


def _mirrored_boxes(boxes: Tensor, width: int) -> Tensor:
    if not len(boxes):
        return boxes
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


def _labels_of(targets: Instances, ids: Tensor) -> Tensor:
    """(S,) given classes of the annotations of an image's samples."""
    of_annotation = dict(zip(targets.gt_annotation_ids.tolist(), targets.gt_classes.tolist()))
    return torch.tensor([of_annotation[i] for i in ids.tolist()], dtype=torch.int64)


def joined_scores(parts: Sequence[AnnotationScores]) -> AnnotationScores:
    """The scores of several images, or shares of them, one after the other."""

    def join(values: Sequence[Any]) -> Any:
        if isinstance(values[0], list):
            return [*chain.from_iterable(values)]
        few = [v for v in values if isinstance(v, FewClasses)]
        if few:
            return FewClasses.cat(few)
        # What is empty may have fewer dimensions.
        return torch.cat([v for v in values if len(v)] or [max(values, key=torch.Tensor.dim)])

    return AnnotationScores(*map(join, zip(*parts))) if parts else _NOTHING


def _no_detections() -> Instances:
    scores = torch.zeros(0)
    return Instances(
        (1, 1), pred_boxes=Boxes(scores.reshape(0, 4)), scores=scores, pred_classes=scores.long()
    )
