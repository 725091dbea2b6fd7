"""Differences between clean and noisy annotations: found, and put in again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .annotations import Annotation, Record, image_id_of, make_spurious

__all__ = ["Change", "CHANGES", "compare", "apply_change", "order"]

CHANGES = ("label", "box", "missing", "spurious")
# What a change of an annotation is about; None for the whole of it.
_KEYS = {"label": "category_id", "box": "bbox", "missing": None}


@dataclass(frozen=True)
class Change:
    """One difference between a clean and a noisy annotation.

    Args:
        image_id: of the record
        index: position of the annotation in the clean record; added boxes follow its last one
        what: "label", "box", "missing" or "spurious"
        old: class id, box in the record's own mode, or ``{"category_id", "bbox"}`` of an
            annotation that is missing; None for a spurious one
        new: likewise; None for a missing one
    """

    image_id: str | int
    index: int
    what: str
    old: Any
    new: Any


def compare(
    record: Record, annotations: Sequence[Annotation | None], num_classes: int
) -> tuple[list[Annotation], list[Change]]:
    """Return one image's noisy annotations and its net changes, whatever happened on the way."""
    image_id = image_id_of(record)
    clean = record["annotations"]
    noisy: list[Annotation] = []
    changes: list[Change] = []
    for index, (old, new) in enumerate(zip(clean, annotations)):
        if new is old:
            noisy.append(new)
            continue
        if new is None:
            changes.append(Change(image_id, index, "missing", _summary(old), None))
            continue
        truth = {}
        if new["category_id"] != old["category_id"]:
            changes.append(Change(image_id, index, "label", _class(old), _class(new)))
            truth["true_category_id"] = old["category_id"]
        if "bbox" in old and _box(new) != _box(old):
            changes.append(Change(image_id, index, "box", _box(old), _box(new)))
            truth["true_bbox"] = old["bbox"]
        noisy.append({**new, **truth} if truth else new)
    added = [annotation for annotation in annotations[len(clean) :] if annotation is not None]
    for index, annotation in enumerate(added, start=len(clean)):
        changes.append(Change(image_id, index, "spurious", None, _summary(annotation)))
        noisy.append({**annotation, "true_category_id": num_classes})
    return noisy, changes


def apply_change(
    change: Change, annotations: list[Annotation | None], clean: Sequence[Annotation]
) -> None:
    """Carry out one recorded change on the annotations of its image, in place."""
    if change.what == "spurious":
        if not clean:
            raise ValueError(f"{change}: the image has no annotation to tell the box mode from")
        if change.index != len(annotations):
            raise ValueError(f"{change}: the next spurious annotation is number {len(annotations)}")
        annotations.append(make_spurious(clean[0], **change.new))
        return
    if change.what not in _KEYS:
        raise ValueError(f"{change}: what must be one of {CHANGES}")
    if not 0 <= change.index < len(clean):
        raise ValueError(f"{change}: the image has only {len(clean)} annotations")
    old, now, key = clean[change.index], annotations[change.index], _KEYS[change.what]
    if now is None:
        raise ValueError(f"{change}: an earlier change left this annotation out")
    found = {"label": _class, "box": _box, "missing": _summary}[change.what](old)
    if found != change.old:
        raise ValueError(f"{change}: the dataset has {found!r} there; it is not the same set")
    annotations[change.index] = {**now, key: change.new} if key else None


def order(change: Change) -> tuple[str, int, str]:
    """Key that sorts changes by image, annotation and kind."""
    return str(change.image_id), change.index, change.what


def _class(annotation: Annotation) -> int:
    return int(annotation["category_id"])


def _box(annotation: Annotation) -> list[float]:
    return [float(x) for x in annotation["bbox"]]


def _summary(annotation: Annotation) -> dict[str, Any]:
    return {"category_id": _class(annotation), "bbox": _box(annotation)}
