"""A number for every training annotation that stays with it from the record to the tensors.

detectron2 turns a record's annotations into tensors, drops those that a crop left empty, and keeps
no trace of which tensor row was which annotation. Here every annotation gets an id, and
:class:`AnnotationIdMapper` carries it through any mapper into ``instances.gt_annotation_ids``.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Instances

__all__ = ["AnnotationIdMapper", "annotation_fingerprint", "number_annotations"]

Record = dict[str, Any]

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
    numbered: dict[str, list[Record]] = {}
    start = 0
    for name, records in sets.items():
        numbered[name] = []
        for record in records:
            if "annotations" in record:
                annotations = [
                    {**a, "annotation_id": start + i} for i, a in enumerate(record["annotations"])
                ]
                start += len(annotations)
                record = {**record, "annotations": annotations}
            numbered[name].append(record)
    return numbered


def annotation_fingerprint(sets: Mapping[str, Sequence[Record]]) -> str:
    """Tell the annotations of training sets from any others, also from as many with other noise.

    Counted are name of the set, image id, position, number, class and box of every annotation that
    is not a crowd; boxes to hundredths of a pixel, finer than which machines may differ.

    Args:
        sets: {dataset name: dataset dicts}, from :func:`number_annotations`

    Returns:
        64 hexadecimal digits, a SHA-256

    Example:
        >>> cat = {"annotation_id": 0, "category_id": 3, "bbox": [1, 2, 8, 9]}
        >>> sets = {"pets": [{"image_id": 7, "annotations": [cat]}]}
        >>> noisy = {"pets": [{"image_id": 7, "annotations": [{**cat, "category_id": 4}]}]}
        >>> annotation_fingerprint(sets) == annotation_fingerprint(noisy)
        False
    """
    digest = hashlib.sha256()
    for name, records in sets.items():
        for record in records:
            for index, a in enumerate(record.get("annotations", ())):
                if not a.get("iscrowd", 0):
                    # + 0.0: no -0.0, which is written otherwise than 0.0.
                    box = [round(float(x), 2) + 0.0 for x in a["bbox"]]
                    where = name, str(record["image_id"]), index, int(a["annotation_id"])
                    digest.update(repr((*where, int(a["category_id"]), box)).encode())
    return digest.hexdigest()


class AnnotationIdMapper:
    """Call a mapper and add ``gt_annotation_ids``, int64 (N,), to the ``instances`` it makes.

    detectron2's :func:`annotations_to_instances` keeps nothing of an annotation but its class, box,
    mask and keypoints. So a number takes the place of the class on the way through the mapper and
    the class is put back afterwards; what the mapper drops or reorders is right too.

    A custom mapper may be wrapped if it passes ``category_id`` on and decides nothing by it:
    one that keeps only some classes would see none.

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
        instances = mapped.get("instances") if isinstance(mapped, dict) else None
        fields = {} if instances is None else instances.get_fields()
        classes = fields.get("gt_classes")
        if (
            instances is None
            or classes is None
            or ((classes < _STAND_INS) | (classes >= _STAND_INS + len(annotations))).any()
        ):
            raise ValueError(
                f"image {record.get('image_id')!r}: {self.mapper} does not pass category_id on to "
                "instances.gt_classes, so annotations cannot be followed through it; do not wrap "
                "it in AnnotationIdMapper"
            )
        # New objects: the mapper may keep what it returned.
        for field, key in (("gt_classes", "category_id"), ("gt_annotation_ids", "annotation_id")):
            values = torch.tensor([a[key] for a in annotations], dtype=torch.int64)
            fields = {**fields, field: values[classes - _STAND_INS]}
        return {**mapped, "instances": Instances(instances.image_size, **fields)}
