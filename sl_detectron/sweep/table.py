"""Results of a sweep as Markdown, LaTeX and CSV."""

import csv
import io
from dataclasses import dataclass

from tabulate import tabulate

from .grid import METRICS, Method
from .results import Results
from .statistics import Difference, Summary

__all__ = ["differences_csv", "latex", "markdown", "means_csv", "runs_csv"]

MISSING = "–"
# What tabulate, which escapes LaTeX's own characters, leaves as it is.
LATEX: dict[str, str | int | None] = {
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "τ": r"$\tau$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
}
RUNS_COLUMNS = ("detector", "method", "noise", "seed", *METRICS)
MEANS_COLUMNS = (
    *("detector", "method", "noise", "metric", "num_seeds", "mean", "std"),
    *("paper_mean", "paper_std"),
)
DIFFERENCE_COLUMNS = (
    *("detector", "method", "reference", "noise", "metric", "num_seeds", "mean"),
    *("standard_error", "ci95_low", "ci95_high"),
)


@dataclass(frozen=True)
class _Table:
    title: str
    head: list[str]
    rows: list[list[str]]


def markdown(results: Results) -> str:
    """All tables with the notes that they need, as a Markdown page."""
    parts = [*_notes(results)]
    for table in _tables(results):
        rows = [[run.replace("|", r"\|") for run in row] for row in table.rows]
        body = tabulate(rows, table.head, tablefmt="pipe", disable_numparse=True)
        parts += [f"## {table.title}", body]
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    r"""All tables as ``table`` environments; they need ``\usepackage{booktabs}``."""
    parts = [f"% {note}" for note in _notes(results)]
    for table in _tables(results):
        body = tabulate(table.rows, table.head, tablefmt="latex_booktabs", disable_numparse=True)
        caption = table.title.replace("%", r"\%")
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{body}\n\\end{{table}}"
        )
    return ("\n\n".join(parts) + "\n").translate(str.maketrans(LATEX))


def runs_csv(results: Results) -> str:
    """One line for each finished run; numbers in percent."""
    rows = []
    for run, metrics in results.metrics.items():
        names = (run.method.detector, run.method.name, f"{run.noise:g}", run.seed)
        rows.append([*names, *(_decimal(metrics[metric]) for metric in METRICS)])
    return _csv(RUNS_COLUMNS, rows)


def means_csv(results: Results) -> str:
    """One line for each method, noise level and metric; numbers in percent, empty where missing."""
    rows = []
    for metric in METRICS:
        for method in results.grid.methods:
            for i, noise in enumerate(results.grid.noise):
                summary = results.summary(method, noise, metric)
                numbers = (0, None, None) if summary is None else summary
                paper = method.paper[metric][i] if metric in method.paper else (None, None)
                head = (method.detector, method.name, f"{noise:g}", metric, numbers[0])
                rows.append([*head, *map(_decimal, (*numbers[1:], *paper))])
    return _csv(MEANS_COLUMNS, rows)


def differences_csv(results: Results) -> str:
    """One line for each pair of methods, noise level and metric; as :func:`means_csv`."""
    rows = []
    for metric in METRICS:
        for method, reference in results.pairs():
            for noise in results.grid.noise:
                difference = results.difference(method, reference, noise, metric)
                numbers = (0, None, None, None, None) if difference is None else difference
                names = (method.detector, method.name, reference.name, f"{noise:g}", metric)
                rows.append([*names, numbers[0], *map(_decimal, numbers[1:])])
    return _csv(DIFFERENCE_COLUMNS, rows)


def _notes(results: Results) -> list[str]:
    grid = results.grid
    num, total = len(grid.seeds), len(grid.runs)
    if num == 1:
        notes = ["Percent, one seed: no standard deviation and no confidence interval."]
    else:
        notes = [
            f"Percent; mean ± standard deviation over {num} seeds of weights, data order and label "
            "noise. n: number of seeds where it is smaller."
        ]
    if grid.opts:
        # The published numbers are those of the grid as its file has it.
        pairs = ", ".join(f"{k} {v}" for k, v in zip(grid.opts[::2], grid.opts[1::2]))
        notes.append(f"Options that are not in the grid's file: {pairs}.")
    if results.class_names:
        notes.append(f"Mean over {', '.join(results.class_names)}.")
    if results.missing:
        notes.append(f"{len(results.missing)} of {total} runs are missing ({MISSING}).")
    if results.undefined:
        first = results.undefined[0]
        notes.append(
            f"{len(results.undefined)} of them are finished, but without a number (NaN), first "
            f"{first}."
        )
    if any(method.paper for method in grid.methods):
        notes.append(f"Published: {grid.source or 'see the grid file'}.")
    # A note is one line: of LaTeX it is a comment.
    return [" ".join(note.split()) for note in notes]


def _tables(results: Results) -> list[_Table]:
    levels = [f"{100 * noise:g} %" for noise in results.grid.noise]
    tables = [
        _Table(
            f"{metric} by wrong labels", ["detector", "method", *levels], _means(results, metric)
        )
        for metric in METRICS
    ]
    for metric in METRICS:
        rows = _differences(results, metric)
        if rows:
            title = f"Differences in {metric}"
            if len(results.grid.seeds) > 1:
                title += ", paired by seed: mean ± standard error [95 % confidence interval]"
            tables.append(_Table(title, ["detector", "difference", *levels], rows))
    return tables


def _means(results: Results, metric: str) -> list[list[str]]:
    rows: list[list[str]] = []
    for method in results.grid.methods:
        summaries = [results.summary(method, noise, metric) for noise in results.grid.noise]
        runs = [_mean(summary, len(results.grid.seeds)) for summary in summaries]
        rows.append([*_names(rows, method), *runs])
        if metric in method.paper:
            rows.append(["", "(published)", *(_spread(*value) for value in method.paper[metric])])
    return rows


def _names(rows: list[list[str]], method: Method) -> tuple[str, str]:
    """Detector and method; a detector is named once."""
    named = any(row[0] == method.detector for row in rows)
    return "" if named else method.detector, method.name


def _differences(results: Results, metric: str) -> list[list[str]]:
    rows: list[list[str]] = []
    for method, reference in results.pairs():
        detector, name = _names(rows, method)
        runs = [
            _difference(
                results.difference(method, reference, noise, metric), len(results.grid.seeds)
            )
            for noise in results.grid.noise
        ]
        rows.append([detector, f"{name} − {reference.name}", *runs])
    return rows


def _mean(summary: Summary | None, num_seeds: int) -> str:
    if summary is None:
        return MISSING
    return _spread(summary.mean, summary.std) + _count(summary.num, num_seeds)


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _difference(difference: Difference | None, num_seeds: int) -> str:
    if difference is None:
        return MISSING
    num, mean, error, low, high = difference
    text = _signed(round(mean, 1) + 0.0)  # no negative zero
    if error is not None and low is not None and high is not None:
        # Here −0.0 says that the interval includes 0.
        text += f" ± {error:.1f} [{_signed(low)}, {_signed(high)}]"
    return text + _count(num, num_seeds)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _count(num: int, num_seeds: int) -> str:
    return f" (n = {num})" if num < num_seeds else ""


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _csv(columns: tuple[str, ...], rows: list[list]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()
