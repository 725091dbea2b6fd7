"""The fields of a COCO annotation in plain form, whatever spelling they come in."""

import math
from collections.abc import Mapping
from typing import Any

from .flaws import Flaws

__all__ = ["Id", "box_of", "is_crowd", "is_number", "is_text", "plain_id", "segmentation_of"]

Id = int | str
# Above it an int is no float.
_MAX_INT = 2**1023


def plain_id(value: Any) -> Id | None:
    """An id as it is compared: 1 for 1.0 and "1"; None for what is no id.

    Example:
        >>> [plain_id(x) for x in (7, 7.0, "7", "007", 7.5, None, True)]
        [7, 7, 7, '007', None, None, None]
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        is_number = value.isascii() and value.isdigit() and str(int(value[:20])) == value
        return int(value) if is_number else value
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def is_text(value: Any) -> bool:
    """Whether a value is a name that can be written to a file.

    Example:
        >>> [is_text(x) for x in ("disc", " ", "", 7, chr(0xD800))]
        [True, False, False, False, False]
    """
    if not isinstance(value, str) or not value.strip():
        return False
    return value.encode(errors="ignore").decode() == value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    if type(value) is int:
        return abs(value) < _MAX_INT
    return type(value) is float and math.isfinite(value)


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_rle(given: Mapping[str, Any], image: Mapping[str, Any]) -> bool:
    """Whether the runs of a mask fill the image; pycocotools writes beyond its mask otherwise."""
    size, counts = given["size"], given["counts"]
    if not isinstance(size, list) or [type(x) for x in size] != [int, int] or min(size) < 1:
        return False
    if "width" in image and size != [image["height"], image["width"]]:
        return False
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(x) is int and x >= 0 for x in runs):
        return False
    return sum(runs) == size[0] * size[1]


def _runs(text: str) -> list[int] | None:
    """The run lengths of a compressed RLE, as ``rleFrString`` of pycocotools; None if malformed.

    Example:
        >>> _runs("52203"), _runs("5{")
        ([5, 2, 2, 2, 5], None)
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue  # more of this number follows
        if bits & 16:
            value -= 1 << shift
        # From the third on differences to the last run of the same value.
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return None if shift else runs


def box_of(
    annotation: Mapping[str, Any], image: Mapping[str, Any], where: str, flaws: Flaws
) -> list[float] | None:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"{where} needs a bbox of four numbers; got {box!r:.200}")
    x, y, width, height = box
    if width < 0 or height < 0:
        raise ValueError(f"{where}: bbox is [x, y, width, height], both above 0; got {box}")
    if not (width and height):
        flaws.note("boxes without area are left out", f"{where}, {box}")
        return None
    size = (image["width"], image["height"]) if "width" in image else None
    shown = f"[x, y, width, height] {box}"
    flaws.check_box(where, shown, box, [x, y, x + width, y + height], size)
    return box


def is_crowd(annotation: Mapping[str, Any], where: str, flaws: Flaws) -> int:
    """0 or 1, whatever it is given as."""
    given = annotation.get("iscrowd", 0)
    if given in (0, 1):
        return int(given)
    crowd = int(given in ("1", "true", "True"))
    flaws.note(f"iscrowd of {given!r:.40} is read as {crowd}", where)
    return crowd


def segmentation_of(given: Any, image: Mapping[str, Any], where: str, flaws: Flaws) -> Any:
    """What detectron2 takes; [] where nothing is given, None where it leaves the object out."""
    if not given:
        return [] if given is None else given
    if isinstance(given, dict) and {"counts", "size"} <= given.keys():
        if _is_rle(given, image):
            return given
        flaws.note("segmentations that are no RLE of the size of their image are left out", where)
        return []
    if not isinstance(given, list) or not all(map(_is_polygon, given)):
        flaws.note("segmentations that are neither polygons nor RLE are left out", where)
        return []
    if any(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in given):
        return given
    flaws.note("objects whose polygons all have under three points are left out", where)
    return None
