"""Results of a sweep as Markdown, LaTeX, CSV and a picture."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ..files import write_text
from .grid import METRICS, Method
from .results import Results, read_results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

__all__ = ["as_csv", "latex", "make_tables", "markdown"]

MISSING = "–"
# What tabulate, which escapes LaTeX's own characters, leaves as it is.
LATEX = str.maketrans(
    {"±": r"$\pm$", "−": "$-$", "–": "--", "τ": r"$\tau$", "λ": r"$\lambda$", "σ": r"$\sigma$"}
)
PLOTS = ("ap50.png", "ap50.pdf")
# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; without the
# yellow, which is faint on white. Markers and dashes tell methods apart in print.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = "osD^vP*X"
DASHES = ("-", "--", "-.", ":")

# A title, and a table whose first row is its head.
Table = tuple[str, list[list[str]]]


def make_tables(
    folder: str | os.PathLike, output: str | os.PathLike, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write tables and plot of what is finished of a sweep; returns the paths of the files.

    Args:
        folder: of the sweep
        output: where to write; it is made where it is missing
        class_names: over which to take the means, in place of all

    Raises:
        FileNotFoundError: ``folder`` is not the folder of a sweep
        ValueError: a file in it is damaged, or has no such class
        ImportError: pandas, scipy or matplotlib is not installed
    """
    results = read_results(folder, class_names)
    texts = {
        "table.md": markdown(results),
        "table.tex": latex(results),
        "table.csv": as_csv(results.means),
        "runs.csv": as_csv(results.runs),
        "differences.csv": as_csv(results.differences),
    }
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(output / name, text)
    _plot(results, [output / name for name in PLOTS])
    return [output / name for name in (*texts, *PLOTS)]


def markdown(results: Results) -> str:
    """All tables with the notes that they need, as a Markdown page."""
    parts = _notes(results)
    for title, rows in _tables(results):
        rows = [[text.replace("|", r"\|") for text in row] for row in rows]
        parts += [f"## {title}", tabulate(rows, "firstrow", "pipe", disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    r"""All tables as ``table`` environments; they need ``\usepackage{booktabs}``."""
    parts = [f"% {note}" for note in _notes(results)]
    for title, rows in _tables(results):
        caption = f"\\caption{{{title}}}".replace("%", r"\%")
        body = tabulate(rows, "firstrow", "latex_booktabs", disable_numparse=True)
        parts.append(f"\\begin{{table}}\n\\centering\n{caption}\n{body}\n\\end{{table}}")
    return ("\n\n".join(parts) + "\n").translate(LATEX)


def as_csv(frame: "DataFrame") -> str:
    """A table of :class:`Results` with four decimals, and nothing where a number is missing."""
    frame = frame.assign(noise=frame["noise"].map("{:g}".format))
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def _notes(results: Results) -> list[str]:
    grid = results.grid
    num, missing = len(grid.seeds), len(grid.runs) - len(results.runs)
    notes = ["Percent, one seed: no standard deviation and no confidence interval."]
    if num > 1:
        notes = [
            f"Percent; mean ± standard deviation over {num} seeds of weights, data order and label "
            "noise. n: number of seeds where it is smaller."
        ]
    if grid.opts:
        pairs = ", ".join(map(" ".join, zip(grid.opts[::2], grid.opts[1::2])))
        notes.append(f"Options that are not in the grid's file: {pairs}.")
    if results.class_names:
        notes.append(f"Mean over {', '.join(results.class_names)}.")
    if missing:
        notes.append(f"{missing} of {len(grid.runs)} runs are missing ({MISSING}).")
    if results.undefined:
        num, first = len(results.undefined), results.undefined[0]
        notes.append(f"{num} of them are finished, but without a number (NaN), first {first}.")
    if any(method.paper for method in grid.methods):
        notes.append(f"Published: {grid.source or 'see the grid file'}.")
    # A note is one line: of LaTeX it is a comment.
    return [" ".join(note.split()) for note in notes]


def _tables(results: Results) -> Iterator[Table]:
    num_seeds = len(results.grid.seeds)
    levels = [f"{100 * noise:g} %" for noise in results.grid.noise]
    for metric in METRICS:
        rows = []
        for (detector, name), method in _groups(results.means, metric, "method"):
            rows.append([detector, name, *_texts(method, _mean, num_seeds)])
            if method["paper_mean"].notna().any():
                paper = map(_spread, method["paper_mean"], method["paper_std"])
                rows.append([detector, "(published)", *paper])
        yield f"{metric} by wrong labels", [["detector", "method", *levels], *_once(rows)]
    how = ", paired by seed: mean ± standard error [95 % confidence interval]"
    for metric in METRICS if results.grid.pairs else ():
        rows = [
            [detector, " − ".join(names), *_texts(pair, _difference, num_seeds)]
            for (detector, *names), pair in _groups(
                results.differences, metric, "method", "reference"
            )
        ]
        title = f"Differences in {metric}{how if num_seeds > 1 else ''}"
        yield title, [["detector", "difference", *levels], *_once(rows)]


def _groups(frame: "DataFrame", metric: str, *names: str) -> Any:
    """The rows of each detector and names, by noise level; in the order of the grid."""
    return frame[frame["metric"] == metric].groupby(["detector", *names], sort=False)


def _texts(rows: "DataFrame", write: Callable[[Any], str], num_seeds: int) -> Iterator[str]:
    for row in rows.itertuples():
        count = f" (n = {row.num_seeds})" if row.num_seeds < num_seeds else ""
        yield write(row) + count if row.num_seeds else MISSING


def _once(rows: list[list[str]]) -> list[list[str]]:
    """Each detector is named in its first row only."""
    firsts = {row[0]: i for i, row in reversed([*enumerate(rows)])}
    return [[row[0] if firsts[row[0]] == i else "", *row[1:]] for i, row in enumerate(rows)]


def _mean(row: Any) -> str:
    return _spread(row.mean, row.std)


def _spread(mean: float, std: float) -> str:
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def _difference(row: Any) -> str:
    text = _signed(round(row.mean, 1) + 0.0)  # no negative zero
    if row.num_seeds > 1:
        # Here −0.0 says that the interval includes 0.
        text += f" ± {row.standard_error:.1f} [{_signed(row.ci95_low)}, {_signed(row.ci95_high)}]"
    return text


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _plot(results: Results, paths: list[Path]) -> None:
    """AP50 against label noise, one panel for each detector, in files of several formats."""
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
        undated = {"CreationDate": None} if path.suffix == ".pdf" else {}
        figure.savefig(path, dpi=80, metadata=undated)


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
