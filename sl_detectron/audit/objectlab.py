"""cleanlab's ObjectLab scores as a reference, and detections in the form that cleanlab reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances

__all__ = ["cleanlab_labels", "cleanlab_predictions", "objectlab_scores"]

Record = dict[str, Any]


def cleanlab_labels(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Annotations as cleanlab's ``labels``: per image ``bboxes`` (L, 4) XYXY and ``labels`` (L,).

    Args:
        records: dataset dicts; crowd regions are left out
    """
    labels = []
    for record in records:
        annotations = _counted(record)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        labels.append(
            {
                "bboxes": np.array(boxes, dtype=float).reshape(-1, 4),
                "labels": np.array([a["category_id"] for a in annotations], dtype=int),
                "image_name": str(record.get("file_name", record["image_id"])),
            }
        )
    return labels


def cleanlab_predictions(detections: Sequence[Instances], num_classes: int) -> list[np.ndarray]:
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
        records: dataset dicts whose annotations have an ``annotation_id``
        detections: of each record, from the same detector
        num_classes: K

    Returns:
        ``"swap"``: {annotation id: score of its box for a wrong class}; ``"image"``: {annotation
        id: overall score of its image}

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
    labels = cleanlab_labels([records[i] for i in kept])
    predictions = cleanlab_predictions([detections[i] for i in kept], num_classes)
    swap = compute_swap_box_scores(labels=labels, predictions=predictions)
    image = get_label_quality_scores(labels, predictions, verbose=False)
    scores: dict[str, dict[int, float]] = {"swap": {}, "image": {}}
    for place, i in enumerate(kept):
        for annotation, score in zip(_counted(records[i]), swap[place]):
            scores["swap"][annotation["annotation_id"]] = float(score)
            scores["image"][annotation["annotation_id"]] = float(image[place])
    return scores


def _counted(record: Record) -> list[Record]:
    return [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
