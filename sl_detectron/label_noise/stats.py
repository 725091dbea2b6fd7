"""What label noise did to a dataset: realised rates, confusion matrix, a test of uniformity.

Shapes: K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..data.formats.changes import CHANGES, Change

__all__ = [
    "NoiseStatistics",
    "noise_statistics",
    "plot_confusion",
    "statistics_table",
    "uniformity_test",
]


@dataclass(frozen=True)
class NoiseStatistics:
    """Counts of clean against noisy annotations, without crowd regions.

    Args:
        confusion: (K + 1, K + 1) int64; [clean class, noisy class], row K: spurious boxes,
            column K: missing annotations
        counts: {"label", "box", "missing" or "spurious": number of such changes}
    """

    confusion: np.ndarray
    counts: dict[str, int]

    @property
    def num_annotations(self) -> int:
        """Number of clean annotations."""
        return int(self.confusion[:-1].sum())

    @property
    def label_rate(self) -> float:
        """Fraction of the clean annotations whose class became another."""
        return self.counts["label"] / max(self.num_annotations, 1)

    @property
    def label_rate_per_class(self) -> np.ndarray:
        """(K,) float64: the same for each clean class; nan for a class without annotations."""
        labels = self.confusion[:-1, :-1]
        total = self.confusion[:-1].sum(axis=1)
        wrong = labels.sum(axis=1) - labels.diagonal()
        with np.errstate(invalid="ignore"):
            return wrong / total


def noise_statistics(
    records: Iterable[dict[str, Any]], changes: Iterable[Change], num_classes: int
) -> NoiseStatistics:
    """Count what :func:`~sl_detectron.label_noise.inject` changed in the clean records of a set.

    Example:
        >>> records = [{"image_id": 1, "annotations": [{"category_id": 0}, {"category_id": 1}]}]
        >>> statistics = noise_statistics(records, [Change(1, 0, "label", 0, 1)], num_classes=2)
        >>> statistics.label_rate
        0.5
        >>> statistics.confusion.tolist()
        [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    """
    confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    classes = [
        a["category_id"] for r in records for a in r["annotations"] if not a.get("iscrowd", 0)
    ]
    counted = np.bincount(np.array(classes, dtype=np.int64), minlength=num_classes + 1)
    np.fill_diagonal(confusion, counted)
    counts = dict.fromkeys(CHANGES, 0)
    for change in changes:
        counts[change.what] += 1
        if change.what == "spurious":
            confusion[num_classes, change.new["category_id"]] += 1
        elif change.what != "box":
            is_label = change.what == "label"
            old = change.old if is_label else change.old["category_id"]
            confusion[old, old] -= 1
            confusion[old, change.new if is_label else num_classes] += 1
    return NoiseStatistics(confusion, counts)


def uniformity_test(confusion: np.ndarray) -> tuple[float, int, float]:
    """Pearson's chi-square test that every wrong class is equally likely, given the true one.

    X^2 = sum_ij (O_ij - O_i / (K - 1))^2 / (O_i / (K - 1)), j != i, O_i = sum_j!=i O_ij

    Args:
        confusion: (K, K) counts, [true class, noisy class]; the diagonal is left out

    Returns:
        X^2, its degrees of freedom, and the probability of at least this X^2 under uniformity

    Raises:
        ValueError: there are fewer than 3 classes, where nothing is left to chance

    Example:
        >>> uniformity_test(np.array([[9, 6, 2], [4, 9, 4], [0, 0, 9]]))
        (2.0, 2, 0.367...)
    """
    num_classes = len(confusion)
    if num_classes < 3:
        raise ValueError(f"the uniformity test needs at least 3 classes; got {num_classes}")
    wrong = confusion[~np.eye(num_classes, dtype=bool)].reshape(num_classes, num_classes - 1)
    wrong = wrong[wrong.any(axis=1)]
    if len(wrong) == 0:
        return 0.0, 0, 1.0
    # scipy takes half a second to import and only this test needs it.
    from scipy.stats import chisquare

    expected = np.broadcast_to(wrong.mean(axis=1, keepdims=True), wrong.shape)
    # Each row's sum is given; scipy takes off one for all of them itself.
    test = chisquare(wrong, expected, ddof=len(wrong) - 1, axis=None)
    return float(test.statistic), len(wrong) * (num_classes - 2), float(test.pvalue)


def statistics_table(statistics: NoiseStatistics, class_names: Sequence[str]) -> str:
    """Return a text table: annotations, wrong, missing and spurious labels of every class."""
    confusion = statistics.confusion
    total = confusion[:-1].sum(axis=1)
    wrong = total - confusion.diagonal()[:-1] - confusion[:-1, -1]
    columns = zip(class_names, total, wrong, confusion[:-1, -1], confusion[-1, :-1])
    rows = [[*row, rate] for row, rate in zip(columns, statistics.label_rate_per_class)]
    counts = statistics.counts
    overall = [counts["label"], counts["missing"], counts["spurious"], statistics.label_rate]
    rows.append(["total", statistics.num_annotations, *overall])
    headers = ["class", "annotations", "wrong label", "missing", "spurious", "wrong / annotations"]
    return tabulate(rows, headers=headers, floatfmt=".4f", tablefmt="pipe")


def plot_confusion(
    statistics: NoiseStatistics, class_names: Sequence[str], path: str | Path
) -> None:
    """Write the confusion matrix as a PNG: share of each clean class, in percent."""
    # matplotlib takes a second to import and only this picture needs it; Figure, unlike pyplot,
    # leaves the user's backend alone.
    from matplotlib.figure import Figure

    counts = statistics.confusion[:-1].astype(float)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    num_rows, num_columns = percent.shape
    side = 2.5 + 0.35 * num_columns
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="viridis", vmin=0, vmax=100)
    axes.set_xticks(range(num_columns), [*class_names, "missing"], rotation=90)
    axes.set_yticks(range(num_rows), class_names)
    axes.set_xlabel("noisy label")
    axes.set_ylabel("clean label")
    if num_rows <= 30:
        for row, column in np.argwhere(percent >= 0.5):
            value = percent[row, column]
            color = "black" if value > 60 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, size=7)
    figure.colorbar(image, label="% of the clean class", shrink=0.7)
    axes.set_title(f"{100 * statistics.label_rate:.1f} % of labels are wrong")
    figure.savefig(path, dpi=120)
