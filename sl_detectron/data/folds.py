"""Folds of the images of training sets, for cross-fitting: train on some images, score others."""

import hashlib
from collections.abc import Sequence

from .formats.annotations import Record

__all__ = ["check_folds", "fold_of", "without_fold"]


def fold_of(image_id: str | int, num_folds: int) -> int:
    """The fold of an image, from 0: by a hash of its id alone, the same in every set and run.

    Example:
        >>> [fold_of(image_id, 2) for image_id in ("000005", "000007", 12, 17)]
        [0, 0, 0, 1]
    """
    digest = hashlib.sha256(str(image_id).encode()).digest()
    return int.from_bytes(digest[:8], "big") % num_folds


def check_folds(num_folds: int, held_out: int) -> None:
    """Refuse wrong values of ``DATASETS.FOLDS`` and ``DATASETS.HELD_OUT_FOLD``.

    Raises:
        ValueError: names the key
    """
    if num_folds < 1:
        raise ValueError(f"DATASETS.FOLDS must be at least 1; got {num_folds}")
    if not 0 <= held_out < num_folds:
        raise ValueError(
            f"DATASETS.HELD_OUT_FOLD must be at least 0 and below DATASETS.FOLDS, {num_folds}; got "
            f"{held_out}"
        )


def without_fold(records: Sequence[Record], num_folds: int, held_out: int) -> list[Record]:
    """The records that are not of one fold; all where there is only one."""
    if num_folds == 1:
        return [*records]
    return [r for r in records if fold_of(r["image_id"], num_folds) != held_out]
