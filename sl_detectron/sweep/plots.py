"""Plots of a sweep: AP50 against label noise, and paired differences with their intervals."""

import math
from typing import TYPE_CHECKING

from .grid import Method
from .results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["ap50_figure", "forest_figure"]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; without the
# yellow, which is faint on white. Markers and dashes tell methods apart in print.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":")


def ap50_figure(results: Results) -> "Figure":
    """AP50 against label noise with bands of one standard deviation; one panel per detector."""
    # Figure, unlike pyplot, leaves the user's backend alone.
    from matplotlib.figure import Figure

    methods = results.grid.methods
    detectors = list(dict.fromkeys(method.detector for method in methods))
    names = list(dict.fromkeys(method.name for method in methods))
    figure = Figure(figsize=(5.5 * len(detectors), 5), layout="constrained")
    panels = figure.subplots(1, len(detectors), sharey=True, squeeze=False)[0]
    for axes, detector in zip(panels, detectors):
        for method in methods:
            if method.detector == detector:
                _draw(axes, results, names.index(method.name), method)
        axes.set_title(_plain(detector))
        axes.set_xlabel("wrong labels, %")
        axes.set_xticks([100 * noise for noise in results.grid.noise])
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    panels[0].set_ylabel("AP50, %")
    return figure


def forest_figure(results: Results) -> "Figure | None":
    """Paired differences in AP50 as a forest plot; None where no difference has a seed.

    One panel per detector; a row per pair of methods and noise level, with its 95 % confidence
    interval where there are two seeds or more.
    """
    from matplotlib.figure import Figure

    frame = results.differences.query("metric == 'AP50' and num_seeds > 0")
    if frame.empty:
        return None
    groups = list(frame.groupby("detector", sort=False))
    num_rows = max(len(rows) for _, rows in groups)
    size = (7 * len(groups), 1.2 + 0.28 * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (detector, rows) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups):
        _draw_forest(axes, rows)
        axes.set_title(_plain(detector))
    return figure


def _draw_forest(axes: "Axes", rows: "DataFrame") -> None:
    labels = []
    for place, row in enumerate(rows.itertuples()):
        colour = COLOURS[2]
        if not math.isnan(row.ci95_low):
            low, high = row.mean - row.ci95_low, row.ci95_high - row.mean
            axes.errorbar(row.mean, place, xerr=[[low], [high]], color=colour, capsize=3)
        axes.plot(row.mean, place, "o", color=colour)
        labels.append(_plain(f"{row.method} − {row.reference}, {100 * row.noise:g} %"))
    axes.axvline(0, color="#777777", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.invert_yaxis()  # in the order of the table
    axes.set_xlabel("difference in AP50, points")
    axes.grid(axis="x", alpha=0.3)


def _draw(axes: "Axes", results: Results, index: int, method: Method) -> None:
    """The mean with a band of one standard deviation; published numbers are dotted."""
    means = results.means.query("metric == 'AP50' and detector == @method.detector")
    # The order of levels in the file need not be an ascending one.
    means = means[means["method"] == method.name].sort_values("noise")
    x, mean, std = 100 * means["noise"], means["mean"], means["std"]
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    name = _plain(method.name)
    axes.plot(x, mean, label=name, color=colour, marker=marker, linestyle=dashes)
    axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    if "AP50" in method.paper:
        label = f"{name} (published)"
        axes.plot(x, means["paper_mean"], label=label, color=colour, linestyle=":")


def _plain(name: str) -> str:
    """A name that matplotlib does not read as a formula."""
    return name.replace("$", r"\$")
