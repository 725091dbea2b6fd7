"""cleanlab's ObjectLab scores as a reference, and detections in the form that cleanlab reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances

from ..data.formats.annotations import Record

__all__ = ["objectlab_box_scores", "objectlab_scores"]


def _cleanlab_labels(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Annotations as cleanlab's ``labels``: an image's ``bboxes`` (L, 4) XYXY, ``labels`` (L,)."""
    return [
        {
            "bboxes": np.array([a["bbox"] for a in _counted(record)], dtype=float),
            "labels": np.array([a["category_id"] for a in _counted(record)]),
            "image_name": str(record.get("file_name", record["image_id"])),
        }
        for record in records
    ]


def _cleanlab_predictions(detections: Sequence[Instances], num_classes: int) -> list[np.ndarray]:
    """Detections as cleanlab's ``predictions``: per image K arrays (M, 5), XYXY and score."""
    predictions = []
    for found in detections:
        rows = np.column_stack([found.pred_boxes.tensor.numpy(), found.scores.numpy()])
        classes = found.pred_classes.numpy()
        per_class = np.empty(num_classes, dtype=object)
        for k in range(num_classes):
            per_class[k] = rows[classes == k].astype(float)
        predictions.append(per_class)
    return predictions


def objectlab_scores(
    records: Sequence[Record], detections: Sequence[Instances], num_classes: int
) -> dict[str, dict[int, float]]:
    """ObjectLab's label quality of every annotation; **lower is more suspect**.

    Args:
        records: from :meth:`~sl_detectron.data.annotation_ids.AnnotationTable.records`
        detections: of each record, from the same detector
        num_classes: K

    Returns:
        ``"swap"``: {annotation id: score of its box for a wrong class}; ``"swap at 0.5"``: the same
        counting detections of 0.5 and more, where cleanlab's own threshold is 0.95; ``"image"``:
        {annotation id: overall score of its image}

    Raises:
        ImportError: cleanlab is not installed
    """
    rank, kept, labels, predictions = _for_cleanlab(records, detections, num_classes)
    swap, swap_half = (
        rank.compute_swap_box_scores(
            labels=labels, predictions=predictions, high_probability_threshold=threshold
        )
        for threshold in (None, 0.5)
    )
    image = rank.get_label_quality_scores(labels, predictions, verbose=False)
    scores: dict[str, dict[int, float]] = {"swap": {}, "swap at 0.5": {}, "image": {}}
    for place, i in enumerate(kept):
        annotations = _counted(records[i])
        # The score of an image is that of each of its boxes.
        per_box = swap[place], swap_half[place], [image[place]] * len(annotations)
        for kind, values in zip(scores.values(), per_box):
            ids = (a["annotation_id"] for a in annotations)
            kind.update((i, float(value)) for i, value in zip(ids, values))
    return scores


def objectlab_box_scores(
    records: Sequence[Record], detections: Sequence[Instances], num_classes: int
) -> tuple[dict[int, float], list[list[tuple[list[float], float]]]]:
    """ObjectLab's scores of boxes that are off and of overlooked objects; **lower is worse**.

    Args:
        records, detections, num_classes: as :func:`objectlab_scores` has them

    Returns:
        {annotation id: score of its box for a bad location}, and per record the box of each
        detection with its score for an overlooked object; 1 for one that is no candidate, as
        cleanlab has none where a detection is below 0.95 or overlaps an annotation. An image
        without annotations has no list of them.

    Raises:
        ImportError: cleanlab is not installed
    """
    rank, kept, labels, predictions = _for_cleanlab(records, detections, num_classes)
    badly_located: dict[int, float] = {}
    overlooked: list[list[tuple[list[float], float]]] = [[] for _ in records]
    bad = rank.compute_badloc_box_scores(labels=labels, predictions=predictions)
    over = rank.compute_overlooked_box_scores(labels=labels, predictions=predictions)
    for i, prediction, qualities, found in zip(kept, predictions, bad, over):
        ids = (a["annotation_id"] for a in _counted(records[i]))
        badly_located.update((j, float(quality)) for j, quality in zip(ids, qualities))
        # cleanlab's order: class by class.
        boxes = np.concatenate([*prediction])[:, :4].tolist()
        overlooked[i] = [*zip(boxes, np.nan_to_num(found, nan=1.0).tolist())]
    return badly_located, overlooked


def _for_cleanlab(
    records: Sequence[Record], detections: Sequence[Instances], num_classes: int
) -> tuple[Any, list[int], Any, Any]:
    """cleanlab's module, the positions of the records that it takes, their labels and predictions.

    Raises:
        ImportError: cleanlab is not installed
    """
    try:
        from cleanlab.object_detection import rank
    except ImportError as error:
        raise ImportError(
            "the reference scores are cleanlab's: pip install 'sl_detectron[audit]'"
        ) from error
    # cleanlab wants at least one box in an image.
    kept = [i for i, record in enumerate(records) if _counted(record)]
    labels = _cleanlab_labels([records[i] for i in kept])
    return rank, kept, labels, _cleanlab_predictions([detections[i] for i in kept], num_classes)


def _counted(record: Record) -> list[Record]:
    return [a for a in record["annotations"] if not a.get("iscrowd", 0)]
