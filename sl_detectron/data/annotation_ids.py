"""A number for every training annotation that stays with it from the record to the tensors.

detectron2 turns a record's annotations into tensors, drops those that a crop left empty, and keeps
no trace of which tensor row was which annotation. Here every annotation gets an id,
:class:`AnnotationIdMapper` carries it through any mapper into ``instances.gt_annotation_ids``, and
:class:`AnnotationTable` keeps what the ids stand for.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from ..files import write_text
from .annotation_texts import annotation_texts
from .formats.annotations import Record, image_id_of

__all__ = ["AnnotationIdMapper", "AnnotationTable", "dataset_source", "number_annotations"]

# The file in a run's output folder.
ANNOTATIONS = "annotations.jsonl"

# Images whose texts are made together.
_BLOCK = 2**13

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
        given: (num_annotations,) int64, see :meth:`labels`; None reads it from the images

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
    given: np.ndarray | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls, sets: Mapping[str, Sequence[Record]], keep_empty: bool = False
    ) -> "AnnotationTable":
        """The table of what :func:`number_annotations` returned.

        Args:
            sets: {dataset name: records}
            keep_empty: whether to keep images without annotations, which change no fingerprint
        """
        digest, images = hashlib.sha256(), []
        ids, given = array("q"), array("q")
        for name, records in sets.items():
            remaining = iter(records)
            while block := [*islice(remaining, _BLOCK)]:
                for record, texts in zip(block, annotation_texts(name, block)):
                    annotations = record.get("annotations", ())
                    if not annotations and not keep_empty:
                        continue
                    ids.extend([int(a["annotation_id"]) for a in annotations])
                    given.extend([int(a["category_id"]) for a in annotations])
                    image: Record = {"dataset": name, "image_id": image_id_of(record)}
                    if annotations:
                        # Training leaves crowds out; file names change where images are moved.
                        trained = ", ".join(trained for _, trained in texts if trained)
                        shown = f"({name!r}, {image['image_id']!r}, [{trained}])"
                        digest.update(shown.encode())
                    image["file_name"] = str(record.get("file_name", ""))
                    image |= {k: int(record[k]) for k in ("height", "width") if record.get(k)}
                    line = ", ".join(line for line, _ in texts)
                    images.append(f'{json.dumps(image)[:-1]}, "annotations": [{line}]}}')
        classes = MetadataCatalog.get(next(iter(sets))).get("thing_classes") or ()
        sources = {name: dataset_source(name) for name in sets}
        labels = _by_id(ids, given, max(ids, default=-1) + 1)
        # 48 bits: a number that JSON and JavaScript keep exactly.
        fingerprint = int(digest.hexdigest()[:12], 16)
        return cls(len(labels), fingerprint, (*classes,), sources, (*images,), labels)

    def records(self) -> Iterator[Record]:
        """Yield dataset dicts of the images, with the key "dataset".

        Annotations have ``annotation_id``, ``bbox`` (XYXY in pixels, to hundredths), the given
        ``category_id``, and ``iscrowd`` 1 where they are crowds; ``true_category_id`` (K for a box
        without an object) and ``true_bbox`` where label noise has changed them.
        """
        return map(json.loads, self.images)

    def labels(self) -> list[int]:
        """The class that each annotation was given, by id; 0 for an id that none has."""
        given = self.given
        if given is None:
            given = _given_of(self.images, self.num_annotations)
        return given.tolist()

    def true_classes(self) -> dict[int, int]:
        """{annotation id: true class}, by the label noise in memory; K for no object."""
        return {
            a["annotation_id"]: a.get("true_category_id", a["category_id"])
            for record in self.records()
            for a in record["annotations"]
        }

    def write(self, folder: str | os.PathLike) -> None:
        """Write ``annotations.jsonl``: a line with the other fields, then one for each image."""
        names = [f.name for f in fields(self) if f.name not in ("images", "given")]
        head = {name: getattr(self, name) for name in names}
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
            given = _given_of(images, values["num_annotations"])  # each line is an image
            values["classes"] = (*values["classes"],)
            table = cls(**values, images=(*images,), given=given)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a table of annotations: {error!r}") from error
        return table


def _given_of(images: Iterable[str], num_annotations: int) -> np.ndarray:
    """(A,) given classes, from the lines of a file."""
    ids, given = array("q"), array("q")
    for line in images:
        annotations = json.loads(line)["annotations"]
        ids.extend(a["annotation_id"] for a in annotations)
        given.extend(a["category_id"] for a in annotations)
    if len(ids) and not 0 <= min(ids) <= max(ids) < num_annotations:
        raise ValueError(f"it has {num_annotations} annotations and ids {min(ids)} to {max(ids)}")
    return _by_id(ids, given, num_annotations)


def _by_id(ids: array, given: array, num_annotations: int) -> np.ndarray:
    labels = np.zeros(num_annotations, dtype=np.int64)
    labels[np.array(ids, dtype=np.int64)] = np.array(given, dtype=np.int64)
    return labels


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
        for name, key in (("gt_classes", "category_id"), ("gt_annotation_ids", "annotation_id")):
            fields[name] = torch.tensor([a[key] for a in annotations], dtype=torch.int64)[rows]
        return {**mapped, "instances": Instances(instances.image_size, **fields)}
