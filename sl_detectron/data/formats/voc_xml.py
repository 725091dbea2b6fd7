"""The annotations and image sets of a Pascal VOC folder, for training and evaluation alike."""

import difflib
import logging
import math
import operator
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

__all__ = [
    "CORNERS",
    "OTHER_CLASSES",
    "VOCAnnotation",
    "VOCObject",
    "check_other_classes",
    "class_ids_of",
    "one_based",
    "parse_voc_xml",
    "read_image_set",
    "read_voc_annotations",
    "zero_based",
]

# What an object whose class is not in the list does.
OTHER_CLASSES = ("error", "ignore")
CORNERS = ("xmin", "ymin", "xmax", "ymax")

logger = logging.getLogger(__name__)


class VOCObject(NamedTuple):
    """One object; its box (xmin, ymin, xmax, ymax) in pixels as in the file: 1-based, inclusive."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VOCAnnotation(NamedTuple):
    """One file: (width, height) of the image in pixels, None if not given, and the objects."""

    path: str
    size: tuple[int, int] | None
    objects: list[VOCObject]


def parse_voc_xml(path: str | os.PathLike, one_pixel_boxes: bool = False) -> VOCAnnotation:
    """Read a VOC annotation; pose, truncated and difficult may be absent, coordinates fractional.

    Args:
        path: of the XML file
        one_pixel_boxes: accept xmin = xmax and ymin = ymax, a single pixel as VOC counts

    Raises:
        FileNotFoundError: there is no such file
        ValueError: the file is not XML, or an object lacks a name or a box with
            xmin < xmax and ymin < ymax
    """
    path = os.fspath(path)
    data = Path(path).read_bytes()
    # Nested entities expand to gigabytes and external ones read other files; an annotation needs
    # neither. Where ASCII letters are other bytes, as in UTF-16, the declaration is not found.
    if b"<!ENTITY" in data or b"\0" in data or not _extends_ascii(data):
        raise ValueError(f"{path}: entity declarations and UTF-16 are not accepted; save as UTF-8")
    try:
        root = ET.XML(data)
    except (ET.ParseError, LookupError, ValueError) as error:
        line, column = getattr(error, "position", (1, 0))
        raise ValueError(f"{path}, line {line}, column {column}: not XML: {error}") from error
    objects = [
        _parse_object(obj, f"{path}: object {i}", one_pixel_boxes)
        for i, obj in enumerate(root.findall("object"))
    ]
    return VOCAnnotation(path, _parse_size(root, path), objects)


def zero_based(box: Sequence[float]) -> list[float]:
    """Turn VOC's corners, 1-based and inclusive pixels, into the 0-based edges around them."""
    return [box[0] - 1.0, box[1] - 1.0, box[2], box[3]]


def one_based(box: Sequence[float]) -> list[float]:
    """Inverse of :func:`zero_based`."""
    return [box[0] + 1, box[1] + 1, box[2], box[3]]


def read_voc_annotations(
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    other_classes: str = "error",
    one_pixel_boxes: bool = False,
) -> dict[str, VOCAnnotation]:
    """Read the annotations of a split from disk, without any cache.

    Args:
        root: holds Annotations/ and ImageSets/Main/
        split: an image set
        class_names: of the objects to read
        other_classes: whether an object of another class is an "error", or left out with a warning
            that counts them: "ignore"
        one_pixel_boxes: see :func:`parse_voc_xml`

    Returns:
        {image id: annotation} in the order of the image set

    Raises:
        FileNotFoundError: a folder, the image set or an annotation is missing
        ValueError: the image set or an annotation is wrong
    """
    check_other_classes(other_classes)
    folder = os.path.join(root, "Annotations")
    known = class_ids_of(class_names)
    annotations = {}
    ignored: Counter[str] = Counter()
    for image_id in read_image_set(root, split):
        try:
            annotation = parse_voc_xml(os.path.join(folder, f"{image_id}.xml"), one_pixel_boxes)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"image {image_id!r} of image set {split!r} has no annotation {error.filename}"
            ) from None
        others = [obj.name for obj in annotation.objects if obj.name not in known]
        if others and other_classes == "error":
            raise ValueError(f"{annotation.path}: {_unknown_class(others[0], class_names)}")
        ignored.update(others)
        kept = [obj for obj in annotation.objects if obj.name in known]
        annotations[image_id] = annotation._replace(objects=kept)
    if ignored:
        counts = ", ".join(f"{name} ({count})" for name, count in sorted(ignored.items()))
        logger.warning("Objects of classes outside the class list are ignored: %s", counts)
    return annotations


