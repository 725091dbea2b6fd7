"""What an evaluation found: as numbers, as a table, and as a report of json and pictures."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tabulate import tabulate

from ..files import replacing
from .average_precision import ClassResult, check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ABSENT_CLASSES", "VOCResult", "check_report_path", "write_report"]

# What a class without ground truth does to the mean.
ABSENT_CLASSES = ("skip", "zero")
# More names than this would not leave room for the curves.
_MAX_LEGEND = 40


@dataclass(frozen=True)
class VOCResult:
    """AP and recall of every class at every overlap threshold.

    Args:
        class_names: C names
        thresholds: T overlaps, fraction
        metric: "07" or "area"
        classes: C results
        absent_classes: "skip" leaves classes without ground truth out of the means; "zero" counts
            them as 0, as detectron2 does
    """

    class_names: Sequence[str]
    thresholds: Sequence[float]
    metric: str
    classes: Sequence[ClassResult]
    absent_classes: str = "skip"

    def __post_init__(self) -> None:
        check_choice("absent_classes", self.absent_classes, ABSENT_CLASSES)

    @property
    def absent(self) -> list[str]:
        """Names of the classes of which the set holds no object, or difficult ones only."""
        return [n for n, c in zip(self.class_names, self.classes) if not c.num_objects]

    def mean_ap(self) -> dict[int, float]:
        """Return {threshold in percent: mean AP over classes, percent}."""
        counted = [c for c in self.classes if c.num_objects or self.absent_classes == "zero"]
        # One mean per threshold, over a contiguous row: numpy sums a column of a table in another
        # order, and the last bit would differ from detectron2's.
        rows = np.array([c.ap * 100 for c in counted]).T.copy()
        means = [float(np.mean(row)) for row in rows] or [float("nan")] * len(self.thresholds)
        return {round(t * 100): mean for t, mean in zip(self.thresholds, means)}

    def summary(self) -> dict[str, float]:
        """Return AP (mean over the thresholds), AP50 and AP75 of all classes, percent."""
        means = self.mean_ap()
        return {"AP": float(np.mean(list(means.values()))), "AP50": means[50], "AP75": means[75]}

    def per_class(self) -> dict[str, dict[str, Any]]:
        """Return {class: what it scored}, percent; AP and recall of an absent class are None."""
        percents = [round(t * 100) for t in self.thresholds]
        table = {}
        for name, result in zip(self.class_names, self.classes):
            present = result.num_objects > 0
            ap, recall = (
                dict(zip(percents, (values * 100).tolist() if present else repeat(None)))
                for values in (result.ap, result.max_recall)
            )
            table[name] = {
                "AP": float(np.mean(result.ap * 100)) if present else None,
                "AP50": ap[50],
                "AP75": ap[75],
                "recall50": recall[50],
                "AP_by_iou": ap,
                "recall_by_iou": recall,
                "num_objects": result.num_objects,
                "num_detections": result.num_detections,
            }
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the curves as plain data; values that are not defined are None."""
        summary = {k: None if np.isnan(v) else v for k, v in self.summary().items()}
        return {**summary, "metric": self.metric, "per_class": self.per_class()}

    def table(self) -> str:
        """Return a table of the classes and their mean."""
        keys = ("num_objects", "num_detections", "AP", "AP50", "AP75", "recall50")
        rows = [[name, *(row[k] for k in keys)] for name, row in self.per_class().items()]
        total = [sum(row[i] for row in rows) for i in (1, 2)]
        rows.append(["mean", *total, *self.summary().values(), None])
        return tabulate(
            rows,
            headers=["class", "objects", "detections", "AP", "AP50", "AP75", "recall50"],
            floatfmt=".2f",
            missingval="-",
            disable_numparse=[0],
        )


def check_report_path(output: str | os.PathLike) -> None:
    """Refuse, before an evaluation, a path that its report cannot be written to.

    Raises:
        ValueError: it does not end in .json, is a folder or lies below a file
    """
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file in it, e.g. {output / 'report.json'}")
    if output.suffix.lower() != ".json":
        raise ValueError(f"the report is json: name it {output}.json instead of {output}")
    parent = next(path for path in output.absolute().parents if path.exists())
    if not parent.is_dir():
        raise ValueError(f"{output} cannot be written: {parent} is not a folder")


def write_report(result: VOCResult, output: str | os.PathLike, pictures: bool = True) -> list[Path]:
    """Write ``output`` (json, percent) and beside it the pictures, all of them or none.

    Args:
        result: of an evaluation
        output: path of the json file; its folder is made
        pictures: also write ``<stem>_precision_recall.png`` and ``<stem>_ap_by_iou.png``

    Returns:
        the paths that were written

    Raises:
        ImportError: matplotlib is not installed
        ValueError: as :func:`check_report_path`
    """
    check_report_path(output)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    plots = {"precision_recall": _plot_curves, "ap_by_iou": _plot_ap_by_iou} if pictures else {}
    figures = {
        output.with_name(f"{output.stem}_{k}.png"): plot(result) for k, plot in plots.items()
    }
    report = json.dumps(result.to_dict(), indent=1)
    with ExitStack() as stack:
        stack.enter_context(replacing(output)).write_text(f"{report}\n")
        for path, figure in figures.items():
            figure.savefig(stack.enter_context(replacing(path)), format="png", dpi=120)
    return [output, *figures]


def _present(result: VOCResult) -> dict[str, ClassResult]:
    return {n: c for n, c in zip(result.class_names, result.classes) if c.num_objects}


def _plot_curves(result: VOCResult) -> "Figure":
    """Draw precision over recall of every class at the first threshold."""
    curves = {name: (c.recall, c.precision) for name, c in _present(result).items()}
    title = f"overlap more than {result.thresholds[0]:g}"
    limits = {"xlim": (0, 1), "ylim": (0, 1.02)}
    return _plot(curves, xlabel="recall", ylabel="precision", title=title, **limits)


def _plot_ap_by_iou(result: VOCResult) -> "Figure":
    """Draw AP over the overlap threshold of every class, and the mean."""
    curves = {name: (result.thresholds, c.ap * 100) for name, c in _present(result).items()}
    mean = result.thresholds, [*result.mean_ap().values()]
    label = f"AP (%), {result.metric} metric"
    return _plot(curves, mean, xlabel="overlap threshold", ylabel=label, ylim=(0, 100))


def _plot(curves: dict[str, Any], mean: Any = (), **settings: Any) -> "Figure":
    # matplotlib takes a second to import and only pictures need it; Figure, unlike pyplot, leaves
    # the user's backend alone.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    colors = colormaps["turbo"](np.linspace(0, 1, len(curves)))
    for color, (name, curve) in zip(colors, curves.items()):
        axes.plot(*curve, color=color, linewidth=1, label=name)
    if mean:
        axes.plot(*mean, color="black", linewidth=3, label="mean")
    axes.grid(alpha=0.3)
    axes.set(**settings)
    if 0 < len(axes.lines) <= _MAX_LEGEND:
        legend = figure.legend(loc="outside right upper", fontsize="small")
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure
