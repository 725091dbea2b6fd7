"""A COCO json file, for every command alike: its content in plain form, and changes to it."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ..images import READ_ERRORS, image_header
from .annotations import Record, make_spurious
from .changes import Change
from .coco_fields import Id, box_of, is_crowd, is_number, plain_id, segmentation_of
from .flaws import Flaws, whole_number
from .voc_xml import class_ids_of

__all__ = ["CocoFile"]

_PARTS = ("categories", "images", "annotations")
_WITHOUT_ANNOTATIONS = {"images", "categories", "info", "licenses", "type"}


class CocoFile:
    """A COCO json file: its content in plain form, and what it holds after changes.

    Ids match by value: 1, 1.0 and "1" are one. Classes and annotations are numbered as by
    detectron2's ``load_coco_json``: classes by ascending category id; annotations whose polygons
    all have fewer than three points do not count.

    Args:
        path: of the file
        image_root: folder of its images, from which sizes come that the file lacks; None if unknown
        bad_annotations: whether flaws are an "error", or what has them is left out and counted:
            "skip"
        flaws: takes what is found, in place of ``bad_annotations``; the caller settles it

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is no COCO json in UTF-8, category names repeat, or an entry has a flaw
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_root: str | os.PathLike | None = None,
        *,
        bad_annotations: str = "error",
        flaws: Flaws | None = None,
    ):
        self.path = Path(path)
        self._image_root = image_root
        self._flaws = flaws or Flaws(str(path), bad_annotations)
        if not self.path.is_file():
            raise FileNotFoundError(f"no COCO json at {path}")
        self.content = self.path.read_bytes()
        self._data = self._load()
        # Not those of a test whose annotations are kept by its server.
        self.has_annotations = "annotations" in self._data
        self._entries: list[Any] = self._data.get("annotations", [])
        # As in the file, in the order of the class ids; {plain id: class id}.
        self._category_ids, self.class_ids, self.class_names = self._read_categories()
        # {plain id: image in plain form}
        self._images = self._read_images()
        # {plain id of an image: positions of its annotations in the file}
        self._positions: dict[Id, list[int]] = {i: [] for i in self._images}
        # {position in the file: annotation in plain form}
        self._annotations = self._read_annotations()
        if flaws is None:
            self._flaws.settle()

    def check_image_files(self) -> None:
        """Keep as a flaw that none of the images is in the folder, and note how many are not."""
        folders: dict[str, set[str]] = {}
        missing = []
        if self._image_root is None or "://" in os.fspath(self._image_root):
            return  # a store whose files are not listed here
        for image in self._images.values():
            path = os.path.join(self._image_root, image["file_name"])
            folder, name = os.path.split(path)
            if folder not in folders:
                folders[folder] = {*os.listdir(folder)} if os.path.isdir(folder) else set()
            if name not in folders[folder]:
                missing.append(path)
        if missing and len(missing) == len(self._images):
            have = ", ".join(sorted(folders[os.path.dirname(missing[0])])[:5]) or "nothing"
            error = f"{self.path}: none of its {len(missing)} images is there; the first would be "
            error += f"{missing[0]}, and that folder has {have}"
            self._flaws.add("class", FileNotFoundError(error))
        elif missing:
            self._flaws.note("image files that are missing", missing[0], len(missing))

    def plain(self) -> dict[str, Any]:
        """The file in plain form, for detectron2's loader and pycocotools.

        Each id is one value everywhere; annotations have a box, an area and iscrowd 0 or 1; images
        have a height and a width as far as they are known. What cannot be used is left out.
        """
        categories: list[Any] = [{**c} for c in self._data["categories"]]
        for category in categories:
            category["id"] = plain_id(category["id"])
        parts = {"images": [*self._images.values()], "annotations": [*self._annotations.values()]}
        return {**self._data, **parts, "categories": categories}

    def is_plain(self) -> bool:
        """Whether the file is in plain form as it is."""
        return self.plain() == self._data

    def records(self) -> list[Record]:
        """Return detectron2 dataset dicts without file names, by ascending image id."""
        records = []
        for image_id in sorted(self._images, key=lambda i: (str(type(i)), i)):
            image = self._images[image_id]
            record: Record = {"image_id": image_id}
            record |= {key: image[key] for key in ("height", "width") if key in image}
            annotations = [self._record(self._annotations[i]) for i in self._positions[image_id]]
            records.append({**record, "annotations": annotations})
        return records

    def with_changes(self, changes: Sequence[Change]) -> bytes:
        """The file with changes of :meth:`records` in it, in one line of ASCII.

        All that the changes are not about has the values and the order that it had, keys unknown
        to us too. White space is lost, and numbers are as Python writes them.
        """
        annotations = list(self._entries)
        ids = (plain_id(a.get("id")) for a in self._entries)
        new_id = max((i for i in ids if isinstance(i, int)), default=0)
        for change in changes:
            positions = self._positions[plain_id(change.image_id)]  # type: ignore[index]
            if change.what == "spurious":
                new_id += 1
                annotations.append(self._new_annotation(change, positions[0], new_id))
                continue
            position = positions[change.index]
            if change.what == "missing":
                annotations[position] = None
            elif change.what == "label":
                new = {"category_id": self._category_ids[change.new]}
                annotations[position] = {**annotations[position], **new}
            else:
                annotations[position] = {**annotations[position], "bbox": change.new}
        left = [a for a in annotations if a is not None]
        return json.dumps({**self._data, "annotations": left}).encode("ascii") + b"\n"

    def _record(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        """An annotation in plain form as one of a dataset dict."""
        optional = ("iscrowd", "segmentation", "keypoints")
        return {
            "category_id": self.class_ids[annotation["category_id"]],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            **{key: annotation[key] for key in optional if annotation.get(key)},
        }

    def _new_annotation(self, change: Change, sibling: int, annotation_id: int) -> dict[str, Any]:
        category_id = self._category_ids[change.new["category_id"]]
        added = make_spurious(
            self._record(self._annotations[sibling]), category_id, change.new["bbox"]
        )
        del added["bbox_mode"]
        if "keypoints" in added:
            added["num_keypoints"] = 0
        area = added["bbox"][2] * added["bbox"][3]
        image_id = self._entries[sibling]["image_id"]
        return {"id": annotation_id, "image_id": image_id, "area": area, "iscrowd": 0, **added}

    def _load(self) -> dict[str, Any]:
        try:
            data = json.loads(self.content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} is not a COCO json: it is not UTF-8, save it as UTF-8: {error}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is not a COCO json: {error!r}") from error
        if not isinstance(data, dict):
            found = f"it holds a {type(data).__name__}"
            raise ValueError(
                f"{self.path} is not a COCO json: {found}, not an object with {_PARTS}"
            )
        for key in _PARTS:
            if key == "annotations" and data.keys() <= _WITHOUT_ANNOTATIONS:
                continue
            if key not in data:
                raise ValueError(
                    f"{self.path} is not a COCO json: KeyError({key!r}); it has {[*data]}"
                )
            if not isinstance(data[key], list):
                kind = type(data[key]).__name__
                raise ValueError(f"{self.path} is not a COCO json: {key} is a {kind}, not a list")
            for i, entry in enumerate(data[key]):
                if not isinstance(entry, dict):
                    what = f"{key}[{i}] is {entry!r:.80}"
                    raise ValueError(f"{self.path} is not a COCO json: {what}, not an object")
        return data

    def _read_categories(self) -> tuple[list[Any], dict[Id, int], list[str]]:
        ids: dict[Id, Any] = {}
        for i, category in enumerate(self._data["categories"]):
            plain = plain_id(category.get("id"))
            if plain is None or not isinstance(category.get("name"), str):
                raise ValueError(
                    f"{self.path} is not a COCO json: categories[{i}] needs an id and a name; got "
                    f"{category!r:.200}"
                )
            if plain in ids:
                raise ValueError(f"{self.path}: two categories have the id {plain!r:.80}")
            ids[plain] = category
        if len({type(i) for i in ids}) > 1:
            raise ValueError(
                f"{self.path}: the ids of categories are numbers and names: {[*ids]!r:.200}"
            )
        order = sorted(ids, key=lambda i: (str(type(i)), i))
        names = [ids[i]["name"] for i in order]
        try:
            class_ids_of(names)
        except ValueError as error:
            raise ValueError(f"{self.path}: categories: {error}") from error
        return [ids[i]["id"] for i in order], {old: new for new, old in enumerate(order)}, names

    def _read_images(self) -> dict[Id, dict[str, Any]]:
        images: dict[Id, dict[str, Any]] = {}
        for i, image in enumerate(self._data["images"]):
            where = f"{self.path}: images[{i}]"
            plain, name = plain_id(image.get("id")), image.get("file_name")
            if plain is None or not (isinstance(name, str) and name):
                self._image_flaw(f"{where} needs an id and a file_name; got {image!r:.200}")
            elif plain in images:
                self._image_flaw(f"{where}: two images have the id {plain!r:.80}")
            else:
                size = self._size(image, f"{where} ({name!r:.200})")
                rest = {k: v for k, v in image.items() if k not in ("height", "width")}
                images[plain] = {**rest, "id": plain, **size}
        if len({type(i) for i in images}) > 1:
            raise ValueError(f"{self.path}: some ids of images are numbers, others names")
        return images

    def _size(self, image: Mapping[str, Any], where: str) -> dict[str, int]:
        """Height and width; those of the image file where the json has none."""
        height, width = (whole_number(image.get(key)) for key in ("height", "width"))
        if height is not None and width is not None:
            return {"height": height, "width": width}
        if self._image_root is None:
            self._flaws.note("images without height and width", where)
            return {}
        try:
            header = image_header(os.path.join(self._image_root, image["file_name"]))
        except READ_ERRORS as error:
            self._image_flaw(f"{where} has no height and width, and cannot be read: {error}")
            return {}
        self._flaws.note("images without height and width, so the files are read", where)
        return {"height": header.height, "width": header.width}

    def _image_flaw(self, text: str) -> None:
        self._flaws.add("image", ValueError(text))

    def _read_annotations(self) -> dict[int, dict[str, Any]]:
        kept: dict[int, dict[str, Any]] = {}
        counts = Counter(plain_id(a.get("id")) for a in self._entries)
        for position, annotation in enumerate(self._entries):
            where = f"{self.path}: annotations[{position}]"
            try:
                plain = self._plain(annotation, where, counts)
            except ValueError as error:
                self._flaws.add("box", error)
                continue
            if plain is not None:
                kept[position] = plain
                self._positions[plain["image_id"]].append(position)
        self._flaws.check_boxes()
        if not kept and not self._flaws.found:
            self._flaws.note("no annotation of an image in the file, so the set has none", "")
        return kept

    def _plain(
        self, annotation: Mapping[str, Any], where: str, counts: Counter
    ) -> dict[str, Any] | None:
        """An annotation in plain form; None for one that detectron2 does not train on."""
        image_id, number = annotation.get("image_id"), plain_id(annotation.get("id"))
        where = f"{where} of image {image_id!r:.80}"
        if not isinstance(number, int):
            raise ValueError(f"{where} needs an integer id; got {annotation.get('id')!r:.80}")
        if counts[number] > 1:
            raise ValueError(f"{where}: {counts[number]} annotations have the id {number}")
        image = self._images.get(plain_id(image_id))  # type: ignore[arg-type]
        if image is None:
            listed = [f"{i!r:.80}" for i in [*self._images][:3]] or ["no image"]
            listed += ["..."] if len(self._images) > 3 else []
            text = f"annotations of no image in the file (it has {', '.join(listed)})"
            self._flaws.note(text, where)
            return None
        category_id = plain_id(annotation.get("category_id"))
        if category_id not in self.class_ids:
            raise ValueError(
                f"{where}: there is no category {annotation.get('category_id')!r:.80}; categories "
                f"have the ids {[*self.class_ids]!r:.200}"
            )
        if annotation.get("ignore", 0):
            raise ValueError(f"{where}: ignore is not supported; a region of many is iscrowd 1")
        box = box_of(annotation, image, where, self._flaws)
        crowd = is_crowd(annotation, where, self._flaws)
        shape = segmentation_of(annotation.get("segmentation"), image, where, self._flaws)
        if box is None or shape is None:
            return None
        ids = {"id": number, "image_id": image["id"], "category_id": category_id}
        plain = {**annotation, **ids, "bbox": box, "iscrowd": crowd}
        if "segmentation" in annotation:
            plain["segmentation"] = shape
        area = annotation.get("area")
        if not is_number(area):
            plain["area"] = box[2] * box[3]
        elif not shape and not math.isclose(area, box[2] * box[3], rel_tol=0.01, abs_tol=1):  # type: ignore[arg-type]
            self._flaws.note("areas other than width * height, by which COCO sorts AP", where)
        return plain
