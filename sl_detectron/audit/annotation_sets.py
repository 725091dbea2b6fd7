"""The annotations of a VOC root, of a COCO json or of training sets, by image, for a comparison.

Boxes are XYXY in pixels, 0-based edges.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.annotation_ids import AnnotationTable
from ..data.formats.annotations import Record, corners
from ..data.formats.coco_json import CocoFile
from ..data.formats.flaws import Flaws
from ..data.formats.voc_xml import parse_voc_xml, zero_based

__all__ = ["AnnotationSet", "Corners", "MarkedObject", "objects_of", "read_annotation_set"]

Corners = tuple[float, float, float, float]


class MarkedObject(NamedTuple):
    """One annotation.

    Args:
        box, label: its box, and the name of its class
        crowd: whether it is of a crowd
        place: its position among the annotations of its image
        origin: box and class before label noise, as far as noise changed one of them; box None
            where noise added the annotation
    """

    box: Corners
    label: str
    crowd: bool
    place: int
    origin: tuple[Corners | None, str] | None = None


# {image: its annotations}; an image is called by its file's name without folders and suffix.
AnnotationSet = Mapping[str, Sequence[MarkedObject]]


def read_annotation_set(path: str | os.PathLike) -> AnnotationSet:
    """Read all annotations of a VOC root or of a COCO json.

    Args:
        path: a folder with ``Annotations/*.xml``, or a json file

    Raises:
        FileNotFoundError: there is no such folder or file
        ValueError: an annotation is flawed, or two images have files of one name
    """
    path = Path(path)
    if not path.is_dir():
        return _read_coco(path)
    files = sorted(path.glob("Annotations/**/*.xml"))
    if not files:
        raise FileNotFoundError(f"{path} has no Annotations/*.xml: it is no VOC root")
    flaws = Flaws(f"the annotations of {path}")
    rows = []
    for file in files:
        objects = parse_voc_xml(file, flaws).objects
        boxes = [(zero_based(o.box), o.name, False) for o in objects]
        rows.append((file.stem, boxes))
    flaws.settle()
    return _by_image(rows, path)


def _read_coco(path: Path) -> AnnotationSet:
    file = CocoFile(path)
    files = {image["id"]: image["file_name"] for image in file.plain()["images"]}
    rows = []
    for record in file.records():
        boxes = [
            (corners(a), file.class_names[a["category_id"]], bool(a.get("iscrowd", 0)))
            for a in record["annotations"]
        ]
        rows.append((Path(files[record["image_id"]]).stem, boxes))
    return _by_image(rows, path)


def objects_of(table: AnnotationTable, classes: Sequence[str]) -> AnnotationSet:
    """The annotations of training sets.

    Args:
        table: the annotations
        classes: K names

    Raises:
        ValueError: two images have files of one name
    """
    rows = []
    for record in table.records():
        boxes = [
            (a["bbox"], classes[a["category_id"]], "iscrowd" in a) for a in record["annotations"]
        ]
        rows.append((Path(record["file_name"]).stem, boxes))
    objects = _by_image(rows, ", ".join(table.sources))
    for record in table.records():
        image = objects[Path(record["file_name"]).stem]
        annotations: list[Record] = record["annotations"]
        for i, a in enumerate(annotations):
            if "true_category_id" in a or "true_bbox" in a:
                image[i] = image[i]._replace(origin=_origin(a, classes))
    return objects


def _origin(annotation: Record, classes: Sequence[str]) -> tuple[Corners | None, str]:
    key = "true_category_id" if "true_category_id" in annotation else "category_id"
    true_class = annotation[key]
    if true_class == len(classes):
        return None, ""
    x0, y0, x1, y1 = annotation["true_bbox" if "true_bbox" in annotation else "bbox"]
    return (x0, y0, x1, y1), classes[true_class]


def _by_image(
    rows: Sequence[tuple[str, Sequence[tuple[Sequence[float], str, bool]]]], where: Any
) -> dict[str, list[MarkedObject]]:
    name, count = Counter(name for name, _ in rows).most_common(1)[0] if rows else ("", 0)
    if count > 1:
        raise ValueError(
            f"{where}: {count} images have a file {name!r}, by which images are told apart"
        )
    return {
        name: [
            MarkedObject((box[0], box[1], box[2], box[3]), label, crowd, i)
            for i, (box, label, crowd) in enumerate(boxes)
        ]
        for name, boxes in rows
    }
