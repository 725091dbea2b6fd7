"""Pascal VOC average precision without loops over detections.

Shape legend: N detections, M ground truth objects, C classes, T overlap thresholds, which a match
must exceed; n detections of one class, h of them true positives. Boxes are (xmin, ymin, xmax, ymax)
in 1-based inclusive pixels, so a box is xmax - xmin + 1 wide.

The object that a detection overlaps most does not depend on the threshold, so it is found once; at
each threshold the true positive of an object is then the first detection, by score, assigned to it.
The floating point operations and their order are those of the VOC devkit's Python evaluation,
which detectron2 runs: the results are equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "IOU_THRESHOLDS",
    "METRICS",
    "Array",
    "ClassResult",
    "Detections",
    "GroundTruth",
    "average_precision",
    "best_overlaps",
    "check_choice",
    "evaluate_detections",
]

IOU_THRESHOLDS = tuple(percent / 100.0 for percent in range(50, 100, 5))
METRICS = ("07", "area")
_RECALL_LEVELS = np.arange(0.0, 1.1, 0.1)

Array = np.ndarray[Any, Any]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, by the name under which it was given."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


@dataclass(frozen=True)
class Detections:
    """Detected boxes of a dataset.

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
    """Annotated boxes of a dataset.

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


@dataclass(frozen=True)
class ClassResult:
    """What one class scored.

    Args:
        num_objects: objects that are not difficult; 0 means that the class is absent
        num_detections: n
        ap: (T,) average precision, fraction
        max_recall: (T,) fraction of the objects that are found at all
        recall: (h,) fraction at each of the h true positives of the first threshold
        precision: (h,) fraction, likewise
    """

    num_objects: int
    num_detections: int
    ap: Array
    max_recall: Array
    recall: Array
    precision: Array


def evaluate_detections(
    detections: Detections,
    ground_truth: GroundTruth,
    num_classes: int,
    metric: str = "area",
    stable: bool = True,
) -> list[ClassResult]:
    """Score each class at each overlap threshold; time and memory are linear in detections.

    Args:
        detections: N boxes in the order in which they were made
        ground_truth: M boxes
        num_classes: C
        metric: "07", VOC 2007's 11-point mean of precisions, or "area" under the curve
        stable: whether detections of equal score count in the order in which they were made, which
            is the same on every machine; False for the order of numpy's default sort, which is
            that of the devkit and of detectron2 on this machine and differs between processors

    Returns:
        C results

    Raises:
        ValueError: unknown metric

    Example:
        >>> box = np.array([[1.0, 1.0, 10.0, 10.0]])
        >>> zero = np.zeros(1, int)
        >>> found = Detections(zero, zero, np.array([0.9]), box)
        >>> wanted = GroundTruth(zero, zero, box, np.array([False]))
        >>> evaluate_detections(found, wanted, num_classes=1)[0].ap[0].item()
        1.0
    """
    check_choice("metric", metric, METRICS)
    overlaps, objects = best_overlaps(detections, ground_truth)
    # Stable, so that every class keeps the order in which its detections were made; on few bits
    # numpy's stable sort is linear.
    classes = detections.classes.astype(np.min_scalar_type(num_classes))
    by_class = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[by_class], np.arange(num_classes + 1))
    counts = np.bincount(ground_truth.classes[~ground_truth.difficult], minlength=num_classes)
    results = []
    for class_id in range(num_classes):
        mine = by_class[ends[class_id] : ends[class_id + 1]]
        # By default the same sort on the same input as the devkit's: ties fall the same way.
        scores = -detections.scores[mine]
        mine = mine[np.argsort(scores, kind="stable") if stable else np.argsort(scores)]
        curves = [
            _precision_recall(overlaps[mine], objects[mine], ground_truth, counts[class_id], t)
            for t in IOU_THRESHOLDS
        ]
        results.append(
            ClassResult(
                num_objects=int(counts[class_id]),
                num_detections=len(mine),
                ap=np.array([average_precision(*curve, metric) for curve in curves]),
                max_recall=np.array([recall[-1] if len(recall) else 0.0 for recall, _ in curves]),
                recall=curves[0][0],
                precision=curves[0][1],
            )
        )
    return results


def best_overlaps(detections: Detections, ground_truth: GroundTruth) -> tuple[Array, Array]:
    """Find for each detection the object of its image and class that it overlaps most.

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


def _precision_recall(
    overlaps: Array, objects: Array, ground_truth: GroundTruth, num_objects: int, threshold: float
) -> tuple[Array, Array]:
    """Return (h,) recall and (h,) precision of one class at its true positives, by falling score.

    Between two true positives recall stays and precision falls, so no other point of the curve
    matters to AP. ``overlaps`` and ``objects`` are (n,), by falling score.
    """
    matches = np.flatnonzero(overlaps > threshold)
    on_difficult = ground_truth.difficult[objects[matches]]
    claims = matches[~on_difficult]
    claimed = objects[claims]
    first = np.empty(len(ground_truth.difficult), dtype=np.intp)
    # The last value given to an index stays; reversed, that is the best scored claim.
    first[claimed[::-1]] = claims[::-1]
    positions = claims[first[claimed] == claims]
    hits = np.arange(1.0, len(positions) + 1)
    # What matches a difficult object counts neither as a hit nor as a miss.
    ignored = np.searchsorted(matches[on_difficult], positions)
    return hits / max(num_objects, 1), hits / (positions + 1 - ignored)


def average_precision(recall: Array, precision: Array, metric: str) -> float:
    """Summarise a precision-recall curve.

    "07": mean over r = 0, 0.1, ..., 1 of the largest precision at a recall of at least r.
    "area": integral of the precision's monotone envelope over recall.

    Args:
        recall: (h,) fraction, rising
        precision: (h,) fraction
        metric: "07" or "area"

    Example:
        >>> average_precision(np.array([0.5, 1.0]), np.array([1.0, 0.75]), "area")
        0.875
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "07":
        ap = 0.0
        for position in np.searchsorted(recall, _RECALL_LEVELS):
            ap += (envelope[position] if position < len(envelope) else 0.0) / 11.0
        return float(ap)
    recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.concatenate((envelope, [0.0]))
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps]))
