"""One annotation of a dataset dict: its box in either mode, and what an added one looks like."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from detectron2.structures import BoxMode

__all__ = ["Annotation", "Record", "corners", "from_corners", "image_id_of", "make_spurious"]

Annotation = dict[str, Any]
Record = dict[str, Any]


def corners(annotation: Mapping[str, Any]) -> list[float]:
    """(x0, y0, x1, y1) in pixels, 0-based edges; ValueError for modes but XYXY_ABS and XYWH_ABS."""
    # Not BoxMode.convert: it goes through float32, and a file holds more digits.
    is_xywh = _is_xywh(annotation["bbox_mode"])
    x, y, a, b = map(float, annotation["bbox"])
    return [x, y, x + a, y + b] if is_xywh else [x, y, a, b]


def from_corners(box: Sequence[float], mode: BoxMode) -> list[float]:
    """Inverse of :func:`corners`, for a box (x0, y0, x1, y1) in pixels."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0] if _is_xywh(mode) else [x0, y0, x1, y1]


def _is_xywh(mode: BoxMode) -> bool:
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise ValueError(f"box noise supports the box modes XYXY_ABS and XYWH_ABS; got {mode!r}")
    return mode == BoxMode.XYWH_ABS


def make_spurious(sibling: Annotation, category_id: int, bbox: Sequence[float]) -> Annotation:
    """Return an annotation with the fields that the other annotations of its image carry.

    detectron2 needs every annotation of an image to have the same ones.

    Args:
        sibling: any annotation of the image
        category_id: class id
        bbox: in the sibling's box mode, pixels
    """
    mode = sibling["bbox_mode"]
    added: Annotation = {"category_id": category_id, "bbox": list(bbox), "bbox_mode": mode}
    added |= {key: 0 for key in ("iscrowd", "difficult") if key in sibling}
    if "segmentation" in sibling:
        x1, y1, x2, y2 = corners(added)
        added["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if "keypoints" in sibling:
        added["keypoints"] = [0] * len(sibling["keypoints"])
    return added


def image_id_of(record: Mapping[str, Any]) -> str | int:
    """Return the image id as JSON can hold it: numpy's strings and numbers cannot go there."""
    image_id = record["image_id"]
    return int(image_id) if isinstance(image_id, Integral) else str(image_id)
