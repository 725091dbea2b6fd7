"""A COCO json file, for every command alike: its content in plain form, and changes to it."""

import codecs
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from .annotations import Record, make_spurious
from .changes import Change
from .coco_content import missing_images, parse_coco, read_categories, read_images
from .coco_dicts import dataset_dict_of
from .coco_edits import Rewrite, coco_edits
from .coco_fields import Id, box_of, is_crowd, is_number, plain_id, segmentation_of
from .coco_in_order import in_order
from .edits import Edit, apply_edits
from .flaws import Flaws

__all__ = ["CocoFile"]


class CocoFile:
    """A COCO json file: its content in plain form, and what it holds after changes.

    Ids match by value: 1, 1.0 and "1" are one. Classes and annotations are numbered as by
    detectron2's ``load_coco_json``: classes by ascending category id; annotations whose polygons
    all have fewer than three points do not count.

    Args:
        path: of the file
        image_root: folder of its images, from which sizes come that the file lacks; None if
            unknown: then they are looked for beside the file and in ``images`` there
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
        self._data = parse_coco(self.path, self.content)
        # Not those of a test whose annotations are kept by its server.
        self.has_annotations = "annotations" in self._data
        self._entries: list[Any] = self._data.get("annotations", [])
        # As in the file, in the order of the class ids; {plain id: class id}.
        self._category_ids, self.class_ids, self.class_names = read_categories(
            self.path, self._data["categories"], self._flaws
        )
        # {plain id: image in plain form}
        self._images = read_images(self.path, self._data["images"], image_root, self._flaws)
        # {plain id of an image: positions of its annotations in the file}
        self._positions: dict[Id, list[int]] = {i: [] for i in self._images}
        # {position in the file: annotation in plain form}
        self._annotations = self._read_annotations()
        if flaws is None:
            self._flaws.settle()

    def check_image_files(self) -> None:
        """Keep as flaws the images that are not in the folder, and leave them out."""
        names = {i: image["file_name"] for i, image in self._images.items()}
        for image_id in missing_images(self.path, self._image_root, names, self._flaws):
            del self._images[image_id]
            for position in self._positions.pop(image_id):
                del self._annotations[position]

    def plain(self) -> dict[str, Any]:
        """The file in plain form, for detectron2's loader and pycocotools.

        Each id is one value everywhere; annotations have a box, an area and iscrowd 0 or 1; images
        have a height and a width as far as they are known. What cannot be used is left out.
        """
        categories: list[Any] = [{**c} for c in self._data["categories"]]
        for category in categories:
            category["id"] = plain_id(category["id"])
        parts: dict[str, Any] = {"categories": categories, "images": [*self._images.values()]}
        if self.has_annotations:
            parts["annotations"] = [*self._annotations.values()]
        return {**self._data, **parts}

    def is_plain(self) -> bool:
        """Whether the file is in plain form as it is."""
        # pycocotools does not read a byte order mark.
        return not self.content.startswith(codecs.BOM_UTF8) and self.plain() == self._data

    def records(self) -> list[Record]:
        """Return detectron2 dataset dicts without file names, by ascending image id."""
        records = []
        for image_id in self._sorted_ids():
            image = self._images[image_id]
            record: Record = {"image_id": image_id}
            record |= {key: image[key] for key in ("height", "width") if key in image}
            annotations = [self._record(self._annotations[i]) for i in self._positions[image_id]]
            records.append({**record, "annotations": annotations})
        return records

    def dataset_dicts(self, image_root: str | os.PathLike) -> list[Record]:
        """Return the dataset dicts that detectron2's ``load_coco_json`` makes of the plain form.

        It would read the file once more.

        Args:
            image_root: what file names are relative to
        """
        root = os.fspath(image_root)
        records = []
        for image_id in self._sorted_ids():
            image = self._images[image_id]
            record: Record = {"file_name": os.path.join(root, image["file_name"])}
            record |= {key: image[key] for key in ("height", "width") if key in image}
            annotations = [
                dataset_dict_of(self._annotations[i], self.class_ids)
                for i in self._positions[image_id]
            ]
            records.append({**record, "image_id": image_id, "annotations": annotations})
        return records

    def _sorted_ids(self) -> list[Id]:
        return sorted(self._images, key=lambda i: (str(type(i)), i))

    def with_changes(self, changes: Sequence[Change]) -> bytes:
        """The file with changes of :meth:`records` in it; all else has the bytes that it had."""
        return apply_edits(self.content, chain.from_iterable(self.edits(changes)))

    def edits(self, changes: Sequence[Change]) -> list[list[Edit]]:
        """The byte edits that each change of :meth:`records` takes.

        The area of an annotation without a mask, if it has one, follows its box.

        Raises:
            ValueError: the file has no annotations
        """
        if changes and not self.has_annotations:
            raise ValueError(f"{self.path} has no list of annotations that could change")
        numbers = (plain_id(a.get("id")) for a in self._entries)
        new_id = max((i for i in numbers if isinstance(i, int)), default=0)
        rewrites = []
        for change in changes:
            positions = self._positions[plain_id(change.image_id)]  # type: ignore[index]
            if change.what == "spurious":
                new_id += 1
                rewrites.append(Rewrite(None, self._new_annotation(change, positions, new_id)))
                continue
            position = positions[change.index]
            if change.what == "missing":
                values = None
            elif change.what == "label":
                values = {"category_id": self._category_ids[change.new]}
            else:
                values = {"bbox": change.new}
                entry = self._entries[position]
                if "area" in entry and not entry.get("segmentation"):
                    values["area"] = change.new[2] * change.new[3]
            rewrites.append(Rewrite(position, values))
        return coco_edits(self.content, rewrites)

    def _record(self, annotation: Mapping[str, Any]) -> dict[str, Any]:
        """An annotation in plain form as one of a dataset dict."""
        optional = ("iscrowd", "segmentation", "keypoints")
        return {
            "category_id": self.class_ids[annotation["category_id"]],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            **{key: annotation[key] for key in optional if annotation.get(key)},
        }

    def _new_annotation(
        self, change: Change, positions: Sequence[int], annotation_id: int
    ) -> dict[str, Any]:
        category_id = self._category_ids[change.new["category_id"]]
        # Of its image, if there is one.
        sibling = next(iter((*positions, *self._annotations)), None)
        like: Record = {"bbox_mode": BoxMode.XYWH_ABS}
        if sibling is not None:
            like = self._record(self._annotations[sibling])
        added = make_spurious(like, category_id, change.new["bbox"])
        del added["bbox_mode"]
        if "keypoints" in added:
            added["num_keypoints"] = 0
        area = added["bbox"][2] * added["bbox"][3]
        plain = plain_id(change.image_id)
        # As the file spells it.
        spelt = (i["id"] for i in self._data["images"] if plain_id(i.get("id")) == plain)
        image_id = self._entries[positions[0]]["image_id"] if positions else next(spelt)
        return {"id": annotation_id, "image_id": image_id, "area": area, "iscrowd": 0, **added}

    def _read_annotations(self) -> dict[int, dict[str, Any]]:
        kept: dict[int, dict[str, Any]] = {}
        numbers = [a.get("id") for a in self._entries]
        repeated: Counter[Id | None] = Counter()
        # A set of ids first: to count all of them takes longer than to see that none repeats.
        if {*map(type, numbers)} != {int} or len({*numbers}) < len(numbers):
            counts = Counter(map(plain_id, numbers))
            repeated = Counter({i: number for i, number in counts.items() if number > 1})
        short_cut = in_order(self._entries, self._images, self.class_ids, repeated)
        num_in_order = 0
        for position, (annotation, is_in_order) in enumerate(zip(self._entries, short_cut)):
            if is_in_order:
                kept[position] = annotation
                self._positions[annotation["image_id"]].append(position)
                num_in_order += 1
                continue
            where = f"{self.path}: annotations[{position}]"
            try:
                plain = self._plain(annotation, where, repeated)
            except ValueError as error:
                self._flaws.add("box", error)
                continue
            if plain is not None:
                kept[position] = plain
                self._positions[plain["image_id"]].append(position)
        self._flaws.count_boxes(num_in_order)
        self._flaws.check_boxes()
        if not kept and not self._flaws.found:
            self._flaws.note("no annotation of an image in the file, so the set has none", "")
        return kept

    def _plain(
        self, annotation: Mapping[str, Any], where: str, repeated: Counter
    ) -> dict[str, Any] | None:
        """An annotation in plain form; None for one that detectron2 does not train on."""
        image_id, number = annotation.get("image_id"), plain_id(annotation.get("id"))
        where = f"{where} of image {image_id!r:.80}"
        if not isinstance(number, int):
            raise ValueError(f"{where} needs an integer id; got {annotation.get('id')!r:.80}")
        if repeated[number]:
            raise ValueError(f"{where}: {repeated[number]} annotations have the id {number}")
        image = self._images.get(plain_id(image_id))  # type: ignore[arg-type]
        if image is None:
            listed = [f"{i!r:.80}" for i in [*self._images][:3]] or ["no image"]
            listed += ["..."] if len(self._images) > 3 else []
            text = f"annotations whose image is not in the file (it has {', '.join(listed)})"
            self._flaws.note(text, where)
            return None
        category_id = plain_id(annotation.get("category_id"))
        if category_id not in self.class_ids:
            raise ValueError(
                f"{where}: there is no category {annotation.get('category_id')!r:.80}; categories "
                f"have the ids {[*self.class_ids]!r:.200}"
            )
        if annotation.get("ignore", 0):
            raise ValueError(f"{where}: ignore is not supported; mark a group by iscrowd 1")
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
        if "ignore" in annotation:
            plain["ignore"] = 0  # of null, detectron2's loader refuses the file
        if not is_number(area):
            plain["area"] = box[2] * box[3]
        elif not shape and not math.isclose(area, box[2] * box[3], rel_tol=0.01, abs_tol=1):  # type: ignore[arg-type]
            self._flaws.note("areas other than width * height, by which COCO sorts AP", where)
        return plain
