"""What an evaluation found, as numbers, table and plain data for json."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from .average_precision import ClassResult

__all__ = ["ABSENT_CLASSES", "VOCResult"]

# What a class without ground truth does to the mean.
ABSENT_CLASSES = ("skip", "zero")


@dataclass(frozen=True)
class VOCResult:
    """AP and recall of every class at every overlap threshold.

    Args:
        class_names: C names
        thresholds: T overlaps, fraction
        metric: "07" or "area"
        classes: C results
        absent_classes: "skip" leaves classes without ground truth out of the means; "zero" counts
            them as 0, as detectron2 does
    """

    class_names: Sequence[str]
    thresholds: Sequence[float]
    metric: str
    classes: Sequence[ClassResult]
    absent_classes: str = "skip"

    def __post_init__(self) -> None:
        if self.absent_classes not in ABSENT_CLASSES:
            raise ValueError(
                f"absent_classes must be one of {ABSENT_CLASSES}; got {self.absent_classes!r}"
            )

    @property
    def absent(self) -> list[str]:
        """Names of the classes of which the set holds no object, or difficult ones only."""
        return [n for n, c in zip(self.class_names, self.classes) if not c.num_objects]

    def mean_ap(self) -> dict[int, float]:
        """Return {threshold in percent: mean AP over classes, percent}."""
        counted = [c for c in self.classes if c.num_objects or self.absent_classes == "zero"]
        # One mean per threshold, over a row of its own: numpy sums a column of a table in another
        # order, and the last bit would differ from detectron2's.
        rows = np.array([c.ap * 100 for c in counted]).T.copy()
        means = [float(np.mean(row)) for row in rows] or [float("nan")] * len(self.thresholds)
        return {round(t * 100): mean for t, mean in zip(self.thresholds, means)}

    def summary(self) -> dict[str, float]:
        """Return AP (mean over the thresholds), AP50 and AP75 of all classes, percent."""
        means = self.mean_ap()
        return {"AP": float(np.mean(list(means.values()))), "AP50": means[50], "AP75": means[75]}

    def per_class(self) -> dict[str, dict[str, Any]]:
        """Return {class: what it scored}, percent; AP and recall of an absent class are None."""
        percents = [round(t * 100) for t in self.thresholds]
        table = {}
        for name, result in zip(self.class_names, self.classes):
            present = result.num_objects > 0
            ap = {p: float(a * 100) if present else None for p, a in zip(percents, result.ap)}
            recall = {
                p: float(r * 100) if present else None for p, r in zip(percents, result.max_recall)
            }
            table[name] = {
                "AP": float(np.mean(result.ap * 100)) if present else None,
                "AP50": ap[50],
                "AP75": ap[75],
                "recall50": recall[50],
                "AP_by_iou": ap,
                "recall_by_iou": recall,
                "num_objects": result.num_objects,
                "num_detections": result.num_detections,
            }
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the curves as plain data; values that are not defined are None."""
        summary = {k: None if np.isnan(v) else v for k, v in self.summary().items()}
        return {**summary, "metric": self.metric, "per_class": self.per_class()}

    def table(self) -> str:
        """Return a table of the classes and their mean."""
        keys = ("num_objects", "num_detections", "AP", "AP50", "AP75", "recall50")
        rows = [[name, *(row[k] for k in keys)] for name, row in self.per_class().items()]
        total = [sum(row[i] for row in rows) for i in (1, 2)]
        rows.append(["mean", *total, *self.summary().values(), None])
        return tabulate(
            rows,
            headers=["class", "objects", "detections", "AP", "AP50", "AP75", "recall50"],
            floatfmt=".2f",
            missingval="-",
            disable_numparse=[0],
        )
