"""A COCO json file: its records, and its content with changes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from .annotations import Record, make_spurious
from .changes import Change
from .voc_xml import class_ids_of

__all__ = ["CocoFile"]


class CocoFile:
    """A COCO json file as dataset dicts, and what it holds after changes.

    Classes and annotations are numbered as by detectron2's ``load_coco_json``: classes by
    ascending category id; annotations whose polygons all have fewer than three points do not
    count.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is no COCO json in UTF-8, category names repeat, or an id is no integer
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
            self._positions: dict[str, list[int]] = {str(i["id"]): [] for i in self._data["images"]}
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
            if type(annotation.get("id")) is not int:
                raise ValueError(
                    f"{self.path}: annotations[{position}] of image {annotation['image_id']!r} "
                    f"needs an integer id; got {annotation.get('id')!r}"
                )

    def records(self) -> list[Record]:
        """Return detectron2 dataset dicts without file names.

        Raises:
            ValueError: an annotation lacks its box, or has a category that the file lacks
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

    def with_changes(self, changes: Sequence[Change]) -> bytes:
        """The file with changes of :meth:`records` in it, in one line of ASCII.

        All that the changes are not about has the values and the order that it had, keys unknown
        to us too. White space is lost, and numbers are as Python writes them.
        """
        annotations = list(self._data["annotations"])
        new_id = max((a["id"] for a in annotations), default=0)
        for change in changes:
            if change.what == "spurious":
                new_id += 1
                annotations.append(self._new_annotation(change, new_id))
                continue
            position = self._positions[str(change.image_id)][change.index]
            if change.what == "missing":
                annotations[position] = None
            elif change.what == "label":
                new = {"category_id": self._category_ids[change.new]}
                annotations[position] = {**annotations[position], **new}
            else:
                annotations[position] = {**annotations[position], "bbox": change.new}
        left = [a for a in annotations if a is not None]
        return json.dumps({**self._data, "annotations": left}).encode("ascii") + b"\n"

    def _annotation(self, annotation: dict[str, Any]) -> dict[str, Any]:
        optional = ("iscrowd", "segmentation", "keypoints")
        return {
            "category_id": self._class_ids[annotation["category_id"]],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            **{key: annotation[key] for key in optional if annotation.get(key)},
        }

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
