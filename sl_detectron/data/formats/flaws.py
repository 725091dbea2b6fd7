"""What is wrong in the files of a dataset: all of it in one error, or left out and counted."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["BAD_ANNOTATIONS", "Flaws", "box_flaw", "check_bad_annotations", "whole_number"]

# What a box or an image with a flaw does.
BAD_ANNOTATIONS = ("error", "skip")
MAX_LISTED = 20
# Farther out of its image, in pixels, a box is counted: annotation tools are off by one or two.
_TOLERANCE = 2.0
# Fractions of an image may be a little above 1; a set whose boxes all lie here has no pixels.
_CORNER = 2
_TINY = "boxes with less than one pixel in their image"


class Flaws:
    """Flaws and oddities found while the files of one set are read.

    Args:
        where: the set, in messages
        bad_annotations: "error" makes :meth:`settle` raise, "skip" warn
        quiet: whether to keep the warnings to itself
    """

    def __init__(self, where: str, bad_annotations: str = "error", quiet: bool = False):
        check_bad_annotations(bad_annotations)
        self.where = where
        self.skips = bad_annotations == "skip"
        self.quiet = quiet
        self.found: list[tuple[str, Exception]] = []
        self.notes: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._num_boxes = self._num_tiny = 0

    def add(self, what: str, error: Exception) -> None:
        """Keep an error about a "box" or an "image", which can be left out, or a "class"."""
        self.found.append((what, error))

    def note(self, text: str, example: str, number: int = 1) -> None:
        """Count something that is read by a rule; ``text`` names the rule."""
        self.notes[text] += number
        self._examples.setdefault(text, example)

    def check_box(
        self,
        where: str,
        shown: str,
        given: Sequence[float],
        edges: Sequence[float],
        size: tuple[int, int] | None,
    ) -> None:
        """Count a box, and note what is odd about its place.

        Args:
            where: the annotation, in messages
            shown: the box, in messages
            given, edges, size: as :func:`box_flaw` takes them

        Raises:
            ValueError: it cannot be used
        """
        wrong, odd = box_flaw(given, edges, size)
        if wrong:
            raise ValueError(f"{where}: its box {wrong}; got {shown}")
        if odd:
            self.note(odd, f"{where}, {shown}")
        self._num_boxes += 1
        is_corner = max(map(abs, given)) <= _CORNER and (size is None or max(size) > _CORNER)
        self._num_tiny += odd == _TINY or is_corner

    def count_boxes(self, number: int) -> None:
        """Count boxes that have nothing odd and are no points."""
        self._num_boxes += number

    def check_boxes(self) -> None:
        """Keep as a flaw that all boxes counted are too small to be of objects, in pixels."""
        if self._num_tiny and self._num_tiny == self._num_boxes:
            error = f"{self.where}: all {self._num_boxes} boxes have less than one pixel in their "
            error += f"image or lie within its first {_CORNER} x {_CORNER} pixels; boxes are in "
            self.add("class", ValueError(error + "pixels, not fractions of the image"))

    def settle(self) -> None:
        """Raise all flaws as one error, or warn of what is left out; warn of what was noted.

        Raises:
            ValueError, OSError: of the type of the first flaw; up to 20 are listed
        """
        errors = [e for what, e in self.found if what == "class" or not self.skips]
        if errors:
            raise type(errors[0])(self._message(errors))
        left_out = Counter(what for what, _ in self.found)
        for what, number in left_out.items():
            first = next(error for kind, error in self.found if kind == what)
            plural = "" if number == 1 else "es" if what == "box" else "s"
            self._warn(f"{self.where}: {number} {what}{plural} left out; the first: {first}")
        for text in self.notes:
            self._warn(f"{self.where}: {self.summary(text)}")

    def summary(self, text: str) -> str:
        """One note with its number and the first example."""
        example = self._examples[text]
        return f"{text}: {self.notes[text]} (the first: {example})" if example else text

    def _message(self, errors: Sequence[Exception]) -> str:
        can_skip = any(what != "class" for what, _ in self.found) and not self.skips
        advice = "; BAD_ANNOTATIONS skip leaves flawed boxes and images out" if can_skip else ""
        if len(errors) == 1:
            return f"{errors[0]}{advice}"
        listed = "; ".join(f"({i}) {e}" for i, e in enumerate(errors[:MAX_LISTED], start=1))
        more = len(errors) - MAX_LISTED
        rest = f"; and {more} more" if more > 0 else ""
        return f"{self.where} has {len(errors)} flaws: {listed}{rest}{advice}"

    def _warn(self, message: str) -> None:
        # A set is read more than once in a run: by its check, its loader and each evaluation.
        if not self.quiet:
            log_first_n(logging.WARNING, message, key="message", name=__name__)


def check_bad_annotations(value: str, name: str = "BAD_ANNOTATIONS") -> None:
    """Raise ValueError if a value is not one of ``BAD_ANNOTATIONS``."""
    if value not in BAD_ANNOTATIONS:
        raise ValueError(f"{name} must be one of {BAD_ANNOTATIONS}; got {value!r}")


def box_flaw(
    given: Sequence[float], edges: Sequence[float], size: tuple[int, int] | None
) -> tuple[str, str]:
    """What is wrong with the place of a box.

    Args:
        given: its four numbers as in the file
        edges: (x0, y0, x1, y1) in pixels, 0-based edges
        size: (width, height) of its image in pixels; None if unknown

    Returns:
        a flaw for which the box cannot be used, and a note to count; empty where there is none

    Example:
        >>> box_flaw([0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.6, 0.6], None)[0]
        'is given as fractions of the image; boxes are in pixels'
        >>> box_flaw([90, 0, 5, 5], [90, 0, 95, 5], (64, 48))[0]
        'is outside of its image of 64 x 48 pixels'
    """
    if max(map(abs, given)) <= 1 and any(x != int(x) for x in given):
        return "is given as fractions of the image; boxes are in pixels", ""
    x0, y0, x1, y1 = edges
    width, height = (math.inf, math.inf) if size is None else size
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return f"is outside of its image{_of_size(size)}", ""
    # Sums of decimal numbers are off by less.
    if min(min(x1, width) - max(x0, 0), min(y1, height) - max(y0, 0)) < 1 - 1e-6:
        return "", _TINY
    if max(-x0, -y0, x1 - width, y1 - height) > _TOLERANCE:
        return "", "boxes that reach out of their image by more than 2 pixels"
    return "", ""


def _of_size(size: tuple[int, int] | None) -> str:
    return "" if size is None else f" of {size[0]} x {size[1]} pixels"


def whole_number(value: Any) -> int | None:
    """A number, or its text, of at least 1 that is whole; None for anything else.

    Example:
        >>> [whole_number(x) for x in (64, "64", 64.0, " 64.0 ", 0, "w", None, True)]
        [64, 64, 64, 64, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
        return int(number) if number >= 1 and number == int(number) else None
    except (ValueError, OverflowError):
        return None
