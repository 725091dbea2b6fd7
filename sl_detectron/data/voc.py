"""Pascal VOC data sets: one reader of their XML, for training and evaluation alike.

A devkit folder holds ``Annotations/ID.xml``, ``ImageSets/Main/SPLIT.txt`` (one ID a line) and
``JPEGImages/ID.jpg``. Boxes in the XML are 1-based inclusive pixel indices; in dataset dicts and
:class:`VOCObject` users they follow detectron2: xmin and ymin less 1.
"""

import difflib
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import pascal_voc
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.structures import BoxMode

__all__ = [
    "VOCObject",
    "check_datasets",
    "load_dataset",
    "load_voc_dataset",
    "read_image_set",
    "read_voc_xml",
    "register_voc_dataset",
    "register_voc_datasets",
    "set_voc_metadata",
]

CORNERS = ("xmin", "ymin", "xmax", "ymax")
ENTRY_KEYS = {"NAME", "ROOT", "SPLIT", "CLASSES"}


class VOCObject(NamedTuple):
    """One object of an annotation file.

    Args:
        name: of its class
        box: (xmin, ymin, xmax, ymax) as in the file, 1-based inclusive pixels
        difficult: not counted by VOC's evaluation; trained on, as detectron2 does
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def read_voc_xml(path: str | os.PathLike) -> tuple[int, int, list[VOCObject]]:
    """Read one annotation file; pose, truncated and difficult may be absent.

    Args:
        path: of the XML file

    Returns:
        height and width in pixels, and the objects in file order

    Raises:
        FileNotFoundError: there is no such file
        ValueError: malformed XML (with its line), a missing field, or an empty box
    """
    root = _parse(path)
    height, width = (_number(root, f"size/{key}", path, "size") for key in ("height", "width"))
    objects = []
    for index, element in enumerate(root.findall("object"), start=1):
        where = f"object {index}"
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{path}: {where} has no name")
        x0, y0, x1, y1 = (_number(element, f"bndbox/{key}", path, where) for key in CORNERS)
        if x1 <= x0 or y1 <= y0:
            raise ValueError(
                f"{path}: {where} ({name}) has an empty box: xmin={x0:g} ymin={y0:g} "
                f"xmax={x1:g} ymax={y1:g}; xmax must be above xmin and ymax above ymin"
            )
        difficult = (element.findtext("difficult") or "0").strip() == "1"
        objects.append(VOCObject(name, (x0, y0, x1, y1), difficult))
    return int(height), int(width), objects


def read_image_set(root: str | os.PathLike, split: str) -> list[str]:
    """Image ids of a split, in file order.

    Args:
        root: devkit folder
        split: name of a file in ``ImageSets/Main``, without ".txt"

    Raises:
        FileNotFoundError: the folder or the file is missing
        ValueError: no image, an id that comes twice, or one that leaves the folder
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no VOC devkit folder {root}; set DETECTRON2_DATASETS to the folder that "
            f"holds {root.name}"
        )
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"there is no image set file {path}")
    # VOC's class-wise image sets have a second column, +1 or -1.
    ids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"{path} lists no image")
    seen: set[str] = set()
    for image_id in ids:
        if image_id in seen:
            raise ValueError(f"{path} lists image {image_id!r} twice")
        if Path(image_id).is_absolute() or ".." in Path(image_id).parts:
            raise ValueError(f"{path}: image id {image_id!r} leaves the devkit folder")
        seen.add(image_id)
    return ids


