"""Training curves of runs, side by side, from the metrics that a training writes."""

import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["METRICS_FILE", "draw_curves", "read_curves"]

METRICS_FILE = "metrics.json"
# {metric: {iteration: value}}
Curves = dict[str, dict[int, float]]
# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
NUM_COLUMNS = 3


class Panel(NamedTuple):
    """A title, and {metric: its name in the legend}."""

    title: str
    metrics: dict[str, str]


PANELS = (
    Panel("training loss", {"total_loss": ""}),
    Panel(
        "classification loss and τ, nats",
        {"superloss_cls/raw_loss": "loss", "superloss_cls/tau": "τ"},
    ),
    Panel(
        "mean confidence σ",
        {"superloss_cls/sigma_foreground": "foreground", "superloss_cls/sigma_background": "rest"},
    ),
    Panel("share of samples at σ = e", {"superloss_cls/capped_share": ""}),
    Panel("foreground classified as labelled", {"fast_rcnn/fg_cls_accuracy": ""}),
    Panel("AP50 on the test set, %", {"bbox/AP50": ""}),
)


def read_curves(folder: str | os.PathLike) -> Curves:
    """Read the metrics of a run, finished or not.

    An iteration that was trained twice, before and after a resume, counts as it was last. The last
    line may be cut off, as that of a run that is killed or still writes.

    Args:
        folder: OUTPUT_DIR of the run

    Returns:
        {metric: {iteration: value}}; what is not a number is left out

    Raises:
        FileNotFoundError: it is not the folder of a run
        ValueError: the file is damaged, or has no iteration
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not the output of a training run: no {path}")
    curves: Curves = defaultdict(dict)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            metrics = json.loads(line)
            iteration = int(metrics["iteration"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(
                f"{path}, line {number} has no metrics of an iteration; remove the line, or draw "
                f"another run ({error!r})"
            ) from error
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "iteration":
                curves[name][iteration] = float(value)
    if not curves:
        raise ValueError(f"{path} has no metrics yet; the first come after 20 iterations")
    return dict(curves)


def draw_curves(runs: Mapping[str, Curves], show: bool = False) -> "Figure":
    """Draw what runs have of loss, tau, sigma and AP50; one colour per run.

    Args:
        runs: the curves of :func:`read_curves` by the name of the run
        show: make a figure of pyplot, which can open a window

    Raises:
        ValueError: the runs have none of these metrics
    """
    known = {name for curves in runs.values() for name in curves}
    panels = [panel for panel in PANELS if known & panel.metrics.keys()]
    if not panels:
        raise ValueError(f"{', '.join(runs)}: no loss, tau, sigma or AP50 to draw")
    columns = min(NUM_COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / columns)
    size = (4.5 * columns, 3.2 * num_rows)
    if show:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=size, layout="constrained")
    else:
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(num_rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels):
        _draw_panel(axis, panel, runs)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def _draw_panel(axis: "Axes", panel: Panel, runs: Mapping[str, Curves]) -> None:
    for colour, (run, curves) in zip(cycle(COLOURS), runs.items()):
        for style, (metric, name) in zip(STYLES, panel.metrics.items()):
            points = sorted(curves.get(metric, {}).items())
            if points:
                # One evaluation is a point, of which a line shows nothing.
                marker = "o" if len(points) == 1 else ""
                label = f"{run}: {name}" if name else run
                label = label.replace("$", r"\$")  # no formula
                axis.plot(*zip(*points), style, color=colour, marker=marker, label=label)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel("iteration", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
