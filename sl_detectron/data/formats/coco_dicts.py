"""An annotation of a COCO json in plain form as one of a dataset dict, as detectron2 makes it."""

from collections.abc import Mapping
from typing import Any

from detectron2.structures import BoxMode

from .annotations import Annotation
from .coco_fields import Id

__all__ = ["dataset_dict_of"]


def dataset_dict_of(annotation: Mapping[str, Any], class_ids: Mapping[Id, int]) -> Annotation:
    """What ``load_coco_json`` makes of an annotation in plain form.

    Args:
        annotation: as :meth:`~.coco_json.CocoFile.plain` has it
        class_ids: {plain category id: class id}
    """
    made: Annotation = {"iscrowd": annotation["iscrowd"], "bbox": annotation["bbox"]}
    if "keypoints" in annotation:
        made["keypoints"] = _keypoints(annotation["keypoints"])
    made["category_id"] = class_ids[annotation["category_id"]]
    shape = annotation.get("segmentation")
    if shape:
        made["segmentation"] = _segmentation(shape)
    made["bbox_mode"] = BoxMode.XYWH_ABS
    return made


def _keypoints(values: Any) -> Any:
    """Indices of pixels become places in the image: x and y move by half a pixel."""
    return values and [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(values)]


def _segmentation(shape: Any) -> Any:
    """An RLE in compressed form, or the polygons that have at least three points."""
    if isinstance(shape, list):
        return [polygon for polygon in shape if len(polygon) % 2 == 0 and len(polygon) >= 6]
    if not isinstance(shape["counts"], list):
        return shape
    from pycocotools import mask  # few sets need it

    return mask.frPyObjects(shape, *shape["size"])
