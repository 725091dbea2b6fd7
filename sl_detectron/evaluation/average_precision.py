"""Pascal VOC average precision without loops over detections.

Shape legend: N detections, M ground truth objects, C classes, T overlap thresholds; n detections
of one class, h of them true positives.

The object that a detection overlaps most does not depend on the threshold, so it is found once; at
each threshold the true positive of an object is then the first detection, by score, assigned to it.
The floating point operations and their order are those of the VOC devkit's Python evaluation,
which detectron2 runs: the results are equal to the last bit.
"""

from dataclasses import dataclass

import numpy as np

from .voc_matching import Array, Detections, GroundTruth, best_overlaps

__all__ = [
    "IOU_THRESHOLDS",
    "METRICS",
    "ClassResult",
    "average_precision",
    "evaluate_detections",
    "precision_recall",
]

IOU_THRESHOLDS = tuple(percent / 100.0 for percent in range(50, 100, 5))
METRICS = ("07", "area")
_RECALL_LEVELS = np.arange(0.0, 1.1, 0.1)


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
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
) -> list[ClassResult]:
    """Score each class at each overlap threshold; time and memory are linear in detections.

    Detections of equal score count in the order that numpy's default sort gives them.

    Args:
        detections: N boxes in the order in which they were made
        ground_truth: M boxes
        num_classes: C
        metric: "07", VOC 2007's 11-point mean of precisions, or "area" under the curve
        thresholds: T values; a match must overlap more than this fraction

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
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}; got {metric!r}")
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
        # The same sort on the same input as the devkit's, so that ties fall the same way.
        mine = mine[np.argsort(-detections.scores[mine])]
        results.append(
            _evaluate_class(
                overlaps[mine],
                objects[mine],
                ground_truth,
                int(counts[class_id]),
                metric,
                thresholds,
            )
        )
    return results


def precision_recall(
    overlaps: Array, objects: Array, ground_truth: GroundTruth, num_objects: int, threshold: float
) -> tuple[Array, Array]:
    """Return recall and precision of one class at each of its h true positives.

    Between two true positives recall stays and precision falls, so no other point of the curve
    matters to AP.

    Args:
        overlaps: (n,) from :func:`best_overlaps`, by falling score
        objects: (n,) likewise
        ground_truth: M boxes
        num_objects: of this class that are not difficult
        threshold: a match must overlap more than this fraction

    Returns:
        (h,) recall and (h,) precision, fractions, by falling score
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

    Returns:
        average precision, fraction

    Example:
        >>> average_precision(np.array([0.5, 1.0]), np.array([1.0, 0.75]), "area")
        0.875
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "07":
        positions = np.searchsorted(recall, _RECALL_LEVELS)
        ap = 0.0
        for position in positions:
            ap += (envelope[position] if position < len(envelope) else 0.0) / 11.0
        return float(ap)
    recall = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.concatenate((envelope, [0.0]))
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps]))


def _evaluate_class(
    overlaps: Array,
    objects: Array,
    ground_truth: GroundTruth,
    num_objects: int,
    metric: str,
    thresholds: tuple[float, ...],
) -> ClassResult:
    curves = [
        precision_recall(overlaps, objects, ground_truth, num_objects, threshold)
        for threshold in thresholds
    ]
    return ClassResult(
        num_objects=num_objects,
        num_detections=len(overlaps),
        ap=np.array([average_precision(*curve, metric) for curve in curves]),
        max_recall=np.array([recall[-1] if len(recall) else 0.0 for recall, _ in curves]),
        recall=curves[0][0],
        precision=curves[0][1],
    )
