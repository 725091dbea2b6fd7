"""Label noise written into a COCO json file."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from .annotations import Record, make_spurious
from .changes import Change
from .edits import Edit
from .voc_xml import class_ids_of

__all__ = ["CocoFile"]

Span = tuple[int, int]
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class CocoFile:
    """A COCO json file as dataset dicts, and the edits that put changes into it.

    Classes and annotations are numbered as by detectron2's ``load_coco_json``: classes by
    ascending category id; annotations whose polygons all have fewer than three points do not
    count.

    Args:
        path: of the file

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: if it is not a COCO json in UTF-8, category names repeat, or an annotation
            has no integer id
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no COCO json at {path}")
        self.content = self.path.read_bytes()
        try:
            self._data = json.loads(self.content.decode())
            categories = sorted(self._data["categories"], key=lambda c: c["id"])
            self.class_names = [str(category["name"]) for category in categories]
            self._category_ids = [category["id"] for category in categories]
            self._class_ids = {old: new for new, old in enumerate(self._category_ids)}
            self._positions: dict[str, list[int]] = {
                str(image["id"]): [] for image in self._data["images"]
            }
            for position, annotation in enumerate(self._data["annotations"]):
                if _is_loaded(annotation) and str(annotation["image_id"]) in self._positions:
                    self._positions[str(annotation["image_id"])].append(position)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a COCO json: {error!r}") from error
        self._check()

    def _check(self) -> None:
        try:
            class_ids_of(self.class_names)
        except ValueError as error:
            raise ValueError(f"{self.path}: categories: {error}") from error
        for position, annotation in enumerate(self._data["annotations"]):
            annotation_id = annotation.get("id")
            if isinstance(annotation_id, bool) or not isinstance(annotation_id, int):
                raise ValueError(
                    f"{self.path}: annotations[{position}] of image {annotation['image_id']!r} "
                    f"needs an integer id; got {annotation_id!r}"
                )

    def records(self) -> list[Record]:
        """Return detectron2 dataset dicts, without file names.

        Raises:
            ValueError: if an annotation lacks its box, or has a category that the file lacks
        """
        records = []
        for image in self._data["images"]:
            try:
                record = {key: image[key] for key in ("height", "width")}
                positions = self._positions[str(image["id"])]
                annotations = [self._annotation(self._data["annotations"][i]) for i in positions]
            except KeyError as error:
                where = f"{self.path}: image {image['id']!r}"
                raise ValueError(f"{where} has no such key or id: {error}") from error
            records.append({"image_id": image["id"], **record, "annotations": annotations})
        return records

    def edits(self, changes: Sequence[Change]) -> list[list[Edit]]:
        """Return for each change its edits of the file."""
        text = self.content.decode("latin-1")  # one character per byte
        spans = list(_elements(text, _member(text, _skip(text, 0), "annotations")[0]))
        removed = {self._position(change) for change in changes if change.what == "missing"}
        num_leading = next((i for i in range(len(spans)) if i not in removed), len(spans))
        new_id = max((a["id"] for a in self._data["annotations"]), default=0)
        comma = num_leading < len(spans)
        edits = []
        for change in changes:
            if change.what == "spurious":
                new_id += 1
                added = json.dumps(self._new_annotation(change, new_id))
                edit = Edit(spans[-1][1], b"", (", " if comma else "").encode() + added.encode())
                comma = True
            elif change.what == "missing":
                edit = self._remove(spans, self._position(change), num_leading)
            else:
                key = "category_id" if change.what == "label" else "bbox"
                new = self._category_ids[change.new] if change.what == "label" else change.new
                start, end = _member(text, spans[self._position(change)][0], key)
                edit = Edit(start, self.content[start:end], json.dumps(new).encode())
            edits.append([edit])
        return edits

    def _annotation(self, annotation: dict[str, Any]) -> dict[str, Any]:
        optional = ("iscrowd", "segmentation", "keypoints")
        return {
            "category_id": self._class_ids[annotation["category_id"]],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            **{key: annotation[key] for key in optional if annotation.get(key)},
        }

    def _position(self, change: Change) -> int:
        """Return where the annotation of a change is in the file's list."""
        return self._positions[str(change.image_id)][change.index]

    def _remove(self, spans: Sequence[Span], position: int, num_leading: int) -> Edit:
        # A comma goes with every element: the one after it at the start of the list, before it
        # elsewhere, so that what is left is a list whichever elements go.
        start, end = spans[position]
        if position >= num_leading:
            start = spans[position - 1][1]
        elif position + 1 < len(spans):
            end = spans[position + 1][0]
        return Edit(start, self.content[start:end], b"")

    def _new_annotation(self, change: Change, annotation_id: int) -> dict[str, Any]:
        first = self._positions[str(change.image_id)][0]
        sibling = self._annotation(self._data["annotations"][first])
        category_id = self._category_ids[change.new["category_id"]]
        added = make_spurious(sibling, category_id, change.new["bbox"])
        del added["bbox_mode"]
        if "keypoints" in added:
            added["num_keypoints"] = 0
        area = added["bbox"][2] * added["bbox"][3]
        own = {"id": annotation_id, "image_id": change.image_id, "area": area}
        return {**own, "iscrowd": 0, **added}


def _is_loaded(annotation: dict[str, Any]) -> bool:
    polygons = annotation.get("segmentation")
    if not polygons or isinstance(polygons, dict):
        return True
    return any(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in polygons)


def _elements(text: str, start: int) -> Iterator[Span]:
    """Yield the span of every element of the JSON array at ``start``."""
    position = _skip(text, start + 1)
    while text[position] != "]":
        end = _DECODER.raw_decode(text, position)[1]
        yield position, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _member(text: str, start: int, wanted: str) -> Span:
    """Return the span of one value of the JSON object at ``start``."""
    position = _skip(text, start + 1)
    while text[position] != "}":
        key, end = _DECODER.raw_decode(text, position)
        value = _skip(text, _skip(text, end) + 1)
        end = _DECODER.raw_decode(text, value)[1]
        if key == wanted:
            return value, end
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    raise KeyError(wanted)


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position
