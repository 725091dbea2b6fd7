"""The evaluator of a test set, by name."""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from ..data.voc import load_dataset
from .evaluator import VOCEvaluator, check_voc_metadata
from .voc_result import ABSENT_CLASSES

__all__ = ["EVALUATORS", "build_evaluator", "check_evaluator"]

EVALUATORS = ("voc", "coco")


def build_evaluator(
    dataset_name: str,
    kind: str = "voc",
    output_dir: str | os.PathLike | None = None,
    absent_classes: str = "skip",
) -> DatasetEvaluator:
    """Build the evaluator of a registered set.

    A set registered from a COCO json is always evaluated COCO style. On a VOC style set, "coco"
    gives COCO's twelve metrics of the same predictions by pycocotools; difficult objects become
    crowd regions, the only objects that COCO neither counts as missed nor as false when found.

    Args:
        dataset_name: in detectron2's catalogs
        kind: "voc" or "coco", the value of ``TEST.EVALUATOR``
        output_dir: where "coco" writes the converted ground truth and the predictions, in the
            subfolder ``inference``
        absent_classes: "skip" or "zero", see :class:`VOCEvaluator`

    Returns:
        a detectron2 evaluator whose results have "bbox" with "AP", "AP50" and "AP75", percent

    Raises:
        ValueError: unknown kind, a set that is not in VOC's form, or "coco" without output_dir
    """
    check_evaluator(dataset_name, kind, absent_classes)
    folder = None if output_dir is None else os.path.join(output_dir, "inference")
    if _is_coco(dataset_name):
        return COCOEvaluator(dataset_name, output_dir=folder)
    if kind == "voc":
        return VOCEvaluator(dataset_name, absent_classes=absent_classes)
    if folder is None:
        raise ValueError(f"COCO style evaluation of {dataset_name!r} needs an output_dir")
    return _coco_evaluator(dataset_name, folder)


def check_evaluator(dataset_name: str, kind: str, absent_classes: str = "skip") -> None:
    """Find out before a training whether its test set can be evaluated.

    Args:
        dataset_name: in detectron2's catalogs
        kind: the value of ``TEST.EVALUATOR``
        absent_classes: the value of ``TEST.ABSENT_CLASSES``

    Raises:
        ValueError: an unknown value, or a set that is neither in VOC's form nor in COCO's
    """
    if kind not in EVALUATORS:
        raise ValueError(f"TEST.EVALUATOR must be one of {EVALUATORS}; got {kind!r}")
    if absent_classes not in ABSENT_CLASSES:
        raise ValueError(
            f"TEST.ABSENT_CLASSES must be one of {ABSENT_CLASSES}; got {absent_classes!r}"
        )
    if not _is_coco(dataset_name):
        check_voc_metadata(dataset_name)


def _is_coco(dataset_name: str) -> bool:
    metadata = MetadataCatalog.get(dataset_name)
    # A VOC set has a json_file too once any COCOEvaluator has seen it; a dirname, COCO has not.
    return hasattr(metadata, "json_file") and not hasattr(metadata, "dirname")


def _coco_evaluator(dataset_name: str, folder: str) -> COCOEvaluator:
    # Under a name of its own that goes away again: COCOEvaluator writes json_file into the metadata
    # and would read that same file in the next run, even after the set has changed.
    name = f"{dataset_name}_coco_style"
    DatasetCatalog.register(
        name, lambda: [_difficult_as_crowd(r) for r in load_dataset(dataset_name)]
    )
    try:
        MetadataCatalog.get(name).thing_classes = MetadataCatalog.get(dataset_name).thing_classes
        return COCOEvaluator(
            name, ("bbox",), output_dir=folder, use_fast_impl=False, allow_cached_coco=False
        )
    finally:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def _difficult_as_crowd(record: dict[str, Any]) -> dict[str, Any]:
    annotations = [{**a, "iscrowd": a.get("difficult", 0)} for a in record["annotations"]]
    return {**record, "annotations": annotations}