def load_voc_dataset(
    root: str | os.PathLike, split: str, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Load a split in detectron2's format, as ``load_voc_instances`` does, with checks.

    Args:
        root: devkit folder
        split: "train", "val", "trainval", "test", ...
        class_names: in the order of the class ids

    Returns:
        detectron2 dataset dicts; boxes in pixels, XYXY

    Raises:
        FileNotFoundError: a folder, an image set, an XML or a JPEG is missing
        ValueError: a file that cannot be used; the message names it and what is wrong
    """
    root = Path(root)
    ids = read_image_set(root, split)
    class_ids = {name: i for i, name in enumerate(class_names)}
    records = []
    for image_id in ids:
        xml, jpeg = (
            root / "Annotations" / f"{image_id}.xml",
            root / "JPEGImages" / f"{image_id}.jpg",
        )
        for path in (xml, jpeg):
            if not path.is_file():
                raise FileNotFoundError(f"image {image_id!r} of split {split!r} has no {path}")
        height, width, objects = read_voc_xml(xml)
        annotations = []
        for obj in objects:
            if obj.name not in class_ids:
                raise ValueError(f"{xml}: {_unknown_class(obj.name, class_names)}")
            x0, y0, x1, y1 = obj.box
            annotations.append(
                {
                    "category_id": class_ids[obj.name],
                    "bbox": [x0 - 1, y0 - 1, x1, y1],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            )
        records.append(
            {
                "file_name": str(jpeg),
                "image_id": image_id,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    return records


def register_voc_dataset(
    name: str,
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str] = CLASS_NAMES,
    year: int = 2012,
) -> None:
    """Register a VOC-style set with detectron2; its files are read when it is first used.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``
        root: devkit folder
        split: name of a file in ``ImageSets/Main``
        class_names: in the order of the class ids
        year: of the evaluation's default metric; 2007 is VOC's 11-point AP, any other the area

    Raises:
        ValueError: the name is taken, or a class comes twice
    """
    if name in DatasetCatalog:
        raise ValueError(f"a data set named {name!r} is registered already")
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"data set {name!r}: a class name comes twice in {list(class_names)}")
    DatasetCatalog.register(name, lambda: load_voc_dataset(root, split, class_names))
    set_voc_metadata(MetadataCatalog.get(name), root, split, class_names, year)


def set_voc_metadata(
    metadata: Metadata,
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    year: int = 2012,
) -> None:
    """Set what detectron2 and :class:`~sl_detectron.VOCEvaluator` want to know of a VOC set."""
    metadata.set(
        thing_classes=list(class_names),
        dirname=str(root),
        split=split,
        year=year,
        evaluator_type="pascal_voc",
    )


def register_voc_datasets(entries: Iterable[Mapping[str, Any]]) -> None:
    """Register the sets of ``DATASETS.CUSTOM_VOC``; one that is registered already is left alone.

    Args:
        entries: mappings with NAME, ROOT, SPLIT and CLASSES

    Raises:
        ValueError: an entry lacks a key or has an unknown one, or its name is of another set
    """
    for entry in entries:
        if set(entry) != ENTRY_KEYS:
            raise ValueError(
                f"DATASETS.CUSTOM_VOC: an entry has the keys {sorted(ENTRY_KEYS)}; got {entry!r}"
            )
        name, root, split, classes = (entry[k] for k in ("NAME", "ROOT", "SPLIT", "CLASSES"))
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name).as_dict()
            registered = [metadata.get(k) for k in ("dirname", "split", "thing_classes")]
            if registered != [str(root), split, list(classes)]:
                raise ValueError(
                    f"DATASETS.CUSTOM_VOC: the name {name!r} is of another data set; choose another"
                )
            continue
        register_voc_dataset(name, root, split, classes)


def load_dataset(name: str) -> Any:
    """``DatasetCatalog.get``, but VOC sets that detectron2 registered go through our reader.

    detectron2's own stops at a one-image split and does not name the file that it cannot use.

    Args:
        name: a registered data set

    Returns:
        dataset dicts, or whatever else the set was registered with
    """
    if getattr(DatasetCatalog[name], "__module__", None) != pascal_voc.__name__:
        return DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    return load_voc_dataset(metadata.dirname, metadata.split, metadata.thing_classes)


def check_datasets(names: Iterable[str]) -> None:
    """Read every file list and annotation of VOC sets before a training starts.

    Args:
        names: registered data sets; those that are not VOC sets are only looked up

    Raises:
        FileNotFoundError, ValueError: see :func:`load_voc_dataset`; also an unknown name
    """
    for name in dict.fromkeys(names):
        if name not in DatasetCatalog:
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"data set {name!r} is not registered{hint}")
        if {"dirname", "split"} <= MetadataCatalog.get(name).as_dict().keys():
            load_dataset(name)


def _parse(path: str | os.PathLike) -> ET.Element:
    text = Path(path).read_bytes()
    # Annotations need no document type; entities in one can blow up or read other files.
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError(f"{path}: a document type or entity is not allowed in an annotation")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        line, column = error.position
        raise ValueError(
            f"{path}: malformed XML at line {line}, column {column}: {error}"
        ) from None


def _number(element: ET.Element, key: str, path: str | os.PathLike, where: str) -> float:
    text = element.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}: {where} needs a number in <{key}>; got {text!r}")
    return value


def _unknown_class(name: str, class_names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, class_names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"class {name!r} is not in the class list {list(class_names)}{hint}"
