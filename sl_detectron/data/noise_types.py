"""The kinds of noise that :func:`sl_detectron.data.label_noise.inject` puts into annotations.

A noise is a frozen description: which share of the annotations, which seed, what happens to them.
It owns no generator. Every annotation has its own row of 64-bit draws, hashed from what it is, so
neither its neighbours nor the order of the set can change its noise.

Shapes: K classes; one row of draws is (D,) integers in [0, 2^64).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from detectron2.structures import BoxMode

__all__ = [
    "Noise",
    "SymmetricNoise",
    "AsymmetricNoise",
    "BoxJitter",
    "MissingAnnotations",
    "SpuriousBoxes",
    "make_spurious",
    "MODES",
    "DRAWS_PER_ANNOTATION",
]

MODES = ("bernoulli", "exact")
# One decision, and at most four numbers for a box.
DRAWS_PER_ANNOTATION = 5
# Boxes move on a grid of 1/16 pixel. A binary fraction survives VOC's +1/-1 and text form exactly,
# so a noisy set read back from disk equals the one injected in memory.
BOX_GRID = 16
# VOC's XML cannot express a box one pixel wide or less: its xmax would not exceed its xmin.
MIN_BOX_SIZE = 1 + 1 / BOX_GRID

Annotation = dict[str, Any]
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
            size: (height, width) of the image in pixels
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
            return {**annotation, "category_id": _below(num_classes, draws[0])}
        wrong = _below(num_classes - 1, draws[0])
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
        remaining = _fraction(draws[0])
        # In the order of class ids: two maps with the same content must give the same labels.
        possible = [new for new in sorted(row) if row[new] > 0]
        for new in possible:
            remaining -= row[new]
            if remaining < 0:
                break
        return {**annotation, "category_id": new}


@dataclass(frozen=True, kw_only=True)
class BoxJitter(Noise):
    """Move each box coordinate: x += U(-m, m) * width, y += U(-m, m) * height.

    The box stays inside the image. An axis keeps its coordinates where the move would leave it
    thinner than a pixel.

    Args:
        magnitude: m, fraction of the box's own width or height, in (0, 0.5)
    """

    kind: ClassVar[str] = "box_jitter"
    magnitude: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.magnitude < 0.5:
            raise ValueError(f"magnitude of box_jitter must be in (0, 0.5); got {self.magnitude!r}")

    def corrupt(
        self, annotation: Annotation, draws: Draws, size: ImageSize, num_classes: int
    ) -> Annotation | None:
        x1, y1, x2, y2 = _xyxy(annotation)
        shift = [self.magnitude * (2 * _fraction(draw) - 1) for draw in draws[:4]]
        height, width = size
        x1, x2 = _move(x1, x2, shift[0], shift[2], width)
        y1, y2 = _move(y1, y2, shift[1], shift[3], height)
        return {**annotation, "bbox": _as_mode([x1, y1, x2, y2], annotation["bbox_mode"])}


@dataclass(frozen=True, kw_only=True)
class MissingAnnotations(Noise):
    """Leave annotations out, as an annotator who overlooked an object."""

    kind: ClassVar[str] = "missing"

    def corrupt(
        self, annotation: Annotation, draws: Draws, size: ImageSize, num_classes: int
    ) -> Annotation | None:
        return None


@dataclass(frozen=True, kw_only=True)
class SpuriousBoxes(Noise):
    """Add boxes without an object: the hit annotation's size, any place, any class.

    The rate is relative to the number of annotations; an image without annotations gets none.
    Sets with masks or keypoints get the box as mask and invisible keypoints.
    """

    kind: ClassVar[str] = "spurious"
    adds: ClassVar[bool] = True

    def corrupt(
        self, annotation: Annotation, draws: Draws, size: ImageSize, num_classes: int
    ) -> Annotation | None:
        x1, y1, x2, y2 = _xyxy(annotation)
        height, width = size
        w = min(math.ceil((x2 - x1) * BOX_GRID) / BOX_GRID, width)
        h = min(math.ceil((y2 - y1) * BOX_GRID) / BOX_GRID, height)
        x = math.floor(_fraction(draws[1]) * (width - w) * BOX_GRID) / BOX_GRID
        y = math.floor(_fraction(draws[2]) * (height - h) * BOX_GRID) / BOX_GRID
        box = _as_mode([x, y, x + w, y + h], annotation["bbox_mode"])
        return make_spurious(annotation, _below(num_classes, draws[0]), box)


def make_spurious(sibling: Annotation, category_id: int, bbox: Sequence[float]) -> Annotation:
    """Return an annotation with the fields that the other annotations of its image carry.

    detectron2 needs every annotation of an image to have the same ones.

    Args:
        sibling: any annotation of the image
        category_id: class id
        bbox: in the sibling's box mode, pixels
    """
    added: Annotation = {
        "category_id": category_id,
        "bbox": list(bbox),
        "bbox_mode": sibling["bbox_mode"],
    }
    added |= {key: 0 for key in ("iscrowd", "difficult") if key in sibling}
    if "segmentation" in sibling:
        x1, y1, x2, y2 = _xyxy(added)
        added["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if "keypoints" in sibling:
        added["keypoints"] = [0] * len(sibling["keypoints"])
    return added


def _below(bound: int, draw: int) -> int:
    """Return an integer in [0, bound); the bias is below bound / 2^64."""
    return (draw * bound) >> 64


def _fraction(draw: int) -> float:
    # 53 bits: all 64 could round up to 1.
    return (draw >> 11) / (1 << 53)


def _move(
    low: float, high: float, at_low: float, at_high: float, bound: float
) -> tuple[float, float]:
    size = high - low
    new_low = round(max(low + at_low * size, 0) * BOX_GRID) / BOX_GRID
    new_high = round(min(high + at_high * size, bound) * BOX_GRID) / BOX_GRID
    if new_high - new_low < min(size, MIN_BOX_SIZE):
        return low, high
    return new_low, new_high


def _xyxy(annotation: Annotation) -> list[float]:
    mode = annotation["bbox_mode"]
    box = [float(x) for x in annotation["bbox"]]
    if mode == BoxMode.XYXY_ABS:
        return box
    if mode == BoxMode.XYWH_ABS:
        return [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    raise ValueError(f"box noise supports the box modes XYXY_ABS and XYWH_ABS; got {mode!r}")


def _as_mode(box: list[float], mode: BoxMode) -> list[float]:
    if mode == BoxMode.XYWH_ABS:
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return box
