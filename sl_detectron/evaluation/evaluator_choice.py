"""Which evaluator a test set gets: VOC's metrics or COCO's, by the form of the set."""

import json
import os
import tempfile
from collections import Counter
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..data.datasets import load_dataset, read_coco
from ..data.registered_sets import is_coco_set
from .average_precision import check_choice
from .coco_by_class import COCOEvaluatorByClass
from .evaluator import VOCEvaluator
from .results import ABSENT_CLASSES

__all__ = ["build_evaluator", "check_evaluator"]

EVALUATORS = ("voc", "coco")


def build_evaluator(
    dataset_name: str,
    kind: str = "voc",
    output_dir: str | os.PathLike | None = None,
    absent_classes: str = "skip",
    bad_annotations: str = "error",
) -> DatasetEvaluator:
    """Build the evaluator of a registered dataset.

    One registered from a COCO json is always evaluated COCO style, and so is one of records alone
    that has a class list, as of detectron2's tutorials. On a VOC style dataset, "coco"
    gives COCO's twelve metrics of the same predictions by pycocotools; difficult objects become
    crowd regions, the only objects that COCO neither counts as missed nor as false when found.

    Args:
        dataset_name: in detectron2's catalogs
        kind: "voc" or "coco", the value of ``TEST.EVALUATOR``
        output_dir: where "coco" writes the converted ground truth and the predictions, in the
            subfolder ``inference``
        absent_classes: "skip" or "zero", see :class:`VOCEvaluator`
        bad_annotations: "error" refuses flawed boxes and images; "skip" leaves them out

    Returns:
        a detectron2 evaluator whose results have "bbox" with "AP", "AP50" and "AP75", percent

    Raises:
        ValueError: unknown kind, a dataset that cannot be evaluated, or "coco" without output_dir
    """
    check_evaluator(dataset_name, kind, absent_classes, bad_annotations)
    folder = None if output_dir is None else os.path.join(output_dir, "inference")
    if _is_coco(dataset_name):
        return _evaluator_of_json(dataset_name, folder, bad_annotations)
    if kind == "voc" and _is_voc(dataset_name):
        return VOCEvaluator(
            dataset_name, absent_classes=absent_classes, bad_annotations=bad_annotations
        )
    if folder is None:
        raise ValueError(f"COCO style evaluation of {dataset_name!r} needs an output_dir")
    return _coco_evaluator(dataset_name, folder, bad_annotations)


def check_evaluator(
    dataset_name: str, kind: str, absent_classes: str = "skip", bad_annotations: str = "error"
) -> None:
    """Check before training whether :func:`build_evaluator` can evaluate a test set.

    Raises:
        ValueError: an unknown value, a dataset in LVIS's form, or one that is neither in VOC's form
            nor in COCO's, and has no class list or records that COCO's metrics need more of
    """
    check_choice("TEST.EVALUATOR", kind, EVALUATORS)
    check_choice("TEST.ABSENT_CLASSES", absent_classes, ABSENT_CLASSES)
    if MetadataCatalog.get(dataset_name).get("evaluator_type") == "lvis":
        raise ValueError(
            f"test set {dataset_name!r} is in LVIS's form: COCO's metrics would count objects that "
            "LVIS never looked for as false, and number its classes otherwise. Override "
            "build_evaluator() of the trainer with detectron2's LVISEvaluator, or leave the set "
            "out of DATASETS.TEST"
        )
    if not _is_coco(dataset_name) and not _is_voc(dataset_name):
        _check_records(dataset_name, bad_annotations)


def _check_records(dataset_name: str, bad_annotations: str) -> None:
    """A set that is a list of records alone: read once before training, not first after it."""
    if not MetadataCatalog.get(dataset_name).get("thing_classes"):
        raise ValueError(
            f"test set {dataset_name!r} has no class list and is in no known form, so it cannot be "
            f"evaluated. Set MetadataCatalog.get({dataset_name!r}).thing_classes for COCO's "
            "metrics, register it with register_voc_dataset or register_coco_instances, override "
            "build_evaluator() of the trainer, or leave it out of DATASETS.TEST"
        )
    records = load_dataset(dataset_name, bad_annotations)
    for i, record in enumerate(records):
        needed = ("image_id", "height", "width", "annotations")
        missing = [key for key in needed if key not in record]
        if missing:
            raise ValueError(
                f"test set {dataset_name!r}, record {i} ({record.get('file_name')}): COCO's "
                f"metrics need {missing}"
            )
    (image_id, number), *_ = Counter(r["image_id"] for r in records).most_common(1) or [("", 0)]
    if number > 1:
        raise ValueError(
            f"test set {dataset_name!r}: {number} records have the image_id {image_id!r:.80}; "
            "COCO's metrics would take them for one image"
        )


def _is_voc(dataset_name: str) -> bool:
    metadata = MetadataCatalog.get(dataset_name)
    return all(hasattr(metadata, key) for key in ("thing_classes", "dirname", "split"))


def _is_coco(dataset_name: str) -> bool:
    metadata = MetadataCatalog.get(dataset_name)
    # A VOC set has a json_file too once any COCOEvaluator has seen it; a dirname, COCO has not.
    return hasattr(metadata, "json_file") and not hasattr(metadata, "dirname")


def _evaluator_of_json(
    dataset_name: str, folder: str | None, bad_annotations: str
) -> COCOEvaluatorByClass:
    """COCOEvaluator of the json, or of its plain form where areas, iscrowd or such are missing."""
    if not is_coco_set(dataset_name):
        return COCOEvaluatorByClass(dataset_name, output_dir=folder)
    file = read_coco(dataset_name, bad_annotations)
    if file.is_plain():
        return COCOEvaluatorByClass(dataset_name, output_dir=folder)
    name = f"{dataset_name}_completed"
    metadata = MetadataCatalog.get(dataset_name).as_dict()
    metadata |= {"name": name, "thing_classes": file.class_names}
    metadata["thing_dataset_id_to_contiguous_id"] = file.class_ids
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, file.path.name)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file.plain(), f)
        try:
            MetadataCatalog.get(name).set(**{**metadata, "json_file": path})
            return COCOEvaluatorByClass(name, output_dir=folder)
        finally:
            MetadataCatalog.remove(name)


def _coco_evaluator(dataset_name: str, folder: str, bad_annotations: str) -> COCOEvaluatorByClass:
    # Under a temporary name: COCOEvaluator writes json_file into the metadata and would read that
    # same file in the next run, even after the dataset has changed.
    name = f"{dataset_name}_coco_style"
    DatasetCatalog.register(
        name, lambda: [*map(_difficult_as_crowd, load_dataset(dataset_name, bad_annotations))]
    )
    try:
        MetadataCatalog.get(name).thing_classes = MetadataCatalog.get(dataset_name).thing_classes
        return COCOEvaluatorByClass(
            name, ("bbox",), output_dir=folder, use_fast_impl=False, allow_cached_coco=False
        )
    finally:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def _difficult_as_crowd(record: dict[str, Any]) -> dict[str, Any]:
    annotations = [
        {**a, "iscrowd": a.get("difficult", a.get("iscrowd", 0))} for a in record["annotations"]
    ]
    return {**record, "annotations": annotations}
