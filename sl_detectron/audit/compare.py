"""Two sets of annotations of the same images: what one lacks, adds, draws or names otherwise.

Shape legend: G given annotations of an image, T true ones; boxes are XYXY in pixels, 0-based edges.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor

from .annotation_sets import AnnotationSet, Corners, MarkedObject
from .files import write_list
from .kinds import KINDS, SAME

__all__ = [
    "Difference",
    "SetComparison",
    "compare_sets",
    "comparison_table",
    "write_comparison",
]

# Below this IoU a box is off.
PLACED = 0.75


@dataclass(frozen=True)
class Difference:
    """One thing that the true set has otherwise.

    Args:
        kind: one of :data:`~sl_detectron.audit.kinds.KINDS`, of the given annotation
        image: name of the image's file without folders and suffix
        iou: of both boxes; 0 where there are not two
        given, true: positions among the annotations of the image; -1 for none
        given_label, true_label: classes; "" for none
        given_bbox, true_bbox: boxes; None for none
    """

    kind: str
    image: str
    iou: float
    given: int = -1
    true: int = -1
    given_label: str = ""
    true_label: str = ""
    given_bbox: Corners | None = None
    true_bbox: Corners | None = None


@dataclass(frozen=True)
class SetComparison:
    """
    Args:
        images: that both sets have, sorted
        only_given, only_true: images that one set has, which are not compared
        num_given, num_true: annotations of the images that both have, without crowds
        num_matched: pairs of annotations of one object
        differences: image by image; a pair may differ by its box and by its class
        num_other: true annotations that are no missing objects since they are of other classes
        other: names of these classes, sorted
    """

    images: tuple[str, ...]
    only_given: tuple[str, ...]
    only_true: tuple[str, ...]
    num_given: int
    num_true: int
    num_matched: int
    differences: tuple[Difference, ...]
    num_other: int = 0
    other: tuple[str, ...] = ()


def compare_sets(
    given: AnnotationSet, true: AnnotationSet, classes: Sequence[str] = (), known: bool = False
) -> SetComparison:
    """Compare a set of annotations with one that is taken for true.

    In each image, pairs with an IoU of at least 0.5 are formed so that the sum of their IoU is
    largest; of equal ones a pair of one class is taken. What is left over in the true set is a
    ``missing_object``; in the given set it is a ``duplicate`` where it overlaps a true box by at
    least 0.5, else ``no_object``. A pair of two classes is a ``wrong_class``, one whose IoU is
    below 0.75 a ``misplaced_box``. What lies by half and more in a crowd region of the other set
    is neither.

    Args:
        given, true: the two sets
        classes: that the given set may have; true objects of others are not missing. () for any
        known: whether the given set is the true one with label noise in memory: then an annotation
            and its origin are a pair, however far the noise moved its box

    Raises:
        ValueError: no image is in both
    """
    images = sorted(given.keys() & true.keys())
    if not images:
        raise ValueError(
            f"the sets have no image in common; the first images are {sorted(given)[:1]} and "
            f"{sorted(true)[:1]}"
        )
    differences: list[Difference] = []
    counts = Counter[str]()
    for image in images:
        mine, its = ([o for o in objects[image] if not o.crowd] for objects in (given, true))
        pairs, overlaps = _pairs(mine, its, _known_pairs(mine, its) if known else [])
        counts.update(given=len(mine), true=len(its), matched=len(pairs))
        differences += _differences(image, mine, its, pairs, overlaps, given[image], true[image])
    other = [d.true_label for d in differences if _is_other(d, classes)]
    differences = [d for d in differences if not _is_other(d, classes)]
    return SetComparison(
        tuple(images),
        tuple(sorted(given.keys() - true.keys())),
        tuple(sorted(true.keys() - given.keys())),
        num_given=counts["given"],
        num_true=counts["true"],
        num_matched=counts["matched"],
        differences=tuple(differences),
        num_other=len(other),
        other=tuple(sorted({*other})),
    )


def _is_other(difference: Difference, classes: Sequence[str]) -> bool:
    is_missing = difference.kind == "missing_object"
    return is_missing and bool(classes) and difference.true_label not in classes


def _boxes(objects: Iterable[MarkedObject]) -> Boxes:
    return Boxes(torch.tensor([o.box for o in objects], dtype=torch.float64).reshape(-1, 4))


def _known_pairs(
    mine: Sequence[MarkedObject], its: Sequence[MarkedObject]
) -> list[tuple[int, int]]:
    """Each annotation with the one that label noise made it from."""
    places: dict[Any, list[int]] = defaultdict(list)
    for j, one in enumerate(its):
        places[one.box, one.label].append(j)
    pairs = []
    for i, one in enumerate(mine):
        if left := places[one.origin or (one.box, one.label)]:
            pairs.append((i, left.pop(0)))
    return pairs


def _pairs(
    mine: Sequence[MarkedObject],
    its: Sequence[MarkedObject],
    known: Sequence[tuple[int, int]] = (),
) -> tuple[list[tuple[int, int]], Tensor]:
    overlaps = pairwise_iou(_boxes(mine), _boxes(its)).double()
    same = torch.tensor([[a.label == b.label for b in its] for a in mine]).reshape(overlaps.shape)
    worth = torch.where(overlaps >= SAME, overlaps + 1e-6 * same, 0.0)
    for i, j in known:
        worth[i], worth[:, j] = 0.0, 0.0
    rows, columns = linear_sum_assignment(worth.numpy(), maximize=True)
    found = [(int(i), int(j)) for i, j in zip(rows, columns) if worth[i, j] > 0]
    return sorted([*known, *found]), overlaps


def _differences(
    image: str,
    mine: Sequence[MarkedObject],
    its: Sequence[MarkedObject],
    pairs: Sequence[tuple[int, int]],
    overlaps: Tensor,
    all_mine: Sequence[MarkedObject],
    all_its: Sequence[MarkedObject],
) -> list[Difference]:
    found = []
    for i, j in pairs:
        both = {**_side("given", mine[i]), **_side("true", its[j])}
        iou = round(float(overlaps[i, j]), 4)
        if mine[i].label != its[j].label:
            found.append(Difference("wrong_class", image, iou, **both))
        if overlaps[i, j] < PLACED:
            found.append(Difference("misplaced_box", image, iou, **both))
    left = sorted({*range(len(mine))} - {i for i, _ in pairs})
    for i, crowded in zip(left, _crowded([mine[i] for i in left], all_its)):
        repeats = len(its) > 0 and bool(overlaps[i].max() >= SAME)
        if repeats or not crowded:
            kind = "duplicate" if repeats else "no_object"
            found.append(Difference(kind, image, 0.0, **_side("given", mine[i])))
    left = sorted({*range(len(its))} - {j for _, j in pairs})
    for j, crowded in zip(left, _crowded([its[j] for j in left], all_mine)):
        if not crowded:
            found.append(Difference("missing_object", image, 0.0, **_side("true", its[j])))
    return found


def _crowded(objects: Sequence[MarkedObject], others: Sequence[MarkedObject]) -> list[bool]:
    """Whether each object lies by half and more in a crowd region of the other set."""
    crowds = [o for o in others if o.crowd]
    if not crowds or not objects:
        return [False] * len(objects)
    covered = pairwise_ioa(_boxes(crowds), _boxes(objects)).amax(dim=0) >= SAME
    return [bool(x) for x in covered]


def _side(side: str, one: MarkedObject) -> dict[str, Any]:
    return {side: one.place, f"{side}_label": one.label, f"{side}_bbox": one.box}


def comparison_table(comparison: SetComparison) -> str:
    """A text table of what differs."""
    c, counts = comparison, Counter(d.kind for d in comparison.differences)
    of = {"missing_object": (c.num_true, "true annotations"),
          "misplaced_box": (c.num_matched, "matched pairs"),
          "wrong_class": (c.num_matched, "matched pairs")}  # fmt: skip
    rows = []
    for kind in KINDS:
        total, what = of.get(kind, (c.num_given, "given annotations"))
        share = f"{100 * counts[kind] / max(total, 1):.1f} %"
        rows.append([kind, counts[kind], share, f"of {total} {what}"])
    lines = [
        f"{len(c.images)} images in both sets; {c.num_given} given and {c.num_true} true "
        f"annotations, {c.num_matched} matched by IoU {SAME}; a box is off below {PLACED}",
        tabulate(rows, ["kind", "number", "share", ""], disable_numparse=True),
    ]
    if c.num_other:
        names = ", ".join(map(repr, c.other[:3])) + (", ..." if len(c.other) > 3 else "")
        lines.append(
            f"{c.num_other} unmatched true annotations are of classes that the given set does not "
            f"have, {names}, and do not count as missing"
        )
    for images, which in ((c.only_given, "given"), (c.only_true, "true")):
        if images:
            lines.append(f"{len(images)} images are in the {which} set only, as {images[0]!r}")
    return "\n".join(lines)


def write_comparison(comparison: SetComparison, folder: str | os.PathLike) -> None:
    """Write ``differences.json`` and ``differences.csv`` into a folder."""
    head = {key: value for key, value in asdict(comparison).items() if key != "differences"}
    rows = [asdict(d) for d in comparison.differences]
    columns = [f.name for f in fields(Difference) if "bbox" not in f.name]
    boxes = {"given_bbox": "given_", "true_bbox": "true_"}
    write_list(Path(folder, "differences.json"), head, "differences", rows, columns, boxes)
