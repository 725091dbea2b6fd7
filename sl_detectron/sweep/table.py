"""Results of a sweep as Markdown, LaTeX, CSV, a picture and a page."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ..files import write_text
from ..visualization.report_page import Cell, figure_part, html_page, section, table_part
from .grid import METRICS
from .plots import ap50_figure, forest_figure
from .results import Results, read_results

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["as_csv", "latex", "make_tables", "markdown", "web_page"]

MISSING = "–"
# What tabulate, which escapes LaTeX's own characters, leaves as it is.
LATEX = str.maketrans(
    {"±": r"$\pm$", "−": "$-$", "–": "--", "τ": r"$\tau$", "λ": r"$\lambda$", "σ": r"$\sigma$"}
)
PLOTS = ("ap50.png", "ap50.pdf")
PAGE = "table.html"

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
        PAGE: web_page(results),
    }
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(output / name, text)
    figure = ap50_figure(results)
    for name in PLOTS:
        # Without a date, equal results give equal files.
        undated = {"CreationDate": None} if name.endswith(".pdf") else {}
        figure.savefig(output / name, dpi=80, metadata=undated)
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


def web_page(results: Results) -> str:
    """All tables, AP50 against noise and the differences of AP50, as one self-contained page."""
    notes = _notes(results)
    parts = [
        section(
            "AP50 by wrong labels",
            "Bands: one standard deviation over seeds. Dotted: published numbers.",
            figure_part(ap50_figure(results), "AP50 of each method against the share of noise"),
        )
    ]
    forest = forest_figure(results)
    if forest is not None:
        parts.append(
            section(
                "Differences in AP50, paired by seed",
                "Points: means over seeds. Bars: 95 % confidence intervals, where there are two or "
                "more seeds; one that crosses 0 leaves the sign open.",
                figure_part(forest, "Paired differences in AP50 with confidence intervals"),
            )
        )
    parts.append(section("Means over seeds, %", "", _means_part(results)))
    if results.grid.pairs:
        parts.append(section("Paired differences, %", "", _differences_part(results)))
    return html_page("Results of a sweep", " ".join(notes), parts)


def _means_part(results: Results) -> str:
    num_seeds = len(results.grid.seeds)
    head = ["detector", "method", "metric", "wrong labels, %", "mean ± std", "seeds", "published"]
    rows = [
        [
            *(row.detector, row.method, row.metric, Cell(f"{100 * row.noise:g}", row.noise)),
            _cell(row, _mean(row)),
            Cell(f"{row.num_seeds} of {num_seeds}", row.num_seeds),
            Cell(MISSING)
            if math.isnan(row.paper_mean)
            else Cell(_spread(row.paper_mean, row.paper_std), row.paper_mean),
        ]
        for row in results.means.astype({"paper_mean": float, "paper_std": float}).itertuples()
    ]
    return table_part(head, rows, "A click on the head of a column sorts by it.")


def _differences_part(results: Results) -> str:
    head = ["detector", "difference", "metric", "wrong labels, %", "mean", "standard error"]
    head += ["95 % from", "to", "seeds"]
    rows = [
        [
            *(row.detector, f"{row.method} − {row.reference}", row.metric),
            Cell(f"{100 * row.noise:g}", row.noise),
            *(
                _number(value, signed)
                for value, signed in (
                    *((row.mean, True), (row.standard_error, False)),
                    *((row.ci95_low, True), (row.ci95_high, True)),
                )
            ),
            Cell(str(row.num_seeds), row.num_seeds),
        ]
        for row in results.differences.itertuples()
    ]
    return table_part(head, rows, "A click on the head of a column sorts by it.")


def _number(value: float | None, signed: bool) -> Cell:
    if value is None or math.isnan(value):
        return Cell(MISSING)
    return Cell(_signed(value) if signed else f"{value:.1f}", value)


def _cell(row: Any, text: str) -> Cell:
    return Cell(text, row.mean) if row.num_seeds else Cell(MISSING)


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
