"""The picture of ``tools/visualize.py --corrections``: what a label correction made of labels."""

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path

from ..data.annotation_ids import AnnotationTable
from ..data.images import BrokenImage, read_image
from ..engine.class_estimates import TARGETS, read_class_targets
from ..visualization.comparison import DPI
from ..visualization.corrections import Correction, draw_corrections, groups_of

__all__ = ["run_corrections"]

logger = logging.getLogger(__name__)


def run_corrections(args: argparse.Namespace) -> str:
    """Draw corrected labels of the run in ``--corrections``, and return a text to print.

    Raises:
        FileNotFoundError: the folder is not a run's, or there are no class targets in it
        ValueError: the class targets are of other annotations; no image of them can be read
    """
    if args.num < 1:
        raise ValueError(f"--num must be 1 or above; got {args.num}")
    classes, corrections = _read(Path(args.corrections))
    groups = groups_of(corrections)
    figure = draw_corrections(_choose(groups, args.num), classes)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "corrections.png"
    figure.savefig(path, dpi=DPI)
    counts = ", ".join(f"{len(group)} {title}" for title, group in groups.items())
    return f"{len(corrections)} labels: {counts}: {path}"


def _choose(groups: dict[str, list[Correction]], num: int) -> dict[str, Sequence[Correction]]:
    """Some of each group, the same every time, whose images can be read: training skips others."""
    chosen: dict[str, Sequence[Correction]] = {}
    errors: list[BrokenImage] = []
    for title, group in groups.items():
        draw, found = random.Random(0), []
        for correction in draw.sample(group, len(group)):
            try:
                read_image(correction.image, "RGB")
            except BrokenImage as error:
                errors.append(error)
                continue
            found.append(correction)
            if len(found) == num:
                break
        chosen[title] = found
    if errors:
        first = str(errors[0]).partition("; repair it")[0]
        if not any(chosen.values()):
            raise ValueError(
                f"{first}; no image of a label can be read. The paths are those of the training "
                "run: move the images back, or start from the folder that it was started from"
            ) from errors[0]
        logger.warning(
            "Labels not drawn, as their image cannot be read: %d, %s", len(errors), first
        )
    return chosen


def _read(run: Path) -> tuple[tuple[str, ...], list[Correction]]:
    """The classes, and the annotations as the last round of a run was trained on them."""
    rounds = {
        int(path.parent.name[6:]): path
        for path in run.glob(f"round_*/{TARGETS}")
        if path.parent.name[6:].isdecimal()
    }
    path = rounds[max(rounds)] if rounds else run / TARGETS
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {TARGETS} in {run} or a round_N in it: "
            "MODEL.SUPERLOSS.CORRECTION.ROUNDS above 1 writes it after a round, and FROM_FEATURES "
            "before the first"
        )
    table = AnnotationTable.read(path.parent)
    best = read_class_targets(path, table).topk(1, dim=1)
    probabilities, estimates = (x[:, 0].tolist() for x in best)
    is_known = any("true_category_id" in a for r in table.records() for a in r["annotations"])
    corrections = []
    for record in table.records():
        annotations = record.pop("annotations")
        for a in annotations:
            if a.get("iscrowd"):  # training leaves it out
                continue
            given, number = a["category_id"], a["annotation_id"]
            truth = a.get("true_category_id", given) if is_known else None
            what = estimates[number], probabilities[number], truth
            corrections.append(Correction(record, a["bbox"], given, *what))
    return table.classes, corrections
