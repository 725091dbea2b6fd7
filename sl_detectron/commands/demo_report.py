"""The demo's page: pictures, AP, curves and suspects of one pair of runs."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode

from ..audit.files import AUDIT_JSON, read_audit
from ..audit.records import AuditedAnnotation
from ..audit.report import make_crops
from ..files import write_text
from ..sweep.grid import METRICS
from ..visualization.curves import draw_curves, read_curves
from ..visualization.report_page import (
    Cell,
    cards_part,
    figure_part,
    html_page,
    picture_part,
    section,
    table_part,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_demo_report"]

Record = dict[str, Any]
# {(method, seed): {metric: percent}}
Results = Mapping[tuple[str, int], Mapping[str, float]]
NUM_SUSPECTS = 24
CROP_SIZE = 96  # pixels of the longer side
COLOURS = ("#E69F00", "#0072B2")  # as the curves of the runs


def write_demo_report(
    path: Path,
    runs: Mapping[str, CfgNode],
    results: Results,
    records: Sequence[Record],
    classes: Sequence[str],
) -> None:
    """Write the page into the folder of the demo's picture, ``demo.png``.

    Args:
        path: of the page; it is self-contained
        runs: the finished runs of the first seed, by method; the last one has the audit
        results: of all seeds
        records: the training set with its noise
        classes: K names
    """
    audited = list(runs)[-1]
    num_labels = sum(len(record["annotations"]) for record in records)
    wrong = {
        annotation["annotation_id"]: classes[annotation["true_category_id"]]
        for record in records
        for annotation in record["annotations"]
        if annotation.get("true_category_id", annotation["category_id"])
        != annotation["category_id"]
    }
    curves = {method: read_curves(cfg.OUTPUT_DIR) for method, cfg in runs.items()}
    iterations = runs[audited].SOLVER.MAX_ITER
    subtitle = (
        f"{len(records)} training images with {num_labels} labels, of which {len(wrong)} are wrong "
        f"({len(wrong) / max(num_labels, 1):.0%}); {iterations} iterations."
    )
    parts = [
        section(
            "Average precision on the clean test set",
            "Both detectors are trained on the same noisy labels.",
            figure_part(_bars(results, list(runs)), "AP, AP50 and AP75 of both methods"),
            _table(results, list(runs)),
        ),
        section(
            "Wrong labels, and what each detector finds",
            "The training images with most wrong labels. A wrong label is red, with the true class "
            "in brackets. A detection is green for the true class, red for the memorised wrong "
            "label, orange for anything else.",
            picture_part(
                (path.parent / "demo.png").read_bytes(),
                "image/png",
                "Training images with their labels beside the detections of both methods",
            ),
        ),
        section(
            "Curves over training",
            "τ is the threshold, σ the mean confidence: foreground samples whose loss is above τ "
            "have σ below 1, easy ones up to e.",
            figure_part(draw_curves(curves), "Loss, tau, sigma and AP50 over the iterations"),
        ),
        _suspects(Path(runs[audited].OUTPUT_DIR, AUDIT_JSON), wrong),
    ]
    write_text(path, html_page("Baseline and SuperLoss on noisy labels", subtitle, parts))


def _values(results: Results, method: str, metric: str) -> list[float]:
    return [metrics[metric] for (name, _), metrics in results.items() if name == method]


def _bars(results: Results, methods: Sequence[str]) -> "Figure":
    """AP of the methods beside each other; bars of one standard deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for place, (method, colour) in enumerate(zip(methods, COLOURS)):
        values = [_values(results, method, metric) for metric in METRICS]
        means = [fmean(numbers) for numbers in values]
        errors = [stdev(numbers) for numbers in values] if len(values[0]) > 1 else None
        x = [i + (place - (len(methods) - 1) / 2) * width for i in range(len(METRICS))]
        bars = axes.bar(x, means, 0.95 * width, yerr=errors, color=colour, label=method)
        axes.bar_label(bars, fmt="%.1f", fontsize=9)
    axes.set_xticks(range(len(METRICS)), METRICS)
    axes.set_ylabel("percent")
    axes.set_ylim(0, 108)
    axes.legend(loc="upper right", ncols=2, fontsize=9)
    return figure


def _table(results: Results, methods: Sequence[str]) -> str:
    rows: list[list[str | Cell]] = [
        [method, Cell(str(seed), seed), *(Cell(f"{m[k]:.1f}", m[k]) for k in METRICS)]
        for method in methods
        for (name, seed), m in results.items()
        if name == method
    ]
    return table_part(["method", "seed", *METRICS], rows, "Every run, percent.")


def _suspects(path: Path, wrong: Mapping[int, str]) -> str:
    title = "The most suspect labels"
    if not path.is_file():
        return section(title, "This run did not track annotations: TRACK_ANNOTATIONS is off.")
    shown = read_audit(path).annotations[:NUM_SUSPECTS]
    cards = [
        _card(annotation, crop and crop[0], wrong.get(annotation.annotation_id))
        for annotation, crop in zip(shown, make_crops(shown, CROP_SIZE))
    ]
    num_wrong = sum(annotation.annotation_id in wrong for annotation in shown)
    text = (
        f"Ranked by the label audit of the SuperLoss, which does not use the true labels. "
        f"{num_wrong} of these {len(shown)} labels are wrong. sl-audit makes a page to review all "
        "of them and to correct the dataset."
    )
    return section(title, text, cards_part(cards))


def _card(annotation: AuditedAnnotation, crop: str | None, truth: str | None) -> str:
    """One label: its crop, the suggestion, and what is true."""
    picture = ""
    if crop is not None:
        picture = picture_part(base64.b64decode(crop), "image/jpeg", annotation.label, "crop")
    kind, verdict = ("wrong", f"wrong: {truth}") if truth else ("right", "right")
    labels = html.escape(f"{annotation.label} → {annotation.suggested_label}")
    return (
        f'{picture}{labels}<br><b class="{kind}">{html.escape(verdict)}</b>'
        f"<small>suspicion {annotation.suspicion:.3f}, σ {annotation.confidence:.2f}</small>"
    )
