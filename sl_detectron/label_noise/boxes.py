"""The noises that move, remove and add boxes."""

import math
from dataclasses import dataclass
from typing import ClassVar

from ..data.formats.annotations import Annotation, corners, from_corners
from .noises import NOISE_REGISTRY, Draws, Noise, Noisy, Size, below, fraction

__all__ = ["BoxJitter", "MissingAnnotations", "SpuriousBoxes"]

# Boxes move on a grid of 1/16 pixel. A binary fraction survives VOC's +1/-1 and text form exactly,
# so a noisy set read back from disk equals the one injected in memory.
BOX_GRID = 16
# VOC's XML cannot express a box one pixel wide or less: its xmax would not exceed its xmin.
MIN_BOX_SIZE = 1 + 1 / BOX_GRID


@NOISE_REGISTRY.register("box_jitter")
@dataclass(frozen=True, kw_only=True)
class BoxJitter(Noise):
    """Move each box coordinate: x += U(-m, m) * width, y += U(-m, m) * height.

    The box stays inside the image. An axis keeps its coordinates where the move would leave it
    thinner than a pixel.

    Args:
        magnitude: m, fraction of the box's own width or height, in (0, 0.5)
    """

    kind: ClassVar[str] = "box_jitter"
    uses_size: ClassVar[bool] = True
    magnitude: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.magnitude < 0.5:
            raise ValueError(f"magnitude must be in (0, 0.5); got {self.magnitude!r}")

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        x1, y1, x2, y2 = corners(annotation)
        shift = [self.magnitude * (2 * fraction(draw) - 1) for draw in draws[:4]]
        height, width = size
        x1, x2 = _move(x1, x2, shift[0], shift[2], width)
        y1, y2 = _move(y1, y2, shift[1], shift[3], height)
        return {**annotation, "bbox": from_corners([x1, y1, x2, y2], annotation["bbox_mode"])}


@NOISE_REGISTRY.register("missing")
@dataclass(frozen=True, kw_only=True)
class MissingAnnotations(Noise):
    """Leave annotations out, as an annotator who overlooked an object."""

    kind: ClassVar[str] = "missing"

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        return None


@NOISE_REGISTRY.register("spurious")
@dataclass(frozen=True, kw_only=True)
class SpuriousBoxes(Noise):
    """Add boxes without an object: the hit annotation's size, any place, any class.

    The rate is relative to the number of annotations; an image without annotations gets none.
    Sets with masks or keypoints get the box as mask and invisible keypoints: an added annotation
    carries the fields of its image's first one.
    """

    kind: ClassVar[str] = "spurious"
    adds: ClassVar[bool] = True
    uses_size: ClassVar[bool] = True

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        x1, y1, x2, y2 = corners(annotation)
        height, width = size
        w = min(math.ceil((x2 - x1) * BOX_GRID) / BOX_GRID, width)
        h = min(math.ceil((y2 - y1) * BOX_GRID) / BOX_GRID, height)
        x = math.floor(fraction(draws[1]) * (width - w) * BOX_GRID) / BOX_GRID
        y = math.floor(fraction(draws[2]) * (height - h) * BOX_GRID) / BOX_GRID
        box = from_corners([x, y, x + w, y + h], annotation["bbox_mode"])
        return {**annotation, "category_id": below(num_classes, draws[0]), "bbox": box}


def _move(
    low: float, high: float, at_low: float, at_high: float, bound: float
) -> tuple[float, float]:
    size = high - low
    new_low = round(max(low + at_low * size, 0) * BOX_GRID) / BOX_GRID
    new_high = round(min(high + at_high * size, bound) * BOX_GRID) / BOX_GRID
    if new_high - new_low < min(size, MIN_BOX_SIZE):
        return low, high
    return new_low, new_high
