"""Detections from the text files of a VOC devkit, or from COCO's results format."""

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.formats.coco_content import json_object
from ..data.formats.coco_fields import plain_id
from ..data.formats.flaws import Flaws
from .average_precision import Array, Detections
from .detection_flaws import Sizes, check_boxes

__all__ = ["load_detections", "to_voc_pixels"]

logger = logging.getLogger(__name__)

# Beyond any class list, within an int64.
_MAX_CLASS = 2**31
# A box without width has xmax = xmin - 1 in VOC's pixels, and text files round to one decimal.
_INVERTED = -1.2


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
    sizes: Sizes = (),
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
        sizes: (width, height) of each image in pixels, None where unknown; none to compare none

    Raises:
        FileNotFoundError: there is no such file
        ValueError: a line or an entry is wrong, or names another image or class; all boxes are
            fractions of the image
    """
    path = Path(path)
    index = {image_id: i for i, image_id in enumerate(image_ids)}
    if not path.is_dir() and not path.is_file():
        raise FileNotFoundError(f"there is no folder or json file of detections {path}")
    flaws = Flaws(str(path))
    if path.is_dir():
        found, given = _load_folder(path, split, index, class_names)
    else:
        found, given = _load_json(path, index, class_names, rounding, flaws)
    if len(found.boxes):
        check_boxes(found, given, image_ids, sizes, flaws)
    else:
        flaws.note("no detection in the files, so that every AP is 0", "")
    flaws.settle()
    return found


def _load_folder(
    folder: Path, split: str, index: Mapping[str, int], class_names: Sequence[str]
) -> tuple[Detections, Array]:
    """The detections, and the numbers of their boxes as given."""
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
    return Detections(images, classes, scores, boxes), boxes


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
        if min(row[3] - row[1], row[4] - row[2]) < _INVERTED:
            raise ValueError(
                f"{file}, line {number}: needs 'image_id score xmin ymin xmax ymax' with xmin <= "
                f"xmax and ymin <= ymax; got {line!r}"
            )
        image = index.get(image_id.strip())
        if image is None:
            raise ValueError(f"{file}, line {number}: {_not_there(image_id, index)}")
        yield [image, *row]


def _not_there(image_id: Any, index: Mapping[str, int]) -> str:
    listed = ", ".join([*map(repr, islice(index, 3)), *(["..."] if len(index) > 3 else [])])
    return f"image {image_id!r:.200} is not in the image set, which has {listed}"


def _load_json(
    path: Path,
    index: Mapping[str, int],
    class_names: Sequence[str],
    rounding: bool,
    flaws: Flaws,
) -> tuple[Detections, Array]:
    """The detections, and the numbers of their boxes as given."""
    try:
        entries = json.loads(path.read_bytes(), object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not json: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of detections; got a {type(entries).__name__}")
    numbers = _numbers(index)
    rows = [_parse_entry(e, f"{path}[{i}]", index, numbers) for i, e in enumerate(entries)]
    images, classes, scores, boxes = _columns(rows)
    last = len(class_names) - 1
    for wrong, what in (
        ((classes < 0) | (classes > last), "category_id {} is not in 0..{}, places of classes"),
        (~np.isfinite(scores + boxes.sum(axis=1)), "score and bbox must be finite"),
        ((boxes[:, 2:] < 0).any(axis=1), "width and height must not be negative"),
    ):
        for i in np.flatnonzero(wrong)[:1]:
            raise ValueError(f"{path}[{i}]: {what.format(classes[i], last)}; got {entries[i]}")
    if len(classes) and classes.min() > 0:
        text = f"no detection has the category_id 0, {class_names[0]!r}; it is the 0-based index "
        flaws.note(text + "into the class list", "")
    given = boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    return Detections(images, classes, *to_voc_pixels(scores, boxes, rounding)), given


def _numbers(index: Mapping[str, int]) -> dict[int, int]:
    """{number: image} where a number says which image, as converters of VOC to COCO make them.

    Example:
        >>> _numbers({"000012": 0, "2008_000013": 1, "7": 2, "07": 3})
        {12: 0, 2008000013: 1}
    """
    plain = {i.replace("_", ""): k for i, k in index.items()}
    numbers = [(int(i), k) for i, k in plain.items() if i.isascii() and i.isdigit()]
    counts = Counter(number for number, _ in numbers)
    return {number: k for number, k in numbers if counts[number] == 1}


def _parse_entry(
    entry: Any, where: str, index: Mapping[str, int], numbers: Mapping[int, int]
) -> list[float]:
    """Image index, class, score, x, y, width and height."""
    try:
        image_id, class_id = entry["image_id"], entry["category_id"]
        if isinstance(entry["bbox"], str):
            raise ValueError("four digits are no box")
        x, y, width, height = entry["bbox"]
        row = [float(v) for v in (entry["score"], x, y, width, height)]
        image = index.get(image_id, numbers.get(image_id))
        number = plain_id(class_id)
        if image is not None and isinstance(number, int) and abs(number) < _MAX_CLASS:
            return [image, number, *row]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{where}: needs image_id, category_id, bbox [x, y, width, height] and score; "
            f"got {entry!r}"
        ) from None
    if image is None:
        raise ValueError(f"{where}: {_not_there(image_id, index)}")
    raise ValueError(f"{where}: category_id must be the index of a class; got {class_id!r}")
