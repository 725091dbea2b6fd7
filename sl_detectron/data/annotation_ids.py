"""A number for every training annotation that stays with it from the record to the tensors.

detectron2 turns a record's annotations into tensors, drops those that a crop left empty, and keeps
no trace of which tensor row was which annotation. Here every annotation gets an id,
:class:`AnnotationIdMapper` carries it through any mapper into ``instances.gt_annotation_ids``, and
:class:`AnnotationTable` keeps what the ids stand for.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode, Instances

from ..files import write_text
from .formats.annotations import Record, corners, image_id_of

__all__ = ["AnnotationIdMapper", "AnnotationTable", "dataset_source", "number_annotations"]

# The file in a run's output folder.
ANNOTATIONS = "annotations.jsonl"

# Stand-ins for class ids start here, far from any class id: what comes out as another number did
# not go through the mapper unchanged.
_STAND_INS = 2**40


def number_annotations(sets: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    """Number the annotations of all training sets, 0 to A-1 in the order of sets and records.

    Args:
        sets: {dataset name: dataset dicts}, never changed

    Returns:
        the same sets; each annotation has the key ``annotation_id``

    Example:
        >>> number_annotations({"a": [{"annotations": [{}]}], "b": [{"annotations": [{}, {}]}]})
        {'a': [{'annotations': [{'annotation_id': 0}]}],
         'b': [{'annotations': [{'annotation_id': 1}, {'annotation_id': 2}]}]}
    """
    ids = count()

    def number(record: Record) -> Record:
        if "annotations" not in record:
            return record
        annotations = [{**a, "annotation_id": next(ids)} for a in record["annotations"]]
        return {**record, "annotations": annotations}

    return {name: [*map(number, records)] for name, records in sets.items()}


@dataclass(frozen=True)
class AnnotationTable:
    """All annotations of the training sets as a training run sees them, label noise included.

    A label audit needs nothing else of the datasets. Images are kept as the lines of the file that
    the table becomes: about 80 bytes an annotation, where dicts would take 500.

    Args:
        num_annotations: one more than the largest ``annotation_id``, of dropped images too
        fingerprint: differs for any other annotations, also for as many with other noise
        classes: K names; none where the datasets have no class list
        sources: {dataset name: where its files are}, from :func:`dataset_source`
        images: JSON of those that have annotations, see :meth:`records`

    Example:
        >>> cat = {"annotation_id": 0, "category_id": 3, "bbox": [1, 2, 7, 7], "bbox_mode": 1}
        >>> table = AnnotationTable.of({"pets": [{"image_id": 7, "annotations": [cat]}]})
        >>> next(table.records())["annotations"]
        [{'annotation_id': 0, 'bbox': [1.0, 2.0, 8.0, 9.0], 'category_id': 3}]
    """

    num_annotations: int
    fingerprint: int
    classes: tuple[str, ...]
    sources: dict[str, dict[str, Any]]
    images: tuple[str, ...]

    @classmethod
    def of(
        cls, sets: Mapping[str, Sequence[Record]], keep_empty: bool = False
    ) -> "AnnotationTable":
        """The table of what :func:`number_annotations` returned.

        Args:
            sets: {dataset name: records}
            keep_empty: whether to keep images without annotations, which change no fingerprint
        """
        digest, last, images = hashlib.sha256(), -1, []
        for name, records in sets.items():
            for record in records:
                try:
                    annotations = [_compact(a) for a in record.get("annotations", ())]
                except (KeyError, TypeError, ValueError, AssertionError) as error:
                    where = f"dataset {name!r}, image {record.get('image_id')!r}"
                    raise ValueError(f"{where}: an annotation cannot be read: {error!r}") from error
                if not annotations and not keep_empty:
                    continue
                last = max((last, *(a["annotation_id"] for a in annotations)))
                image: Record = {"dataset": name, "image_id": image_id_of(record)}
                # Training leaves crowds out; file names change where images are moved.
                trained = [a for a in annotations if "iscrowd" not in a]
                kept = [(a["annotation_id"], a["category_id"], a["bbox"]) for a in trained]
                if annotations:
                    digest.update(repr((name, image["image_id"], kept)).encode())
                image["file_name"] = str(record.get("file_name", ""))
                image |= {key: int(record[key]) for key in ("height", "width") if record.get(key)}
                images.append(json.dumps({**image, "annotations": annotations}))
        classes = MetadataCatalog.get(next(iter(sets))).get("thing_classes") or ()
        sources = {name: dataset_source(name) for name in sets}
        # 48 bits: a number that JSON and JavaScript keep exactly.
        return cls(last + 1, int(digest.hexdigest()[:12], 16), (*classes,), sources, (*images,))

    def records(self) -> Iterator[Record]:
        """Yield dataset dicts of the images, with the key "dataset".

        Annotations have ``annotation_id``, ``bbox`` (XYXY in pixels, to hundredths), the given
        ``category_id``, and ``iscrowd`` 1 where they are crowds; ``true_category_id`` (K for a box
        without an object) and ``true_bbox`` where label noise has changed them.
        """
        return map(json.loads, self.images)

    def labels(self) -> list[int]:
        """The class that each annotation was given, by id; 0 for an id that none has."""
        given = [0] * self.num_annotations
        for record in self.records():
            for annotation in record["annotations"]:
                given[annotation["annotation_id"]] = annotation["category_id"]
        return given

    def true_classes(self) -> dict[int, int]:
        """{annotation id: true class}, by the label noise in memory; K for no object."""
        return {
            a["annotation_id"]: a.get("true_category_id", a["category_id"])
            for record in self.records()
            for a in record["annotations"]
        }

    def write(self, folder: str | os.PathLike) -> None:
        """Write ``annotations.jsonl``: a line with the other fields, then one for each image."""
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "images"}
        path = Path(folder, ANNOTATIONS)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join([json.dumps(head), *self.images, ""]))

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "AnnotationTable":
        """Read what :meth:`write` wrote.

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is not a table of annotations
        """
        path = Path(folder, ANNOTATIONS)
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}, which a training run with the SuperLoss writes at its start: "
                "resume the run, or audit its checkpoint by --checkpoint"
            )
        try:
            head, *images = path.read_text(encoding="utf-8").split("\n")[:-1]
            values = json.loads(head)
            table = cls(**{**values, "classes": (*values["classes"],)}, images=(*images,))
            table.true_classes()  # each line is an image
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a table of annotations: {error!r}") from error
        return table


def _compact(annotation: Record) -> Record:
    compact = {
        "annotation_id": int(annotation["annotation_id"]),
        "bbox": _rounded_box(annotation),
        "category_id": int(annotation["category_id"]),
    }
    if "true_category_id" in annotation:
        compact["true_category_id"] = int(annotation["true_category_id"])
    if "true_bbox" in annotation:
        compact["true_bbox"] = _rounded_box({**annotation, "bbox": annotation["true_bbox"]})
    return {**compact, "iscrowd": 1} if annotation.get("iscrowd", 0) else compact


def _rounded_box(annotation: Record) -> list[float]:
    mode = annotation["bbox_mode"]
    if mode in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        box = corners(annotation)  # for a million annotations BoxMode would take a minute
    else:
        box = BoxMode.convert([float(x) for x in annotation["bbox"]], mode, BoxMode.XYXY_ABS)
    # Finer than machines may differ by; + 0.0: no -0.0, which is written otherwise than 0.0.
    return [round(x, 2) + 0.0 for x in box]


def dataset_source(name: str) -> dict[str, Any]:
    """Where the files of a registered dataset are, for corrections.

    Returns:
        ``{"format": "voc", "root", "split", "other_classes"}``, ``{"format": "coco",
        "json_file", "image_root"}``, or ``{"format": "other"}``
    """
    metadata = MetadataCatalog.get(name)
    if hasattr(metadata, "dirname") and hasattr(metadata, "split"):
        voc = {"format": "voc", "root": str(metadata.dirname), "split": metadata.split}
        return {**voc, "other_classes": metadata.get("other_classes", "error")}
    if metadata.get("json_file"):
        coco = {"format": "coco", "json_file": str(metadata.json_file)}
        root = metadata.get("image_root")
        return coco if root is None else {**coco, "image_root": str(root)}
    return {"format": "other"}


class AnnotationIdMapper:
    """Call a mapper and add ``gt_annotation_ids``, int64 (N,), to the ``instances`` it makes.

    detectron2's :func:`annotations_to_instances` keeps nothing of an annotation but its class, box,
    mask and keypoints. So a number takes the place of the class on the way through the mapper. A
    custom mapper may be wrapped if it passes ``category_id`` on and decides nothing by it.

    Args:
        mapper: makes ``instances`` with ``gt_classes``; its other results are passed on

    Example:
        >>> from detectron2.structures import Instances
        >>> def mapper(record):
        ...     classes = [a["category_id"] for a in record["annotations"]]
        ...     return {"instances": Instances((9, 9), gt_classes=torch.tensor(classes[1:]))}
        >>> annotations = [{"category_id": c, "annotation_id": 40 + c} for c in (3, 1, 2)]
        >>> instances = AnnotationIdMapper(mapper)({"annotations": annotations})["instances"]
        >>> instances.gt_classes, instances.gt_annotation_ids
        (tensor([1, 2]), tensor([41, 42]))
    """

    def __init__(self, mapper: Callable[[Record], Any]):
        self.mapper = mapper

    def __call__(self, record: Record) -> Any:
        """What the mapper makes of the record, with ids where the annotations have them.

        Raises:
            ValueError: the mapper made other classes instead of passing ``category_id`` on
        """
        annotations = record.get("annotations", ())
        if not annotations or any("annotation_id" not in a for a in annotations):
            return self.mapper(record)
        positions = [{**a, "category_id": _STAND_INS + i} for i, a in enumerate(annotations)]
        mapped = self.mapper({**record, "annotations": positions})
        instances: Any = mapped.get("instances") if isinstance(mapped, dict) else None
        fields = {} if instances is None else dict(instances.get_fields())
        rows = fields.get("gt_classes", torch.tensor(-1)) - _STAND_INS
        if ((rows < 0) | (rows >= len(annotations))).any():
            raise ValueError(
                f"image {record.get('image_id')!r}: {self.mapper} does not pass category_id on to "
                "instances.gt_classes, so annotations cannot be followed through it; do not wrap "
                "it in AnnotationIdMapper"
            )
        # New objects: the mapper may keep what it returned.
        for field, key in (("gt_classes", "category_id"), ("gt_annotation_ids", "annotation_id")):
            fields[field] = torch.tensor([a[key] for a in annotations], dtype=torch.int64)[rows]
        return {**mapped, "instances": Instances(instances.image_size, **fields)}
