"""Which annotated object each detection overlaps most.

Shape legend: N detections, M ground truth objects. Boxes are (xmin, ymin, xmax, ymax) in 1-based
inclusive pixels, so a box is xmax - xmin + 1 wide.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Array", "Detections", "GroundTruth", "best_overlaps"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Detections:
    """Detected boxes of a data set.

    Args:
        images: (N,) int64, index of the image
        classes: (N,) class id
        scores: (N,) float64
        boxes: (N, 4) float64, pixels
    """

    images: Array
    classes: Array
    scores: Array
    boxes: Array


@dataclass(frozen=True)
class GroundTruth:
    """Annotated boxes of a data set.

    Args:
        images: (M,) int64, index of the image
        classes: (M,) class id
        boxes: (M, 4) float64, pixels
        difficult: (M,) bool; finding or missing such an object counts neither way
    """

    images: Array
    classes: Array
    boxes: Array
    difficult: Array


def best_overlaps(detections: Detections, ground_truth: GroundTruth) -> tuple[Array, Array]:
    """Return for each detection the object of its image and class that it overlaps most.

    Args:
        detections: N boxes
        ground_truth: M boxes

    Returns:
        (N,) intersection over union, -inf where the image has no object of the class, and
        (N,) index of the object, the first of equals
    """
    best = np.full(len(detections.scores), -np.inf)
    objects = np.zeros(len(best), dtype=np.intp)
    if not len(best) or not len(ground_truth.classes):
        return best, objects
    num_classes = int(max(detections.classes.max(), ground_truth.classes.max())) + 1
    # By image first: detections come image by image, and a search for nearly sorted keys is fast.
    groups = ground_truth.images * num_classes + ground_truth.classes
    order = np.argsort(groups, kind="stable")
    keys, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    wanted = detections.images * num_classes + detections.classes
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    active = np.flatnonzero(keys[places] == wanted)
    candidates = starts[places[active]]
    ends = candidates + counts[places[active]]
    # Round k compares every detection with the k-th object of its image and class.
    while len(active):
        rivals = order[candidates]
        overlaps = _pairwise_iou(detections.boxes[active], ground_truth.boxes[rivals])
        better = overlaps > best[active]
        best[active[better]] = overlaps[better]
        objects[active[better]] = rivals[better]
        left = candidates + 1 < ends
        active, candidates, ends = active[left], candidates[left] + 1, ends[left]
    return best, objects


def _pairwise_iou(boxes1: Array, boxes2: Array) -> Array:
    """Intersection over union of (P, 4) and (P, 4) inclusive pixel boxes, pair by pair."""
    x1, y1, x2, y2 = boxes1.T
    u1, v1, u2, v2 = boxes2.T
    width = np.maximum(np.minimum(u2, x2) - np.maximum(u1, x1) + 1.0, 0.0)
    height = np.maximum(np.minimum(v2, y2) - np.maximum(v1, y1) + 1.0, 0.0)
    intersection = width * height
    union = (x2 - x1 + 1.0) * (y2 - y1 + 1.0) + (u2 - u1 + 1.0) * (v2 - v1 + 1.0) - intersection
    return intersection / union
