"""Files of detections scored against the files of a VOC devkit."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ..data.formats.image_set import read_image_set
from ..data.formats.voc_set import read_voc_annotations
from ..data.formats.voc_xml import VOCAnnotation, VOCObject, class_ids_of
from .average_precision import IOU_THRESHOLDS, GroundTruth, evaluate_detections
from .detections import load_detections
from .results import VOCResult

__all__ = ["evaluate_files", "load_ground_truth"]


def evaluate_files(
    voc_root: str | os.PathLike,
    split: str,
    detections: str | os.PathLike,
    metric: str,
    *,
    class_names: Sequence[str] = CLASS_NAMES,
    rounding: bool = False,
    absent_classes: str = "skip",
    bad_annotations: str = "error",
) -> VOCResult:
    """Score detections in files against a VOC devkit folder; images are not needed.

    Args:
        voc_root: holds Annotations/ and ImageSets/Main/
        split: an image set, e.g. "test"
        detections: a folder of ``comp4_det_<split>_<class>.txt`` or a json file in COCO's results
            format, see :func:`load_detections`
        metric: "07" or "area"
        class_names: C names; in json, category_id is the index into them
        rounding: round what json holds to 3 decimals of score and 1 of coordinates, as
            detectron2's evaluator does
        absent_classes: "skip" or "zero", see :class:`VOCEvaluator`
        bad_annotations: "error" refuses flawed boxes and images; "skip" leaves them out

    Returns:
        the result of every class at every threshold

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong
    """
    annotations, image_ids, ground_truth = _read(voc_root, split, class_names, bad_annotations)
    sizes = [annotations[i].size if i in annotations else None for i in image_ids]
    found = load_detections(detections, split, image_ids, class_names, rounding, sizes)
    classes = evaluate_detections(found, ground_truth, len(class_names), metric)
    return VOCResult(class_names, IOU_THRESHOLDS, metric, classes, absent_classes)


def load_ground_truth(
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    bad_annotations: str = "error",
) -> tuple[list[str], GroundTruth]:
    """Read the annotated boxes of a split; objects of other classes are left out, with a warning.

    Returns:
        image ids in the order of the image set, those that are left out too, and the boxes with
        indices into them

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong, or there is no object that counts
    """
    return _read(root, split, class_names, bad_annotations)[1:]


def _read(
    root: str | os.PathLike, split: str, class_names: Sequence[str], bad_annotations: str
) -> tuple[dict[str, VOCAnnotation], list[str], GroundTruth]:
    """The annotations, and what :func:`load_ground_truth` returns of them."""
    class_ids = class_ids_of(class_names)
    annotations = read_voc_annotations(
        root, split, class_names, other_classes="ignore", bad_annotations=bad_annotations
    )
    image_ids = read_image_set(root, split)
    objects = [(i, o) for i, id_ in enumerate(image_ids) for o in _objects(annotations, id_)]
    if not objects:
        raise ValueError(
            f"image set {split!r} of {os.fspath(root)} has no object to score against, in "
            f"{len(image_ids)} files; <annotation><object> is read"
        )
    if all(obj.difficult for _, obj in objects):
        raise ValueError(
            f"image set {split!r} of {os.fspath(root)} has {len(objects)} objects, and all are "
            "difficult, which do not count: its AP would be nan"
        )
    ground_truth = GroundTruth(
        images=np.array([i for i, _ in objects], dtype=np.int64),
        classes=np.array([class_ids[obj.name] for _, obj in objects], dtype=np.int64),
        boxes=np.array([obj.box for _, obj in objects], dtype=np.float64).reshape(-1, 4),
        difficult=np.array([obj.difficult for _, obj in objects], dtype=bool),
    )
    return annotations, image_ids, ground_truth


def _objects(annotations: Mapping[str, VOCAnnotation], image_id: str) -> list[VOCObject]:
    return annotations[image_id].objects if image_id in annotations else []
