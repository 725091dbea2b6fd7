"""Results of a sweep as Markdown, LaTeX, CSV, a picture and a page."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from ..files import write_text
from .page import web_page
from .plots import ap50_figure
from .reading import CLASSES, RUNS_FILE, read_results
from .results import Results
from .text_tables import notes_of, summary_rows, tables

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["as_csv", "latex", "make_tables", "markdown", "summary_table"]

# What tabulate, which escapes LaTeX's own characters, leaves as it is.
LATEX = str.maketrans(
    {"±": r"$\pm$", "−": "$-$", "–": "--", "τ": r"$\tau$", "λ": r"$\lambda$", "σ": r"$\sigma$"}
)
PLOTS = ("ap50.png", "ap50.pdf")
PAGE = "table.html"


def make_tables(
    folder: str | os.PathLike, output: str | os.PathLike, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write tables and plot of what is finished of a sweep; returns the paths of the files.

    Args:
        folder: of the sweep, or its ``runs.csv``, see :func:`~sl_detectron.sweep.read_results`
        output: where to write; it is made where it is missing
        class_names: over which to take the means, in place of all

    Raises:
        FileNotFoundError: ``folder`` is not the folder of a sweep
        ValueError: as :func:`~sl_detectron.sweep.read_results`
        ImportError: pandas, scipy or matplotlib is not installed
    """
    results = read_results(folder, class_names)
    texts = {
        "table.md": markdown(results),
        "table.tex": latex(results),
        "table.csv": as_csv(results.means),
        RUNS_FILE: as_csv(results.runs.assign(**{CLASSES: ",".join(results.class_names)})),
        "differences.csv": as_csv(results.differences),
        "lost.csv": as_csv(results.lost),
        "recovered.csv": as_csv(results.recovered),
        "power.csv": as_csv(results.power),
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
    parts = notes_of(results)
    for title, rows in tables(results):
        rows = [[text.replace("|", r"\|") for text in row] for row in rows]
        parts += [f"## {title}", tabulate(rows, "firstrow", "pipe", disable_numparse=True)]
    return "\n\n".join(parts) + "\n"


def latex(results: Results) -> str:
    r"""All tables as ``table`` environments; they need ``\usepackage{booktabs}``."""
    parts = [f"% {note}" for note in notes_of(results)]
    for title, rows in tables(results):
        caption = f"\\caption{{{title}}}".replace("%", r"\%")
        body = tabulate(rows, "firstrow", "latex_booktabs", disable_numparse=True)
        parts.append(f"\\begin{{table}}\n\\centering\n{caption}\n{body}\n\\end{{table}}")
    return ("\n\n".join(parts) + "\n").translate(LATEX)


def as_csv(frame: "DataFrame") -> str:
    """A table of :class:`Results` with four decimals, and nothing where a number is missing."""
    if "noise" in frame:
        frame = frame.assign(noise=frame["noise"].map("{:g}".format))
    return frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def summary_table(frame: "DataFrame", metric: str) -> str:
    """Markdown of :func:`~sl_detectron.sweep.summary.summarise`, of one metric."""
    rows = [[text.replace("|", r"\|") for text in row] for row in summary_rows(frame, metric)]
    return f"## Differences in {metric}\n\n" + tabulate(
        rows, "firstrow", "pipe", disable_numparse=True
    )
