"""The picture of ``tools/visualize.py --corrections``: what a label correction made of labels."""

import argparse
import random
from pathlib import Path

from ..data.annotation_ids import AnnotationTable
from ..engine.label_correction import TARGETS, read_class_targets
from ..visualization.comparison import DPI
from ..visualization.corrections import Correction, draw_corrections, groups_of

__all__ = ["run_corrections"]


def run_corrections(args: argparse.Namespace) -> str:
    """Draw corrected labels of the run in ``--corrections``, and return a text to print.

    Raises:
        FileNotFoundError: the folder is not a run's, or there are no class targets in it
        ValueError: the class targets are of other annotations
    """
    if args.num < 1:
        raise ValueError(f"--num must be 1 or above; got {args.num}")
    classes, corrections = _read(Path(args.corrections))
    groups = groups_of(corrections)
    # Any of them, and the same every time.
    draw = random.Random(0)
    chosen = {t: draw.sample(g, min(args.num, len(g))) for t, g in groups.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "corrections.png"
    draw_corrections(chosen, classes).savefig(path, dpi=DPI)
    counts = ", ".join(f"{len(group)} {title}" for title, group in groups.items())
    return f"{len(corrections)} labels: {counts}: {path}"


def _read(run: Path) -> tuple[tuple[str, ...], list[Correction]]:
    """The classes, and the annotations as the last round of a run was trained on them."""
    rounds = sorted(run.glob(f"round_*/{TARGETS}"), key=lambda p: int(p.parent.name[6:]))
    path = rounds[-1] if rounds else run / TARGETS
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no {TARGETS} in {run} or a round_N in it: "
            "MODEL.SUPERLOSS.CORRECTION.ROUNDS above 1 writes it after a round"
        )
    table = AnnotationTable.read(path.parent)
    best = read_class_targets(path, table).topk(1, dim=1)
    probabilities, estimates = (x[:, 0].tolist() for x in best)
    is_known = any("true_category_id" in a for r in table.records() for a in r["annotations"])
    corrections = []
    for record in table.records():
        for a in record["annotations"]:
            if a.get("iscrowd"):  # training leaves it out
                continue
            given, number = a["category_id"], a["annotation_id"]
            truth = a.get("true_category_id", given) if is_known else None
            what = estimates[number], probabilities[number], truth
            corrections.append(Correction(record["file_name"], a["bbox"], given, *what))
    return table.classes, corrections
