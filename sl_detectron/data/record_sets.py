"""Datasets that a program registers as a list of records: checked as files are."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from .formats.annotations import Annotation, Record, corners
from .formats.coco_fields import is_crowd
from .formats.flaws import Flaws, whole_number
from .images import image_name

__all__ = ["checked_records"]


def checked_records(name: str, records: Sequence[Record], flaws: Flaws) -> list[Record]:
    """Records with class ids as ints and without what cannot be used.

    Args:
        name: of the set
        records: detectron2 dataset dicts, never changed; boxes in modes other than XYXY_ABS and
            XYWH_ABS are not read
        flaws: takes what is found

    Returns:
        records that equal the given ones where nothing is wrong
    """
    checked = []
    for record in records:
        where = f"dataset {name!r}, image {image_name(record)!r:.80}"
        try:
            record = _with_plain_fields(record, where)
        except ValueError as error:
            flaws.add("image", error)
            continue
        annotations: list[Annotation] = []
        for index, annotation in enumerate(record.get("annotations") or ()):
            try:
                plain = _plain(annotation, record, f"{where}, annotation {index}", flaws)
            except ValueError as error:
                flaws.add("box", error)
                continue
            if plain is not None:
                annotations.append(plain)
        has_any = "annotations" in record
        checked.append({**record, "annotations": annotations} if has_any else record)
    flaws.check_boxes()
    return checked


def _with_plain_fields(record: Record, where: str) -> Record:
    """The record with id and size as ints of Python; ValueError for those of another type."""
    image_id = record.get("image_id", 0)
    if isinstance(image_id, bool) or not isinstance(image_id, Integral | str):
        raise ValueError(f"{where}: image_id must be a number or a name; got {image_id!r:.80}")
    changed: dict[str, Any] = {}
    if isinstance(image_id, np.generic):  # COCO's metrics write it as json
        changed["image_id"] = image_id.item()
    for key in ("height", "width"):
        value = record.get(key)
        plain = whole_number(value.item() if isinstance(value, np.generic) else value)
        if value is not None and plain is None:
            raise ValueError(f"{where}: {key} must be a whole number of pixels; got {value!r:.80}")
        if value is not None and not isinstance(value, Integral):
            changed[key] = plain
    return {**record, **changed} if changed else record


def _plain(
    annotation: Mapping[str, Any], record: Record, where: str, flaws: Flaws
) -> Annotation | None:
    """An annotation with its class id as an int; None for one that detectron2 leaves out."""
    if not isinstance(annotation, Mapping):
        raise ValueError(f"{where} is {annotation!r:.80}, not a dict")
    plain = dict(annotation)
    if "iscrowd" in plain:
        plain["iscrowd"] = is_crowd(plain, where, flaws)
    category = plain.get("category_id")
    if isinstance(category, Real) and not isinstance(category, bool):
        number = float(category)
        if math.isfinite(number) and number == int(number):
            plain["category_id"] = int(number)
    mode = plain.get("bbox_mode")
    if mode not in (*BoxMode,):
        raise ValueError(f"{where} needs a bbox_mode, as BoxMode.XYXY_ABS; got {mode!r:.80}")
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return plain
    try:
        # Text would only fail in the mapper.
        given = [float(x + 0) for x in plain["bbox"]]
        edges = corners(plain)
    except (KeyError, TypeError, ValueError):
        given = edges = []
    if len(given) != 4 or not all(map(math.isfinite, given)):
        raise ValueError(f"{where} needs a bbox of four numbers; got {plain.get('bbox')!r:.200}")
    shown = f"{BoxMode(plain['bbox_mode']).name} {given}"
    if edges[2] < edges[0] or edges[3] < edges[1]:
        raise ValueError(f"{where}: its box has a negative width or height; got {shown}")
    if edges[2] == edges[0] or edges[3] == edges[1]:
        flaws.note("boxes without area are left out", f"{where}, {shown}")
        return None
    width, height = (whole_number(record.get(key)) for key in ("width", "height"))
    size = None if width is None or height is None else (width, height)
    flaws.check_box(where, shown, given, edges, size)
    return plain
