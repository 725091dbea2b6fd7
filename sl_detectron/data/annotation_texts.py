"""Annotations as the text of a table and of its fingerprint, for many images at once.

Both texts have the same numbers: a box is rounded and written once.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.structures import BoxMode

from .formats.annotations import Record, corners

__all__ = ["annotation_texts"]

# Beyond it, hundredths of a pixel are not told apart safely.
_FAR = 1e7

# The JSON of an annotation, and what a fingerprint takes of it: nothing of a crowd.
Texts = list[tuple[str, str]]


def annotation_texts(name: str, records: Sequence[Record]) -> Iterator[Texts]:
    """Yield the texts of the annotations of each record.

    Args:
        name: of the dataset
        records: with ids, from :func:`~.annotation_ids.number_annotations`

    Raises:
        ValueError: an annotation cannot be read
    """
    annotations = [a for record in records for a in record.get("annotations", ())]
    try:
        boxes = iter(_rounded_boxes(annotations))
    except (KeyError, TypeError, ValueError, OverflowError):
        boxes = None  # one of them is of another kind: each for itself
    for record in records:
        try:
            yield [
                _texts(a, _rounded_box(a) if boxes is None else next(boxes))
                for a in record.get("annotations", ())
            ]
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            where = f"dataset {name!r}, image {record.get('image_id')!r}"
            raise ValueError(f"{where}: an annotation cannot be read: {error!r}") from error


def _rounded_boxes(annotations: Sequence[Record]) -> list[list[float]]:
    """As :func:`_rounded_box` of each; ValueError where one has to be looked at by itself."""
    modes = np.array([int(a["bbox_mode"]) for a in annotations], dtype=np.int64)
    if not {*modes.tolist()} <= {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}:
        raise ValueError("another box mode")
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(len(modes), 4)
    boxes[:, 2:] += np.where(modes[:, None] == BoxMode.XYWH_ABS, boxes[:, :2], 0.0)
    if not (np.abs(boxes) < _FAR).all():
        raise ValueError("a box far away")
    hundredths = 100 * boxes
    whole = np.rint(hundredths)
    # Dividing a whole number is exact as a decimal is read. Where the product may have been rounded
    # across the middle between two of them, Python looks at the decimals.
    unsure = np.abs(np.abs(hundredths - whole) - 0.5) < 1e-6
    rounded = whole / 100
    rounded[unsure] = [round(x, 2) for x in boxes[unsure].tolist()]
    return (rounded + 0.0).tolist()


def _rounded_box(annotation: Record) -> list[float]:
    """Its corners, finer than machines may differ by."""
    mode = annotation["bbox_mode"]
    if mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        box = corners(annotation)  # for a million annotations BoxMode would take a minute
    else:
        box = BoxMode.convert([float(x) for x in annotation["bbox"]], mode, BoxMode.XYXY_ABS)
    # + 0.0: no -0.0, which is written otherwise than 0.0.
    return [round(x, 2) + 0.0 for x in box]


def _texts(annotation: Record, box: list[float]) -> tuple[str, str]:
    number, category = int(annotation["annotation_id"]), int(annotation["category_id"])
    shown = repr(box)
    # JSON writes finite numbers as Python does, and a box of others is NaN there.
    in_json = shown if "n" not in shown else json.dumps(box)
    text = f'{{"annotation_id": {number}, "bbox": {in_json}, "category_id": {category}'
    if "true_category_id" in annotation:
        text += f', "true_category_id": {int(annotation["true_category_id"])}'
    if "true_bbox" in annotation:
        origin = _rounded_box({**annotation, "bbox": annotation["true_bbox"]})
        text += f', "true_bbox": {json.dumps(origin)}'
    if annotation.get("iscrowd", 0):
        return f'{text}, "iscrowd": 1}}', ""
    return f"{text}}}", f"({number}, {category}, {shown})"
