"""One annotation of a dataset dict: its box in either mode, and what an added one looks like."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode

__all__ = ["Annotation", "Record", "corners", "image_id_of", "in_mode", "make_spurious"]

Annotation = dict[str, Any]
Record = dict[str, Any]


def corners(annotation: Mapping[str, Any]) -> list[float]:
    """Return (x0, y0, x1, y1) in pixels, 0-based edges.

    Raises:
        ValueError: the box mode is neither XYXY_ABS nor XYWH_ABS
    """
    return in_mode([float(x) for x in annotation["bbox"]], annotation["bbox_mode"], to_corners=True)


def in_mode(box: Sequence[float], mode: BoxMode, to_corners: bool = False) -> list[float]:
    """Turn corners into a box of the given mode, or such a box into corners.

    Args:
        box: four numbers in pixels, corners unless ``to_corners``
        mode: XYXY_ABS or XYWH_ABS
        to_corners: whether the box is in ``mode`` and its corners are wanted

    Raises:
        ValueError: any other mode
    """
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise ValueError(f"box noise supports the box modes XYXY_ABS and XYWH_ABS; got {mode!r}")
    x, y, a, b = box
    if mode == BoxMode.XYXY_ABS:
        return [x, y, a, b]
    return [x, y, x + a, y + b] if to_corners else [x, y, a - x, b - y]


def make_spurious(sibling: Annotation, category_id: int, bbox: Sequence[float]) -> Annotation:
    """Return an annotation with the fields that the other annotations of its image carry.

    detectron2 needs every annotation of an image to have the same ones.

    Args:
        sibling: any annotation of the image
        category_id: class id
        bbox: in the sibling's box mode, pixels
    """
    added: Annotation = {
        "category_id": category_id,
        "bbox": list(bbox),
        "bbox_mode": sibling["bbox_mode"],
    }
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
    return str(image_id) if isinstance(image_id, str) else int(image_id)
