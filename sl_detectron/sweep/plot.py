"""A picture of a sweep: AP50 against label noise, one panel for each detector."""

import os
from typing import TYPE_CHECKING

from .grid import Method
from .results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_ap50"]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; without the
# yellow, which is faint on white. Markers and dashes tell methods apart in print.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":")


def plot_ap50(results: Results, paths: list[str | os.PathLike]) -> None:
    """Draw mean AP50 of every method with a band of one standard deviation.

    Published numbers, where the grid has them, are dotted lines of the same colour.

    Args:
        results: from :func:`~sl_detectron.sweep.read_results`
        paths: of the pictures; the suffix chooses the format

    Raises:
        ImportError: matplotlib is not installed
    """
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
    for path in paths:
        # Without a date, equal results give equal files.
        undated = {"CreationDate": None} if str(path).endswith(".pdf") else {}
        figure.savefig(path, dpi=80, metadata=undated)


def _draw(axes: "Axes", results: Results, index: int, method: Method) -> None:
    means = results.means.query("metric == 'AP50'")
    means = means[(means["detector"] == method.detector) & (means["method"] == method.name)]
    # The file's order need not be an ascending one.
    means = means.sort_values("noise")
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
