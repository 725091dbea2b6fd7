"""What is in a dataset, as counts and as text."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tabulate import tabulate

from ..data.formats.annotations import Record, corners
from ..data.formats.flaws import MAX_LISTED

__all__ = ["SetReport", "count_annotations", "numbered", "repeats"]


@dataclass
class SetReport:
    """What is in a set.

    Args:
        name: of the set
        classes: {class: [number of annotations, number of images with it]}
        counts: {what: number}
        sizes: {what: (least, median, largest)}, pixels
        notes: what is read by a rule, with its number and the first example
        flaws: what cannot be used
        left_out: what cannot be used either, and a training leaves out
    """

    name: str
    classes: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for people."""
        rows = [[name, *numbers] for name, numbers in self.classes.items()]
        parts = [f"dataset {self.name}"]
        parts.append(tabulate(rows, headers=["class", "annotations", "images"]))
        parts.append(tabulate([[number, what] for what, number in self.counts.items()]))
        sizes = [[what, *numbers] for what, numbers in self.sizes.items()]
        parts.append(tabulate(sizes, headers=["pixels", "least", "median", "largest"]))
        parts += [f"note: {note}" for note in self.notes]
        if self.left_out:
            parts += numbered(f"{len(self.left_out)} left out", self.left_out)
        plural = "" if len(self.flaws) == 1 else "s"
        return "\n".join(parts + numbered(f"{len(self.flaws)} flaw{plural}", self.flaws))


def numbered(title: str, texts: Sequence[str]) -> list[str]:
    """Lines of a list, of which the first are shown."""
    lines = [title + (":" if texts else "")]
    lines += [f"  ({i}) {text}" for i, text in enumerate(texts[:MAX_LISTED], start=1)]
    more = len(texts) - MAX_LISTED
    return [*lines, f"  and {more} more"] if more > 0 else lines


def count_annotations(
    report: SetReport, records: Sequence[Record], classes: Sequence[str] | None
) -> None:
    annotations = [a for record in records for a in record.get("annotations", ())]
    per_class = Counter(a["category_id"] for a in annotations)
    images = Counter(i for r in records for i in {a["category_id"] for a in r["annotations"]})
    names = classes or [str(i) for i in sorted(per_class)]
    report.classes = {name: [per_class[i], images[i]] for i, name in enumerate(names)}
    exact, boxes = 0, 0
    outside = 0
    for record in records:
        found = [(a["category_id"], *corners(a)) for a in record["annotations"]]
        exact += repeats(found)
        boxes += repeats({(category, *box) for category, *box in found}, key=lambda f: f[1:])
        width, height = record.get("width", np.inf), record.get("height", np.inf)
        outside += sum(min(b[1:3]) < 0 or b[3] > width or b[4] > height for b in found)
    report.counts = {
        "images": len(records),
        "images without objects": sum(not r.get("annotations") for r in records),
        "annotations": len(annotations),
        "crowds": sum(bool(a.get("iscrowd", 0)) for a in annotations),
        "difficult objects": sum(bool(a.get("difficult", 0)) for a in annotations),
        "boxes partly outside of their image": outside,
        "copies of another annotation": exact,
        "boxes with two classes": boxes,
    }
    sides = np.array([c for a in annotations for c in _sides(corners(a))]).reshape(-1, 2)
    sizes = np.array([(r["width"], r["height"]) for r in records if "width" in r]).reshape(-1, 2)
    for what, values in (("image", sizes), ("box", sides)):
        for i, side in enumerate(("width", "height")):
            if len(values):
                spread = (values[:, i].min(), np.median(values[:, i]), values[:, i].max())
                report.sizes[f"{what} {side}"] = tuple(map(float, spread))  # type: ignore[assignment]


def _sides(box: Sequence[float]) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def repeats(values: Iterable[Any], key: Any = lambda value: value) -> int:
    """How many values are those of an earlier one."""
    counts = Counter(map(key, values))
    return sum(counts.values()) - len(counts)
