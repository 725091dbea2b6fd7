"""cleanlab's ObjectLab scores as a reference, and detections in the form that cleanlab reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Instances

from ..data.formats.annotations import Record

__all__ = ["objectlab_scores"]


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
    try:
        from cleanlab.object_detection.rank import compute_swap_box_scores, get_label_quality_scores
    except ImportError as error:
        raise ImportError(
            "the reference scores are cleanlab's: pip install 'sl_detectron[audit]'"
        ) from error
    # cleanlab wants at least one box in an image.
    kept = [i for i, record in enumerate(records) if _counted(record)]
    labels = _cleanlab_labels([records[i] for i in kept])
    predictions = _cleanlab_predictions([detections[i] for i in kept], num_classes)
    swap, swap_half = (
        compute_swap_box_scores(
            labels=labels, predictions=predictions, high_probability_threshold=threshold
        )
        for threshold in (None, 0.5)
    )
    image = get_label_quality_scores(labels, predictions, verbose=False)
    scores: dict[str, dict[int, float]] = {"swap": {}, "swap at 0.5": {}, "image": {}}
    for place, i in enumerate(kept):
        annotations = _counted(records[i])
        # The score of an image is that of each of its boxes.
        per_box = swap[place], swap_half[place], [image[place]] * len(annotations)
        for kind, values in zip(scores.values(), per_box):
            ids = (a["annotation_id"] for a in annotations)
            kind.update((i, float(value)) for i, value in zip(ids, values))
    return scores


def _counted(record: Record) -> list[Record]:
    return [a for a in record["annotations"] if not a.get("iscrowd", 0)]
