"""Label noise as a pure function of the dataset: the same noise on every epoch, worker and rank.

Whether and how an annotation changes depends on one hash of (kind of noise, seed, dataset name,
image id, index of the annotation in its image). No generator runs, so nothing depends on the order
of the set, on ``PYTHONHASHSEED`` or on numpy's version; in the Bernoulli mode nothing depends on
which other images there are.

Crowd regions (``iscrowd`` 1) are never changed and do not count in a rate: training skips them.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from struct import Struct

from ..data.formats.annotations import Annotation, Record, corners, from_corners, make_spurious
from ..data.formats.changes import Change, apply_change, compare, order
from .noises import DRAWS_PER_ANNOTATION, Noise

__all__ = ["NOISE_KEY", "apply_changes", "inject"]

# The key of a record for the source of its noise.
NOISE_KEY = "label_noise"

_DRAWS = Struct(f"<{DRAWS_PER_ANNOTATION}Q")
# An image's annotations, None for one that is left out; added ones follow.
_Slots = list[Annotation | None]


def inject(
    records: Sequence[Record],
    noises: Sequence[Noise],
    num_classes: int,
    dataset_name: str = "",
) -> tuple[list[Record], list[Change]]:
    """Put noise into dataset dicts; each noise works on what the ones before it left.

    Noisy annotations keep everything else they carry (masks, keypoints, crowd flags). Where the
    class changed they also carry ``true_category_id`` (K for a spurious box), where the box
    changed ``true_bbox``. Without any noise of a rate above 0 the records come back as they are.

    Args:
        records: detectron2 dataset dicts of one dataset, clean; never changed
        noises: applied in this order
        num_classes: K; class ids are 0..K-1, background is never drawn
        dataset_name: part of every annotation's hash, as are its image id and its index

    Returns:
        the noisy records in the same order, and what changed, sorted by image id and index

    Raises:
        ValueError: a record is noisy already, lacks annotations or a size that a noise needs, an
            image id comes twice, a class id is outside the list, or a noise does not fit the
            class list

    Example:
        >>> record = {"image_id": "a", "annotations": [{"category_id": c} for c in range(3)]}
        >>> from sl_detectron.label_noise import SymmetricNoise
        >>> noisy, changes = inject([record], [SymmetricNoise(rate=1.0)], num_classes=3)
        >>> any(a["category_id"] == b for b, a in enumerate(noisy[0]["annotations"]))
        False
        >>> [change.old for change in changes], [a["category_id"] for a in record["annotations"]]
        ([0, 1, 2], [0, 1, 2])
    """
    active = [noise for noise in noises if noise.rate > 0]
    if not active:
        return list(records), []
    _check(records, active, num_classes, dataset_name)
    slots: list[_Slots] = [list(r["annotations"]) for r in records]
    for noise in active:
        limit = _limit(noise, records, slots, dataset_name)
        for record, annotations in zip(records, slots):
            added: _Slots = []
            for index, old, draws in _candidates(noise, record, annotations, dataset_name):
                if draws[0] >= limit * noise.weight_of(old):
                    continue
                size = (record.get("height", 0), record.get("width", 0))
                new = noise.corrupt(old, draws[1:], size, num_classes)
                if noise.adds and new is not None:
                    # The fields of the clean first annotation, whichever was hit: a file and a
                    # replayed manifest know no other.
                    first = record["annotations"][0]
                    box = from_corners(corners(new), first["bbox_mode"])
                    added.append(make_spurious(first, new["category_id"], box))
                else:
                    annotations[index] = new
            annotations += added
    origin = ", ".join(f"{n.kind} {n.rate} {n.mode}, seed {n.seed}" for n in active)
    return _finish(records, slots, num_classes, f"{dataset_name}: {origin}")


def apply_changes(
    records: Sequence[Record],
    changes: Sequence[Change],
    num_classes: int,
    dataset_name: str = "",
) -> tuple[list[Record], list[Change]]:
    """As :func:`inject` with the changes that it returned, say from a manifest.

    Raises:
        ValueError: as :func:`inject`, or a change is of an image or annotation that the records
            do not have or have with another class or box
    """
    _check(records, (), num_classes, dataset_name)
    position = {str(record["image_id"]): i for i, record in enumerate(records)}
    slots: list[_Slots] = [list(r["annotations"]) for r in records]
    for change in sorted(changes, key=order):
        if str(change.image_id) not in position:
            raise ValueError(f"{change}: the dataset has no image {change.image_id!r}")
        i = position[str(change.image_id)]
        apply_change(change, slots[i], records[i]["annotations"])
    return _finish(records, slots, num_classes, f"{len(changes)} recorded changes")


def _check(
    records: Sequence[Record], noises: Sequence[Noise], num_classes: int, dataset_name: str
) -> None:
    for noise in noises:
        noise.check_classes(num_classes)
        if sum((noise.kind, noise.seed) == (n.kind, n.seed) for n in noises) > 1:
            raise ValueError(
                f"two {noise.kind} noises share seed {noise.seed}: they would change the same boxes"
            )
    seen = set()
    sized = [noise.kind for noise in noises if noise.uses_size]
    for record in records:
        where = f"dataset {dataset_name!r}"
        if "image_id" not in record:
            raise ValueError(f"{where}: a record has no image_id, which label noise needs")
        where += f", image {str(record['image_id'])!r}"
        if "annotations" not in record:
            raise ValueError(f"{where} has no annotations; label noise needs a list, even if []")
        if NOISE_KEY in record:
            raise ValueError(f"{where} already has noise: {record[NOISE_KEY]}")
        if str(record["image_id"]) in seen:
            raise ValueError(f"{where} occurs twice: noise is drawn per image id")
        seen.add(str(record["image_id"]))
        for key in ("height", "width"):
            if sized and record["annotations"] and not (record.get(key) or 0) > 0:
                raise ValueError(f"{where} has no {key}, which {sized[0]} noise needs, in pixels")
        for index, annotation in enumerate(record["annotations"]):
            category = annotation["category_id"]
            if not 0 <= category < num_classes:
                what = f"category_id {category!r} is outside 0..{num_classes - 1}"
                raise ValueError(f"{where}, annotation {index}: {what}")


def _candidates(
    noise: Noise, record: Record, annotations: _Slots, dataset_name: str
) -> Iterator[tuple[int, Annotation, tuple[int, ...]]]:
    """Yield index, content and draws of every annotation that the noise may hit."""
    # JSON tells where one part ends and the next begins; strings alone are encoded fast.
    parts = (json.dumps(noise.kind), f"{noise.seed:d}", json.dumps(dataset_name))
    image = f"[{', '.join(parts)}, {json.dumps(str(record['image_id']))}]"
    of_image = blake2b(image.encode(), digest_size=_DRAWS.size)
    for index, annotation in enumerate(annotations):
        if annotation is None or annotation.get("iscrowd", 0) or not noise.applies_to(annotation):
            continue
        hashed = of_image.copy()
        hashed.update(b"%d" % index)
        yield index, annotation, _DRAWS.unpack(hashed.digest())


def _limit(
    noise: Noise, records: Sequence[Record], slots: Sequence[_Slots], dataset_name: str
) -> int:
    """Return the bound below which an annotation's first draw means that it is hit."""
    if noise.mode == "bernoulli":
        return int(noise.rate * 2.0**64)
    decisions = sorted(
        draws[0]
        for record, annotations in zip(records, slots)
        for _, _, draws in _candidates(noise, record, annotations, dataset_name)
    )
    count = round(noise.rate * len(decisions))
    return decisions[count - 1] + 1 if count else 0


def _finish(
    records: Sequence[Record], slots: Sequence[_Slots], num_classes: int, origin: str
) -> tuple[list[Record], list[Change]]:
    noisy_records, changes = [], []
    for record, annotations in zip(records, slots):
        noisy, found = compare(record, annotations, num_classes)
        noisy_records.append({**record, "annotations": noisy, NOISE_KEY: origin})
        changes += found
    return noisy_records, sorted(changes, key=order)
