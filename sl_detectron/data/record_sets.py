"""Datasets that a program registers as a list of records: checked as files are."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from detectron2.structures import BoxMode

from .formats.annotations import Annotation, Record, corners
from .formats.flaws import Flaws, whole_number
from .images import image_name

__all__ = ["checked_records"]


def checked_records(name: str, records: Sequence[Record], flaws: Flaws) -> list[Record]:
    """Records with class ids as ints and without what cannot be used.

    Args:
        name: of the set
        records: detectron2 dataset dicts, never changed; boxes in modes other than XYXY_ABS and
            XYWH_ABS are not looked at
        flaws: takes what is found

    Returns:
        records that equal the given ones where nothing is wrong
    """
    checked = []
    for record in records:
        where = f"dataset {name!r}, image {image_name(record)!r:.80}"
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


def _plain(
    annotation: Mapping[str, Any], record: Record, where: str, flaws: Flaws
) -> Annotation | None:
    """An annotation with its class id as an int; None for one that detectron2 leaves out."""
    plain = dict(annotation)
    category = plain.get("category_id")
    if isinstance(category, Real) and not isinstance(category, bool):
        number = float(category)
        if math.isfinite(number) and number == int(number):
            plain["category_id"] = int(number)
    if plain.get("bbox_mode") not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return plain
    try:
        given = [float(x) for x in plain["bbox"]]
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
