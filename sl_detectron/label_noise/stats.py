"""What label noise did to a data set: realised rates, confusion matrix, a test of uniformity.

Shapes: K classes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from ..data.formats.changes import CHANGES, Change

__all__ = ["NoiseStatistics", "noise_statistics", "uniformity_test", "statistics_table"]


@dataclass(frozen=True)
class NoiseStatistics:
    """Counts of clean against noisy annotations, without crowd regions.

    Args:
        confusion: (K + 1, K + 1) int64; [clean class, noisy class], row K: spurious boxes,
            column K: missing annotations
        counts: how many changes there are of each kind: label, box, missing, spurious
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
        rates: np.ndarray = np.full(len(total), np.nan)
        return np.divide(wrong, total, out=rates, where=total > 0)


def noise_statistics(
    records: Iterable[dict[str, Any]], changes: Iterable[Change], num_classes: int
) -> NoiseStatistics:
    """Compare a clean set with its noisy form.

    Args:
        records: the clean dataset dicts
        changes: of these records, as :func:`~sl_detectron.label_noise.inject` returns them
        num_classes: K

    Example:
        >>> records = [{"image_id": 1, "annotations": [{"category_id": 0}, {"category_id": 1}]}]
        >>> statistics = noise_statistics(records, [Change(1, 0, "label", 0, 1)], num_classes=2)
        >>> statistics.label_rate
        0.5
        >>> statistics.confusion.tolist()
        [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    """
    clean = Counter(
        annotation["category_id"]
        for record in records
        for annotation in record["annotations"]
        if not annotation.get("iscrowd", 0)
    )
    confusion = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for category_id, count in clean.items():
        confusion[category_id, category_id] = count
    counts = dict.fromkeys(CHANGES, 0)
    for change in changes:
        counts[change.what] += 1
        if change.what == "label":
            confusion[change.old, change.old] -= 1
            confusion[change.old, change.new] += 1
        elif change.what == "missing":
            confusion[change.old["category_id"], change.old["category_id"]] -= 1
            confusion[change.old["category_id"], num_classes] += 1
        elif change.what == "spurious":
            confusion[num_classes, change.new["category_id"]] += 1
    return NoiseStatistics(confusion, counts)


def uniformity_test(confusion: np.ndarray) -> tuple[float, int, float]:
    """Pearson's chi-square test that every wrong class is equally likely, given the true one.

    X^2 = sum_ij (O_ij - O_i / (K - 1))^2 / (O_i / (K - 1)), j != i, O_i = sum_j!=i O_ij

    Args:
        confusion: (K, K) counts, [true class, noisy class]; the diagonal is not looked at

    Returns:
        X^2, its degrees of freedom, and the probability of at least this X^2 under uniformity

    Raises:
        ValueError: if there are fewer than 3 classes, where nothing is left to chance

    Example:
        >>> uniformity_test(np.array([[9, 6, 2], [4, 9, 4], [0, 0, 9]]))
        (2.0, 2, 0.367...)
    """
    num_classes = len(confusion)
    if num_classes < 3:
        raise ValueError(f"the uniformity test needs at least 3 classes; got {num_classes}")
    wrong = confusion[~np.eye(num_classes, dtype=bool)].reshape(num_classes, num_classes - 1)
    wrong = wrong[wrong.sum(axis=1) > 0]
    expected = wrong.sum(axis=1, keepdims=True) / (num_classes - 1)
    statistic = float(((wrong - expected) ** 2 / expected).sum())
    dof = len(wrong) * (num_classes - 2)
    if dof == 0:
        return 0.0, 0, 1.0
    half = torch.tensor([dof / 2, statistic / 2], dtype=torch.float64)
    return statistic, dof, float(torch.special.gammaincc(half[0], half[1]))


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
