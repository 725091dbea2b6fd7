"""Checks that the classes and masks of datasets are those that a detector needs."""

import logging
from collections.abc import Iterable, Sequence
from itertools import product

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import log_first_n

from .formats.annotations import Record
from .images import image_name

__all__ = ["check_classes", "check_masks", "check_test_classes"]


def check_classes(
    name: str, records: Iterable[Record], num_classes: int, key: str, exact: bool = True
) -> None:
    """Refuse a set whose classes a detector does not have.

    A class id of K is background to detectron2's heads, so that it would be trained as that.

    Args:
        name: of the set
        records: its dataset dicts
        num_classes: K of the detector
        key: the config key of K
        exact: whether fewer classes than K are refused too

    Raises:
        ValueError: the class list has another length, or a class id is outside 0..K-1
    """
    classes = MetadataCatalog.get(name).get("thing_classes")
    missing = 0 if classes is None else num_classes - len(classes)
    if missing < 0 or (exact and missing):
        raise ValueError(
            f"{key} is {num_classes}, but dataset {name!r} has {len(classes)} classes "
            f"({_listed(classes)}){_unused(classes, records)}; set it to {len(classes)}"
        )
    for record in records:
        for index, annotation in enumerate(record.get("annotations", ())):
            category = annotation.get("category_id")
            if type(category) is int and 0 <= category < num_classes:
                continue
            where = f"dataset {name!r}, image {record.get('image_id')!r:.80}, annotation {index}"
            if not isinstance(category, int):
                raise ValueError(f"{where}: category_id {category!r:.80} is not a class id")
            if not 0 <= category < num_classes:
                raise ValueError(
                    f"{where}: category_id {category!r:.80} is outside 0..{num_classes - 1}; "
                    f"{key} is {num_classes}"
                )


def check_masks(name: str, records: Iterable[Record], crowds: bool = False) -> None:
    """Refuse a set for ``MODEL.MASK_ON`` that lacks masks: detectron2 ends in a KeyError there.

    Args:
        name: of the set
        records: its dataset dicts
        crowds: whether crowds need a mask, as in COCO's metrics but not in training

    Raises:
        ValueError: an object has no mask
    """
    found = [(r, a) for r in records for a in r.get("annotations") or ()]
    found = [(r, a) for r, a in found if crowds or not a.get("iscrowd")]
    lacking = [r for r, a in found if not a.get("segmentation")]
    if lacking:
        raise ValueError(
            f"MODEL.MASK_ON is True, but {len(lacking)} of {len(found)} objects of dataset "
            f"{name!r} have no segmentation (the first: in image {image_name(lacking[0])!r:.80}); "
            "set it to False, or leave them out of the file"
        )


def check_test_classes(train: Sequence[str], test: Sequence[str]) -> None:
    """Refuse test sets that number classes of the training sets otherwise; warn of other names.

    Raises:
        ValueError: class ids would mean other classes in the test than in training
    """
    for name, other in product(test, train):
        ours, theirs = _class_names(name), _class_names(other)
        if not ours or not theirs or ours == theirs:
            continue
        if any(a in ours and a != b for a, b in zip(theirs, ours)):
            raise ValueError(
                f"datasets {other!r} and {name!r} number their classes in different orders: "
                f"{_listed(theirs)} and {_listed(ours)}"
            )
        differ = [f"{i} is {a!r} and {b!r}" for i, (a, b) in enumerate(zip(theirs, ours)) if a != b]
        message = f"Datasets {other!r} and {name!r} have different names for {len(differ)} class "
        message += f"ids, under which detections are scored: {', '.join(differ[:10])}"
        log_first_n(logging.WARNING, message, key="message", name=__name__)


def _class_names(name: str) -> list[str]:
    known = name in MetadataCatalog
    return list(MetadataCatalog.get(name).get("thing_classes") or ()) if known else []


def _unused(classes: Sequence[str], records: Iterable[Record]) -> str:
    """The part of a message about classes without an annotation."""
    used = {a.get("category_id") for record in records for a in record.get("annotations", ())}
    names = [name for i, name in enumerate(classes) if i not in used]
    return f", {_listed(names)} without any annotation" if used and names else ""


def _listed(names: Sequence[str]) -> str:
    more = f", ... {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + more
