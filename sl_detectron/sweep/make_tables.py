"""Tables and a plot of a sweep as files."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..files import write_text
from .plot import plot_ap50
from .results import read_results
from .table import differences_csv, latex, markdown, means_csv, runs_csv

__all__ = ["make_tables"]

WRITERS = {
    "table.md": markdown,
    "table.tex": latex,
    "table.csv": means_csv,
    "runs.csv": runs_csv,
    "differences.csv": differences_csv,
}
PLOTS = ("ap50.png", "ap50.pdf")


def make_tables(
    folder: str | os.PathLike, output: str | os.PathLike, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write tables and plot of what is finished of a sweep.

    Args:
        folder: of the sweep
        output: where to write; it is made where it is missing
        class_names: over which to take the means, in place of all

    Returns:
        paths of the files

    Raises:
        FileNotFoundError: ``folder`` is not the folder of a sweep
        ValueError: a file in it is damaged, or has no such class
        ImportError: scipy or matplotlib is not installed
    """
    results = read_results(folder, class_names)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    for name, render in WRITERS.items():
        write_text(output / name, render(results))
    plot_ap50(results, [output / name for name in PLOTS])
    return [output / name for name in (*WRITERS, *PLOTS)]
