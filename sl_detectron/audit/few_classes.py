"""Class distributions of many annotations by their few largest entries, whatever K.

Shape legend: A annotations, K classes, C classes that are kept of each annotation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MAX_DENSE",
    "NUM_KEPT",
    "Distributions",
    "FewClasses",
    "blocks",
    "dense",
    "in_rows",
    "joined",
    "seen_rows",
]

# With more classes, a row of all of them would take more than the 128 bytes of a compact one.
MAX_DENSE = 22
# Classes that are kept of an annotation beside the given one.
NUM_KEPT = 12
# Entries of a dense block: 64 MB.
_BLOCK = 2**24


@dataclass(frozen=True)
class FewClasses:
    """Distributions over K classes: C of them with a value each, the others share one.

    Args:
        classes: (A, C) int64, no class twice in a row unless its second value is 0
        values: (A, C) probabilities
        rest: (A,) probability of each class that is not among them
        num_classes: K

    Example:
        >>> few = FewClasses.of(torch.tensor([[0.1, 0.6, 0.1, 0.2]]), torch.tensor([0]), num_kept=2)
        >>> few.classes, few.values, few.rest
        (tensor([[0, 1, 3]]), tensor([[0.1000, 0.6000, 0.2000]]), tensor([0.1000]))
        >>> few.dense()
        tensor([[0.1000, 0.6000, 0.1000, 0.2000]])
    """

    classes: Tensor
    values: Tensor
    rest: Tensor
    num_classes: int

    @classmethod
    def of(cls, dense: Tensor, labels: Tensor, num_kept: int = NUM_KEPT) -> "FewClasses":
        """The given classes first, then the most probable others.

        Args:
            dense: (A, K)
            labels: (A,) int64 given classes
            num_kept: of the others
        """
        given = labels[:, None]
        num_kept = min(num_kept, dense.shape[1] - 1)
        values, classes = dense.scatter(1, given, -1.0).topk(num_kept, dim=1)
        classes = torch.cat([given, classes], dim=1)
        values = torch.cat([dense.gather(1, given), values], dim=1)
        others = max(dense.shape[1] - classes.shape[1], 1)
        rest = (dense.sum(dim=1) - values.sum(dim=1)).clamp_min(0) / others
        return cls(classes, values, rest, dense.shape[1])

    @classmethod
    def cat(cls, parts: Sequence["FewClasses"]) -> "FewClasses":
        """The rows of all parts, which have as many columns."""
        return cls(
            torch.cat([part.classes for part in parts]),
            torch.cat([part.values for part in parts]),
            torch.cat([part.rest for part in parts]),
            parts[0].num_classes,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(A, K)"""
        return len(self.classes), self.num_classes

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: Any) -> "FewClasses":
        """Those rows, as a tensor would be indexed by its first dimension."""
        columns = (self.classes[rows], self.values[rows], self.rest[rows])
        return FewClasses(*columns, self.num_classes)

    def to(self, device: torch.device | str) -> "FewClasses":
        """On another device."""
        columns = (self.classes.to(device), self.values.to(device), self.rest.to(device))
        return FewClasses(*columns, self.num_classes)

    def cpu(self) -> "FewClasses":
        """On the host."""
        return self.to("cpu")

    def dense(self) -> Tensor:
        """(A, K); see :func:`blocks` for many rows."""
        whole = self.rest[:, None].repeat(1, self.num_classes)
        # A class that comes twice has its value first and 0 afterwards.
        whole.scatter_(1, self.classes, 0.0)
        return whole.scatter_add_(1, self.classes, self.values)

    def at(self, classes: Tensor) -> Tensor:
        """(A, N) values of (A, N) classes."""
        found = self.rest[:, None].repeat(1, classes.shape[1])
        for column in reversed(range(self.classes.shape[1])):
            same = classes == self.classes[:, column : column + 1]
            found = torch.where(same, self.values[:, column : column + 1], found)
        return found

    def gather(self, dim: int, index: Tensor) -> Tensor:
        """As of a tensor, along the classes."""
        return self.at(index)

    def topk(self, k: int, dim: int = 1) -> tuple[Tensor, Tensor]:
        """As of a tensor, along the classes; what is not kept is never among them."""
        values, columns = self.values.topk(k, dim=1)
        return values, self.classes.gather(1, columns)

    def mean_over_rows(self) -> Tensor:
        """(K,) mean distribution; rows of nan do not count."""
        seen = self[~self.rest.isnan()]
        sums = torch.zeros(self.num_classes, dtype=torch.float64, device=self.device)
        excess = (seen.values - seen.rest[:, None]).double()
        sums.index_add_(0, seen.classes.flatten(), excess.flatten())
        return ((sums + seen.rest.double().sum()) / max(len(seen), 1)).to(self.values)


# (A, K) class distributions: all entries, or the largest.
Distributions = Tensor | FewClasses


def dense(distributions: Distributions) -> Tensor:
    """(A, K) as a tensor."""
    return distributions.dense() if isinstance(distributions, FewClasses) else distributions


def blocks(distributions: Distributions, size: int = _BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows as dense tensors: all at once if they are dense, else some at a time.

    Args:
        distributions: (A, K)
        size: entries of a block, about
    """
    if isinstance(distributions, Tensor):
        yield slice(0, len(distributions)), distributions
        return
    step = max(size // distributions.num_classes, 1)
    for start in range(0, len(distributions), step):
        rows = slice(start, start + step)
        yield rows, distributions[rows].dense()


def joined(parts: Sequence[Distributions]) -> Distributions:
    """The rows of all parts, which are of one form."""
    few = [part for part in parts if isinstance(part, FewClasses)]
    return FewClasses.cat(few) if few else torch.cat([dense(part) for part in parts])


def in_rows(distributions: Distributions, rows: Tensor, labels: Tensor) -> Distributions:
    """Distributions of some annotations among all; the others keep their labels.

    Args:
        distributions: (N, K)
        rows: (N,) int64 of which annotations
        labels: (A,) int64 given classes

    Returns:
        (A, K)
    """
    if isinstance(distributions, Tensor):
        every = F.one_hot(labels, distributions.shape[1]).to(distributions)
        return every.index_copy(0, rows, distributions)
    classes = labels[:, None].repeat(1, distributions.classes.shape[1])
    values = torch.zeros_like(classes, dtype=distributions.values.dtype)
    values[:, 0] = 1.0
    return FewClasses(
        classes.index_copy(0, rows, distributions.classes),
        values.index_copy(0, rows, distributions.values),
        torch.zeros_like(values[:, 0]).index_copy(0, rows, distributions.rest),
        distributions.num_classes,
    )


def seen_rows(distributions: Distributions) -> Tensor:
    """(A,) bool, false for rows of nan: annotations that were never sampled."""
    if isinstance(distributions, FewClasses):
        return ~distributions.rest.isnan()
    return ~distributions.isnan().any(dim=1)
