"""Detections that are in other units or another form than they are read in."""

from collections.abc import Sequence

import numpy as np

from ..data.formats.flaws import Flaws
from .average_precision import Array, Detections

__all__ = ["Sizes", "check_boxes"]

# Corners up to here, in fractions of pixels, are fractions of an image that reach a little beyond.
_CORNER = 2
_TOLERANCE = 2.0

Sizes = Sequence[tuple[int, int] | None]


def check_boxes(
    found: Detections, given: Array, image_ids: Sequence[str], sizes: Sizes, flaws: Flaws
) -> None:
    """Count boxes that are in other units or another form than they are read in.

    Args:
        found: N detections, at least one
        given: (N, 4) the numbers of their boxes in the files
        image_ids: of the image set
        sizes: (width, height) of each image in pixels, None where unknown; none to compare none
        flaws: takes what is found

    Raises:
        ValueError: all boxes are fractions of the image
    """

    def count(which: Array, text: str) -> None:
        if which.any():
            first = int(np.argmax(which))
            example = f"image {image_ids[found.images[first]]!r}, {given[first].tolist()}"
            flaws.note(text, example, int(which.sum()))

    largest, is_whole = np.abs(given).max(axis=1), (given == np.rint(given)).all(axis=1)
    if largest.max() <= _CORNER and not is_whole.all():
        raise ValueError(
            f"{flaws.where}: all {len(given)} detections are given as fractions of the image, as "
            f"{given[0].tolist()}; boxes are in pixels"
        )
    count((largest <= 1) & ~is_whole, "detections given as fractions of the image, not in pixels")
    count((found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1) < -0.999, "detections without area")
    if len(found.scores) > 1 and np.ptp(found.scores) == 0:
        number, score = len(found.scores), found.scores[0]
        flaws.note(f"all {number} detections have the score {score:g}, so that none is first", "")
    rows = np.column_stack([found.images, found.classes, found.scores, found.boxes])
    # As bytes: np.unique along an axis takes four times as long.
    _, first = np.unique(rows.view(f"V{rows.strides[0]}"), return_index=True)
    repeats = np.ones(len(rows), dtype=bool)
    repeats[first] = False
    count(repeats, "detections that come a second time, each a false positive")
    if sizes:
        limits = np.array([size or (np.inf, np.inf) for size in sizes], dtype=np.float64)
        ends = found.boxes[:, 2:] - limits[found.images]
        beyond = np.concatenate([1 - found.boxes[:, :2], ends], axis=1)
        text = f"detections that reach out of their image by more than {_TOLERANCE:g} pixels"
        count(beyond.max(axis=1) > _TOLERANCE, text)
