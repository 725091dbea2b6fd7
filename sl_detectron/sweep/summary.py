"""One number for a difference over several sets and detectors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from .grid import METRICS
from .reading import RUNS_FILE, read_results
from .results import Results, as_frame
from .statistics import difference_of, holm

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["NOTE", "read_many", "summarise", "write_summary"]

COLUMNS = (
    *("method", "reference", "noise", "metric", "num_groups", "num_better", "num_pairs"),
    *("mean", "standard_error", "ci95_low", "ci95_high", "p", "p_holm"),
)
NOTE = (
    "mean over all (set, detector, seed) that both methods have, each of which is one pair of a "
    "paired t test, counted as independent: the interval is of these sets and detectors, not of "
    "others. In brackets the 95 % confidence interval, and in how many of the groups (set, "
    "detector) the mean is above 0. * p below 0.05 after Holm's correction over all differences "
    "of this summary in a metric."
)


def summarise(results: Sequence[Results]) -> "DataFrame":
    """A row for each metric, pair of methods by name, and noise level, over sets and detectors.

    Args:
        results: of sweeps of several sets, or of one

    Returns:
        ``num_pairs`` differences of ``num_groups`` (set, detector), of which ``num_better`` have a
        mean above 0; their mean, standard error, 95 % interval, p, and p by Holm's correction over
        the rows of a metric
    """
    values: dict[tuple[str, str, float, str], list[list[float]]] = {}
    for metric in METRICS:
        for of_set in results:
            for pair in of_set.grid.pairs:
                for noise in of_set.grid.noise:
                    key = (pair[0].name, pair[1].name, noise, metric)
                    found = of_set.paired_values(pair, noise, metric)
                    values.setdefault(key, []).extend([found] if found else [])
    rows, metrics = [], [key[-1] for key in values]
    for key, groups in values.items():
        num_better = sum(sum(group) > 0 for group in groups)
        difference = difference_of([value for group in groups for value in group])
        rows.append((*key, len(groups), num_better, *(difference or (0, *[None] * 5))))
    adjusted: list[float | None] = []
    for metric in METRICS:
        adjusted += holm([row[-1] for row, m in zip(rows, metrics) if m == metric])
    return as_frame([(*row, p) for row, p in zip(rows, adjusted)], COLUMNS)


def read_many(folders: Sequence[str | os.PathLike], class_names: Sequence[str]) -> list[Results]:
    """The results of several sweeps, each from its folder or its table of runs.

    Raises:
        ValueError: a folder comes twice, or as :func:`read_results`
    """
    # A folder is the same set as its table of runs.
    paths = [os.path.realpath(folder).removesuffix(f"{os.sep}{RUNS_FILE}") for folder in folders]
    twice = [folder for folder, path in zip(folders, paths) if paths.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice: its runs would count twice")
    return [read_results(folder, class_names) for folder in folders]


def write_summary(
    folders: Sequence[str | os.PathLike], output: str | os.PathLike, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write ``summary.md`` and ``summary.csv`` of several sweeps; returns their paths.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_many`; no grid names a baseline
        ImportError: pandas or scipy is not installed
    """
    from .table import as_csv, summary_table  # which imports this module

    results = read_many(folders, class_names)
    frame = summarise(results)
    if frame.empty:
        raise ValueError("no grid has a baseline or controls, so that there is no difference")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) for folder in folders]
    paths = [path.parent if path.suffix == ".csv" else path for path in paths]
    over = [f" (mean over {', '.join(r.class_names)})" if r.class_names else "" for r in results]
    names = ", ".join((path.name or str(path)) + text for path, text in zip(paths, over))
    parts = [f"{len(folders)} sets: {names}.", f"Differences: {NOTE}"]
    parts += [summary_table(frame, metric) for metric in METRICS]
    texts = {"summary.md": "\n\n".join(parts) + "\n", "summary.csv": as_csv(frame)}
    for name, text in texts.items():
        write_text(output / name, text)
    return [output / name for name in texts]