def read_image_set(root: str | os.PathLike, split: str) -> list[str]:
    """Read the image ids of ``ImageSets/Main/<split>.txt``, one per line.

    Raises:
        FileNotFoundError: the folder or the image set is missing
        ValueError: the set is empty or elsewhere, or an id repeats or is no path in the folder
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"there is no VOC folder {os.fspath(root)}; for detectron2's own sets, set the "
            "environment variable DETECTRON2_DATASETS to the folder that holds VOC2007 and VOC2012"
        )
    if os.path.isabs(split) or ".." in PurePath(split).parts:
        raise ValueError(f"image set {split!r} leads out of {os.fspath(root)}")
    path = Path(root, "ImageSets", "Main", f"{split}.txt")
    if not path.is_file():
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem))
        raise FileNotFoundError(f"there is no image set {path}; the folder has: {have or 'none'}")
    # Windows editors put a byte order mark before the first id.
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{path} holds no image id")
    image_id, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path} names image {image_id!r} {count} times")
    for image_id in ids:
        if os.path.isabs(image_id) or ".." in PurePath(image_id).parts:
            raise ValueError(f"{path}: image id {image_id!r} leads out of the set's folder")
        # "./a" finds the files of "a", but detections of "a" would not be its detections.
        if image_id != str(PurePath(image_id)):
            raise ValueError(f"{path}: write image id {image_id!r} as {str(PurePath(image_id))!r}")
    return ids


def check_other_classes(value: str) -> None:
    """Raise ValueError if a value is not one of ``OTHER_CLASSES``."""
    if value not in OTHER_CLASSES:
        raise ValueError(f"other_classes must be one of {OTHER_CLASSES}; got {value!r}")


def class_ids_of(class_names: Sequence[str]) -> dict[str, int]:
    """Return {name: id} of K names in the order of the class ids.

    Raises:
        ValueError: there is no name, or one is empty or repeats
    """
    class_ids = {name: i for i, name in enumerate(class_names)}
    repeats = len(class_ids) < len(class_names)
    if isinstance(class_names, str) or not class_ids or repeats or "" in class_ids:
        raise ValueError(f"class names must be a list of different names; got {class_names!r}")
    return class_ids


def _extends_ascii(data: bytes) -> bool:
    """Whether an XML file's declared encoding, if any, writes ASCII letters as ASCII does."""
    declared = re.match(rb"""[^<]*<\?xml[^>]*encoding\s*=\s*["']([\w.-]*)""", data)
    try:
        return declared is None or "<!ENTITY".encode(declared[1].decode()) == b"<!ENTITY"
    except (LookupError, UnicodeError):
        return True  # not text, or unknown: the parser will say so


def _parse_object(obj: ET.Element, where: str, one_pixel_boxes: bool) -> VOCObject:
    name = (obj.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{where} has no <name>")
    corners = obj.find("bndbox")
    if corners is None:
        raise ValueError(f"{where} ({name}) has no <bndbox>")
    texts = {key: corners.findtext(key) for key in CORNERS}
    difficult = obj.findtext("difficult") or "0"
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts.values())
        is_difficult = int(difficult) != 0
    except ValueError:
        texts["difficult"] = difficult
        given = ", ".join(f"{key}={text!r}" for key, text in texts.items())
        raise ValueError(f"{where} ({name}) needs numbers; got {given}") from None
    finite = all(map(math.isfinite, (xmin, ymin, xmax, ymax)))
    in_order, sign = (operator.le, "<=") if one_pixel_boxes else (operator.lt, "<")
    if not (finite and in_order(xmin, xmax) and in_order(ymin, ymax)):
        raise ValueError(
            f"{where} ({name}) needs xmin {sign} xmax and ymin {sign} ymax; got "
            f"xmin={xmin:g}, ymin={ymin:g}, xmax={xmax:g}, ymax={ymax:g}"
        )
    return VOCObject(name, (xmin, ymin, xmax, ymax), is_difficult)


def _parse_size(root: ET.Element, path: str) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    texts = size.findtext("width"), size.findtext("height")
    try:
        width, height = (int(float(text or "")) for text in texts)
    except (ValueError, OverflowError):
        width = height = 0
    if width < 1 or height < 1:
        raise ValueError(
            f"{path}: <size> needs a width and a height of at least 1 pixel; "
            f"got {texts[0]!r} and {texts[1]!r}"
        )
    return width, height


def _unknown_class(name: str, class_names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
    hint = f"nearest are {', '.join(near)}" if near else f"the list is {', '.join(class_names)}"
    return f"class {name!r} is not in the class list; {hint}"
