"""What a noise is, and the noises that change classes.

A noise is a frozen description: which share of the annotations, which seed, what happens to them.
It owns no generator. Every annotation has its own row of 64-bit draws, hashed from what it is, so
neither its neighbours nor the order of the set can change its noise.

Shapes: K classes; one row of draws is (D,) integers in [0, 2^64).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..data.formats.annotations import Annotation

__all__ = [
    "Noise",
    "SymmetricNoise",
    "AsymmetricNoise",
    "MODES",
    "DRAWS_PER_ANNOTATION",
    "Draws",
    "ImageSize",
    "below",
    "fraction",
]

MODES = ("bernoulli", "exact")
# One decision, and at most four numbers for a box.
DRAWS_PER_ANNOTATION = 5

Draws = Sequence[int]
ImageSize = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What all noises share.

    Args:
        rate: fraction of the annotations in [0, 1]
        seed: any integer; it and the data set's name decide which annotations are hit
        mode: "bernoulli", every annotation decided by its own draw, or "exact", the
            round(rate * n) annotations of the whole set with the smallest draws

    Raises:
        ValueError: if a value is out of range
    """

    kind: ClassVar[str]
    # Whether `corrupt` gives one more annotation instead of a replacement.
    adds: ClassVar[bool] = False
    # Whether `corrupt` needs the image's height and width.
    uses_size: ClassVar[bool] = False

    rate: float
    seed: int = 0
    mode: str = "bernoulli"

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate of {self.kind} noise must be in [0, 1]; got {self.rate!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed of {self.kind} noise must be an integer; got {self.seed!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode of {self.kind} noise must be one of {MODES}; got {self.mode!r}")

    def check_classes(self, num_classes: int) -> None:
        """Raise ValueError if this noise has no meaning for a list of K classes."""

    def applies_to(self, annotation: Annotation) -> bool:
        """Whether the annotation can be hit, and counts in n of the exact mode."""
        return True

    def corrupt(
        self, annotation: Annotation, draws: Draws, size: ImageSize, num_classes: int
    ) -> Annotation | None:
        """Return the noisy form of one annotation that was hit.

        Args:
            annotation: detectron2 annotation; not changed
            draws: at least four integers, uniform in [0, 2^64)
            size: (height, width) of the image in pixels; (0, 0) unless ``uses_size``
            num_classes: K

        Returns:
            the annotation that takes its place (or comes beside it, where ``adds``), None to
            leave it out
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SymmetricNoise(Noise):
    """Replace the class by another, each equally likely; background is never drawn.

    Args:
        include_true: draw from all K classes instead of the K - 1 wrong ones, so that only
            ``rate * (K - 1) / K`` of the labels become wrong
    """

    kind: ClassVar[str] = "symmetric"
    include_true: bool = False

    def check_classes(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ValueError(
                f"symmetric noise needs at least 2 classes to choose from; got {num_classes}"
            )

    def corrupt(
        self, annotation: Annotation, draws: Draws, size: ImageSize, num_classes: int
    ) -> Annotation | None:
        true = annotation["category_id"]
        if self.include_true:
            return {**annotation, "category_id": below(num_classes, draws[0])}
        wrong = below(num_classes - 1, draws[0])
        return {**annotation, "category_id": wrong + (wrong >= true)}


@dataclass(frozen=True, kw_only=True)
class AsymmetricNoise(Noise):
    """Replace the class by one it is often mistaken for.

    Args:
        confusion: {class id: {other class id: probability}}; the probabilities of a class sum to
            1, and a class that is not a key keeps its labels and does not count in the rate
    """

    kind: ClassVar[str] = "asymmetric"
    confusion: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.confusion:
            raise ValueError("asymmetric noise needs a confusion map; got an empty one")
        for true, row in self.confusion.items():
            if true in row:
                raise ValueError(f"confusion of class {true} contains the class itself")
            if any(p < 0 for p in row.values()) or not math.isclose(sum(row.values()), 1.0):
                raise ValueError(
                    f"confusion of class {true}: probabilities must be >= 0 and sum to 1; "
                    f"got {dict(row)}"
                )

    def check_classes(self, num_classes: int) -> None:
        used = {*self.confusion, *(new for row in self.confusion.values() for new in row)}
        unknown = sorted(c for c in used if not 0 <= c < num_classes)
        if unknown:
            raise ValueError(
                f"confusion map has class ids {unknown} outside 0..{num_classes - 1}; "
                "it was made for another class list"
            )

    def applies_to(self, annotation: Annotation) -> bool:
        return annotation["category_id"] in self.confusion

    def corrupt(
        self, annotation: Annotation, draws: Draws, size: ImageSize, num_classes: int
    ) -> Annotation | None:
        row = self.confusion[annotation["category_id"]]
        remaining = fraction(draws[0])
        # In the order of class ids: two maps with the same content must give the same labels.
        possible = [new for new in sorted(row) if row[new] > 0]
        for new in possible:
            remaining -= row[new]
            if remaining < 0:
                break
        return {**annotation, "category_id": new}


def below(bound: int, draw: int) -> int:
    """Return an integer in [0, bound); the bias is below bound / 2^64."""
    return (draw * bound) >> 64


def fraction(draw: int) -> float:
    """Return a number in [0, 1)."""
    # 53 bits: all 64 could round up to 1.
    return (draw >> 11) / (1 << 53)
