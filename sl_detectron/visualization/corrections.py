"""Annotations whose class a label correction changed, each as a piece of its image."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.images import read_image
from .boxes import OTHER, RIGHT, WRONG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Correction", "draw_corrections", "groups_of"]

NUM_COLUMNS = 8
# How far around the centre of a box the image is shown: of its longer side, and pixels more.
MARGIN, LEAST_MARGIN = 1.1, 4.0


class Correction(NamedTuple):
    """An annotation: its box in pixels (XYXY), the given and the most probable class.

    ``image`` is a dataset dict, of which the image is read. ``truth`` is the class before label
    noise, None where there was no noise.
    """

    image: Mapping[str, Any]
    box: tuple[float, float, float, float]
    given: int
    estimate: int
    probability: float
    truth: int | None

    @property
    def is_right(self) -> bool:
        return self.estimate == self.truth


def groups_of(corrections: Sequence[Correction]) -> dict[str, list[Correction]]:
    """What became of wrong and of right labels; of all labels, where the truth is not known.

    Right labels that stay are in no group.
    """
    groups: dict[str, list[Correction]] = {}
    if all(c.truth is None for c in corrections):
        return {"changed labels": [c for c in corrections if c.estimate != c.given]}
    wrong = [c for c in corrections if c.given != c.truth]
    groups["wrong labels mended"] = [c for c in wrong if c.is_right]
    groups["right labels made wrong"] = [
        c for c in corrections if c.given == c.truth and not c.is_right
    ]
    groups["wrong labels still wrong"] = [c for c in wrong if not c.is_right]
    return groups


def draw_corrections(
    groups: Mapping[str, Sequence[Correction]], classes: Sequence[str]
) -> "Figure":
    """Draw each annotation with some of its surroundings, the groups below each other.

    Above a picture are the given class, the most probable one with its probability, and the true
    one where the label stays wrong. Boxes are green where the label is right now, red where it is
    wrong, orange where the truth is not known.

    Args:
        groups: {title: annotations}
        classes: K names; K is a box without an object. None where the dataset has no names
    """
    from matplotlib.figure import Figure

    names = dict(enumerate([*classes, "no object"])) if classes else {}
    rows = [
        (title if not start else "", group[start : start + NUM_COLUMNS])
        for title, group in groups.items()
        for start in range(0, max(len(group), 1), NUM_COLUMNS)
    ]
    figure = Figure(figsize=(1.4 * NUM_COLUMNS, 1.8 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), NUM_COLUMNS, squeeze=False)
    for (title, row), line in zip(rows, axes):
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(textwrap.fill(title, 12), fontsize=9)
        for axis, correction in zip(line, row):
            _draw(axis, correction, names)
    return figure


def _draw(axis: "Axes", correction: Correction, names: Mapping[int, str]) -> None:
    from matplotlib.patches import Rectangle

    image = read_image(correction.image, "RGB")
    x0, y0, x1, y1 = correction.box
    reach = MARGIN * max(x1 - x0, y1 - y0) + LEAST_MARGIN
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    # A box may lie outside of its image: then there is nothing to show around it.
    (top, bottom), (left, right) = (
        (max(int(middle - reach), 0), max(math.ceil(middle + reach), 0)) for middle in (y, x)
    )
    piece = image[top:bottom, left:right]
    height, width = piece.shape[:2]
    if piece.size:
        axis.imshow(piece, extent=(left, left + width, top + height, top))
    axis.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach))
    known = correction.truth is not None
    colour = (RIGHT if correction.is_right else WRONG) if known else OTHER
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2))
    labels = (correction.given, correction.estimate, correction.truth or 0)
    given, estimate, truth = (names.get(label, f"class {label}") for label in labels)
    lines = [f"given {given}", f"{estimate} {correction.probability:.2f}"]
    if known and not correction.is_right:
        lines.append(f"truth {truth}")
    # A class name with dollar signs is no formula.
    axis.set_title("\n".join(lines), fontsize=8, parse_math=False)
