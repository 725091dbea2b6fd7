"""What can be wrong with an annotation beside its class, each with a score of one image at a time.

All scores are in [0, 1], **higher is more suspect**, and come from one pass of any detector. Only
the expected misplacement of a box is one of all images. Within a kind they rank; a score of one
kind is no likelihood that can be compared with that of another.

Shape legend: G annotations of an image, D detections in it; boxes are XYXY in pixels.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor
from torchvision.ops import nms

__all__ = [
    "KINDS",
    "ImageAnswers",
    "duplicate_scores",
    "expected_misplacement",
    "drawn_boxes",
    "misplaced_box_scores",
    "missing_objects",
    "no_object_scores",
]

KINDS = ("wrong_class", "misplaced_box", "missing_object", "no_object", "duplicate")
# From this IoU on two boxes are of one object, as in PASCAL VOC's evaluation.
SAME = 0.5


class ImageAnswers(NamedTuple):
    """One image's annotations, a detector's scores of them, and its detections.

    Args:
        boxes: (G, 4) as annotated
        labels: (G,) int64 given classes
        background: (G,) probability that a box has no object, by its best sample
        refined: (G, 4) the box that the detector draws for the given class, starting there
        found: (D, 4) detections
        found_scores: (D,) their scores, in [0, 1]
        found_classes: (D,) int64
        crowds: (C, 4) boxes of crowd regions, and of annotations without an answer, in which
            nothing is missing
    """

    boxes: Tensor
    labels: Tensor
    background: Tensor
    refined: Tensor
    found: Tensor
    found_scores: Tensor
    found_classes: Tensor
    crowds: Tensor = torch.empty(0, 4)


def _iou(one: Tensor, other: Tensor) -> Tensor:
    return pairwise_iou(Boxes(one), Boxes(other))


def drawn_boxes(image: ImageAnswers) -> tuple[Tensor, Tensor]:
    """The box that the detector would draw for each annotation, and how sure it is of an object.

    The mean of the refined box, weighted by 1 - background, and of the detections of the given
    class that overlap it by IoU 0.5 and more, weighted by their scores (box voting). A detection
    votes for the annotation alone whose refined box it overlaps most.

    Returns:
        (G, 4) boxes, and (G,) in [0, 1] the largest of the weights
    """
    if not len(image.boxes):
        return image.refined, image.background
    overlaps = _iou(image.refined, image.found)
    votes = (overlaps >= SAME) & (image.labels[:, None] == image.found_classes)
    votes &= overlaps == overlaps.amax(dim=0)
    weights = torch.cat([1 - image.background[:, None], votes * image.found_scores], dim=1)
    refined, found = image.refined[:, None], image.found.expand(len(image.boxes), -1, -1)
    boxes = torch.cat([refined, found], dim=1)
    total = weights.sum(dim=1, keepdim=True)
    means = (weights[..., None] * boxes).sum(dim=1) / total.clamp_min(1e-12)
    return torch.where(total > 0, means, image.refined), weights.amax(dim=1)


def misplaced_box_scores(image: ImageAnswers, expected: float) -> Tensor:
    """How far each annotated box is expected to be from the object.

    1 - IoU of the annotated and the :func:`drawn <drawn_boxes>` box, as far as the detector is sure
    of an object, and else what is expected of any box: in a box that is far off the detector often
    sees nothing. certainty x (1 - IoU) + (1 - certainty) x expected.

    Args:
        image: with G annotations
        expected: from :func:`expected_misplacement` of all images

    Returns:
        (G,) scores
    """
    distances, certainty = _misplacements(image)
    return certainty * distances + (1 - certainty) * expected


def expected_misplacement(images: Iterable[ImageAnswers]) -> float:
    """The mean of 1 - IoU of annotated and drawn boxes, weighted by certainty; 0 of no box."""
    total = weight = 0.0
    for image in images:
        distances, certainty = _misplacements(image)
        total += float((certainty * distances).sum())
        weight += float(certainty.sum())
    return total / weight if weight else 0.0


def _misplacements(image: ImageAnswers) -> tuple[Tensor, Tensor]:
    """(G,) 1 - IoU of the annotated and the drawn box, and (G,) certainties of an object."""
    drawn, certainty = drawn_boxes(image)
    return 1 - _iou(image.boxes, drawn).diagonal(), certainty


def no_object_scores(image: ImageAnswers) -> Tensor:
    """(G,): background x (1 - support), where a detection of any class supports a box by its score
    x min(IoU / 0.5, 1), and the strongest one counts."""
    support = (image.found_scores * (_iou(image.boxes, image.found) / SAME).clamp_max(1)).T
    strongest = support.amax(dim=0) if len(support) else torch.zeros(len(image.boxes))
    return image.background * (1 - strongest)


def duplicate_scores(image: ImageAnswers) -> tuple[Tensor, Tensor]:
    """How likely each annotation is a second one of an object that another is the better one of.

    Two annotations of one object make the detector draw one box: the score is the IoU of their
    refined boxes x (1 - background of the worse one). The better one overlaps its refined box
    more; of equal ones it is the first.

    Returns:
        (G,) scores, 0 for the better one, and (G,) int64 the position of the better one, -1 for
        none
    """
    num = len(image.boxes)
    if num < 2:
        return torch.zeros(num), torch.full((num,), -1)
    fit = _iou(image.boxes, image.refined).diagonal()
    first = torch.arange(num)[:, None] > torch.arange(num)
    is_better = (fit > fit[:, None]) | ((fit == fit[:, None]) & first)
    overlaps = (_iou(image.refined, image.refined) * is_better).max(dim=1)
    better = torch.where(overlaps.values > 0, overlaps.indices, -1)
    return overlaps.values * (1 - image.background), better


def missing_objects(image: ImageAnswers) -> tuple[Tensor, Tensor]:
    """Detections where no annotation is.

    The score is that of the detection x (1 - min(IoU / 0.5, 1)), where the IoU is the largest with
    an annotated box or with the :func:`drawn <drawn_boxes>` box of one: an object whose box is off
    is not missing. Of detections of one place, of whatever class, the best is kept; one that lies
    by half and more in a crowd region is none.

    Returns:
        (M,) int64 positions of those above 0 in the detections, and (M,) their scores
    """
    kept = nms(image.found, image.found_scores, SAME)
    found = image.found[kept]
    annotated = torch.cat([image.boxes, drawn_boxes(image)[0]])
    cover = torch.zeros(len(found))
    if len(annotated):
        cover = _iou(annotated, found).amax(dim=0)
    scores = image.found_scores[kept] * (1 - (cover / SAME).clamp_max(1))
    if len(image.crowds):
        scores *= pairwise_ioa(Boxes(image.crowds), Boxes(found)).amax(dim=0) < SAME
    listed = scores > 0
    return kept[listed], scores[listed]
