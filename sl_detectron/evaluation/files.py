"""Ground truth and detections from the files of a VOC devkit, or from COCO's results format."""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ..data.formats.voc_set import read_image_set, read_voc_annotations
from ..data.formats.voc_xml import VOCAnnotation, VOCObject, class_ids_of
from .average_precision import IOU_THRESHOLDS, Array, Detections, GroundTruth, evaluate_detections
from .results import VOCResult

__all__ = ["evaluate_files", "load_detections", "load_ground_truth", "to_voc_pixels"]

logger = logging.getLogger(__name__)

# Beyond any class list, within an int64.
_MAX_CLASS = 2**31


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
    image_ids, ground_truth = load_ground_truth(voc_root, split, class_names, bad_annotations)
    found = load_detections(detections, split, image_ids, class_names, rounding)
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
    return image_ids, ground_truth


def _objects(annotations: Mapping[str, VOCAnnotation], image_id: str) -> list[VOCObject]:
    return annotations[image_id].objects if image_id in annotations else []


def to_voc_pixels(scores: Array, boxes: Array, rounding: bool) -> tuple[Array, Array]:
    """Turn detectron2's boxes into VOC's, exactly or as its text files would hold them.

    Args:
        scores: (N,)
        boxes: (N, 4) XYXY in pixels, 0-based
        rounding: whether scores keep 3 decimals and coordinates 1

    Returns:
        both as float64, the boxes in 1-based inclusive pixels
    """
    # detectron2 adds 1 in float32, which is coarser than the text's one decimal on huge images.
    boxes = boxes.astype(np.float32 if rounding else np.float64)
    boxes[:, :2] += 1
    scores, boxes = scores.astype(np.float64), boxes.astype(np.float64)
    if rounding:
        # A float32 times 1000 is exact in float64, so ties fall to even as in "%.3f".
        scores, boxes = np.rint(scores * 1000) / 1000, np.rint(boxes * 10) / 10
    return scores, boxes


def load_detections(
    path: str | os.PathLike,
    split: str,
    image_ids: Sequence[str],
    class_names: Sequence[str],
    rounding: bool = False,
) -> Detections:
    """Read detections from comp4 text files or from a json file of COCO's results format.

    Args:
        path: a folder with ``comp4_det_<split>_<class>.txt``, or a json file with a list of
            ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, where
            category_id is the index of the class, 0-based, and the box is 0-based
        split: the image set in the files' names
        image_ids: of the image set
        class_names: C names
        rounding: round what json holds as the text files would

    Raises:
        FileNotFoundError: there is no such file
        ValueError: a line or an entry is wrong, or names another image or class
    """
    path = Path(path)
    index = {image_id: i for i, image_id in enumerate(image_ids)}
    if path.is_dir():
        return _load_folder(path, split, index, class_names)
    if not path.is_file():
        raise FileNotFoundError(f"there is no folder or json file of detections {path}")
    return _load_json(path, index, len(class_names), rounding)


def _load_folder(
    folder: Path, split: str, index: Mapping[str, int], class_names: Sequence[str]
) -> Detections:
    files = [folder / f"comp4_det_{split}_{name}.txt" for name in class_names]
    missing = [file.name for file in files if not file.is_file()]
    if len(missing) == len(files):
        have = ", ".join(sorted(p.name for p in folder.glob("*.txt"))[:5]) or "no text file"
        raise FileNotFoundError(f"{folder} holds no {files[0].name} or the like; it has {have}")
    if missing:
        logger.warning("No detections are counted for: %s", ", ".join(missing))
    rows = [
        (image, class_id, *numbers)
        for class_id, file in enumerate(files)
        if file.is_file()
        for image, *numbers in _read_lines(file, index)
    ]
    images, classes, scores, boxes = _columns(rows)
    return Detections(images, classes, scores, boxes)


def _columns(rows: Sequence[Sequence[float]]) -> tuple[Array, Array, Array, Array]:
    """(N,) images, (N,) classes, (N,) scores and (N, 4) boxes of rows of these seven numbers."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    images, classes = table[:, :2].T.astype(np.int64)
    return images, classes, table[:, 2], table[:, 3:]


def _read_lines(file: Path, index: Mapping[str, int]) -> Iterator[list[float]]:
    """Yield image index, score, xmin, ymin, xmax and ymax of every line."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        # Split from the right: an image id may hold spaces.
        image_id, *numbers = line.rsplit(maxsplit=5)
        try:
            row = [float(x) for x in numbers]
        except ValueError:
            row = []
        # A sum is finite only if its terms are; asking numpy about each line takes longer.
        if len(row) != 5 or not math.isfinite(sum(row)):
            raise ValueError(
                f"{file}, line {number}: needs 'image_id score xmin ymin xmax ymax'; got {line!r}"
            )
        image = index.get(image_id.strip())
        if image is None:
            raise ValueError(f"{file}, line {number}: image {image_id!r} is not in the image set")
        yield [image, *row]


def _load_json(
    path: Path, index: Mapping[str, int], num_classes: int, rounding: bool
) -> Detections:
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not json: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of detections; got a {type(entries).__name__}")
    # Converters of VOC to COCO turn "000012" into 12 and "2008_000012" into 2008000012.
    numbers = {int(i.replace("_", "")): k for i, k in index.items() if i.replace("_", "").isdigit()}
    rows = [_parse_entry(e, f"{path}[{i}]", index, numbers) for i, e in enumerate(entries)]
    images, classes, scores, boxes = _columns(rows)
    for i in np.flatnonzero((classes < 0) | (classes >= num_classes))[:1]:
        raise ValueError(f"{path}[{i}]: category_id {classes[i]} is not in 0..{num_classes - 1}")
    for i in np.flatnonzero(~np.isfinite(scores) | ~np.isfinite(boxes).all(axis=1))[:1]:
        raise ValueError(f"{path}[{i}]: score and bbox must be finite; got {entries[i]}")
    for i in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))[:1]:
        raise ValueError(f"{path}[{i}]: width and height must not be negative; got {entries[i]}")
    boxes[:, 2:] += boxes[:, :2]
    return Detections(images, classes, *to_voc_pixels(scores, boxes, rounding))


def _parse_entry(
    entry: Any, where: str, index: Mapping[str, int], numbers: Mapping[int, int]
) -> list[float]:
    """Image index, class, score, x, y, width and height."""
    try:
        image_id, class_id = entry["image_id"], entry["category_id"]
        x, y, width, height = entry["bbox"]
        row = [float(v) for v in (entry["score"], x, y, width, height)]
        image = index.get(image_id, numbers.get(image_id))
        if image is not None and isinstance(class_id, int) and abs(class_id) < _MAX_CLASS:
            return [image, class_id, *row]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{where}: needs image_id, category_id, bbox [x, y, width, height] and score; "
            f"got {entry!r}"
        ) from None
    if image is None:
        raise ValueError(f"{where}: image {image_id!r} is not in the image set")
    raise ValueError(f"{where}: category_id must be the index of a class; got {class_id!r}")
