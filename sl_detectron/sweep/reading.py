"""Results of a sweep from its folder, or from the table of runs that it was published as."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from .grid import METRICS, Grid
from .grid_file import read_grid
from .results import RUN, Results, as_frame
from .state import GRID_FILE, OPTIONS_FILE, read_result

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["CLASSES", "RUNS_FILE", "read_results"]

RUNS_FILE = "runs.csv"
CLASSES = "classes"  # in the table of runs: a,b,c if the metrics are means over these


def read_results(source: str | os.PathLike, class_names: Sequence[str] = ()) -> Results:
    """Read the grid and all results of a sweep, from its folder or from its table of runs.

    Args:
        source: what ``tools/sweep.py`` had as ``--output``; or a ``.csv`` file that
            :func:`~sl_detectron.sweep.make_tables` wrote of the runs, with the sweep's
            ``grid.yaml`` and ``options.json`` beside it
        class_names: over which to take the means, in place of all; the published numbers, which
            are over all, are left out

    Raises:
        FileNotFoundError: it is not the folder of a sweep, or there is no such file
        ValueError: a file in it is damaged, a result lacks AP, AP50 or AP75, of a class, the
            folder has no result but a ``runs.csv``, or ``class_names`` are given for a file,
            which has no metrics by class
        ImportError: pandas is not installed
    """
    source = Path(source)
    from_file = source.suffix == ".csv"
    folder = source.parent if from_file else source
    if not (folder / GRID_FILE).is_file():
        what = f"the runs of {source.name} are unknown" if from_file else "it is not a sweep's"
        raise FileNotFoundError(f"{folder} holds no {GRID_FILE}, so that {what}")
    grid = read_grid(folder / GRID_FILE, *_read_options(folder / OPTIONS_FILE))
    if not from_file:
        return _read_folder(folder, _without_paper(grid) if class_names else grid, class_names)
    if class_names:
        raise ValueError(f"{source} has no metrics by class: name the sweep's folder instead")
    return _read_file(source, grid)


def _without_paper(grid: Grid) -> Grid:
    methods = tuple(dataclasses.replace(method, paper={}) for method in grid.methods)
    return dataclasses.replace(grid, methods=methods)


def _read_folder(folder: Path, grid: Grid, class_names: Sequence[str]) -> Results:
    suffixes = [f"-{name}" for name in class_names] or [""]
    rows, undefined = [], []
    for run in grid.runs:
        result = read_result(folder / run.folder)
        if result is None:
            continue
        try:
            values = [fmean(result["metrics"][m + end] for end in suffixes) for m in METRICS]
        except (KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else "a metric that is no number"
            raise ValueError(f"the result in {folder / run.folder} has {what}") from error
        if all(map(math.isfinite, values)):
            rows.append((run.method.detector, run.method.name, run.noise, run.seed, *values))
        else:
            undefined.append(run)
    if not (rows or undefined) and _has_runs(folder / RUNS_FILE):
        # Published runs: tables of the folder would replace them by those of no run.
        raise ValueError(f"{folder} has no result of a run; its {RUNS_FILE} has: name that file")
    return Results(grid, as_frame(rows, (*RUN, *METRICS)), tuple(class_names), tuple(undefined))


def _has_runs(path: Path) -> bool:
    return path.is_file() and len(path.read_bytes().splitlines()) > 1


def _read_file(path: Path, grid: Grid) -> Results:
    import pandas as pd

    columns = [*RUN, *METRICS]
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := [name for name in columns if name not in frame]:
            raise ValueError(f"no column {missing[0]}")
        runs = as_frame(list(frame[columns].itertuples(index=False)), tuple(columns))
        if not runs[[*METRICS]].map(lambda percent: 0 <= percent <= 100).all(axis=None):
            raise ValueError("a metric that is no number in [0, 100]")
        runs = _in_order(runs, grid)
        classes = set(frame.get(CLASSES, [""]))
        if len(classes) > 1:
            raise ValueError(f"means over different classes: {' and '.join(sorted(classes))}")
    except ValueError as error:  # pandas' errors of syntax are too
        raise ValueError(f"{path}: {error}") from error
    names = tuple(filter(None, ",".join(classes).split(",")))
    return Results(_without_paper(grid) if names else grid, runs, names)


def _in_order(runs: "DataFrame", grid: Grid) -> "DataFrame":
    """The rows in the order of the grid, which has each run once."""
    order = {
        (run.method.detector, run.method.name, run.noise, run.seed): place
        for place, run in enumerate(grid.runs)
    }
    levels = {f"{noise:g}": noise for noise in grid.noise}  # as the file has them
    runs["noise"] = [levels.get(f"{noise:g}", noise) for noise in runs["noise"]]
    keys = list(runs[[*RUN]].itertuples(index=False, name=None))
    for i, key in enumerate(keys):
        if key not in order or key in keys[:i]:
            what = "comes twice" if key in order else f"is not in the {GRID_FILE} beside it"
            raise ValueError(f"the run {', '.join(map(str, key))} {what}")
    return runs.iloc[sorted(range(len(keys)), key=lambda i: order[keys[i]])].reset_index(drop=True)


def _read_options(path: Path) -> tuple[list[str], float]:
    """Options and scale of the command line; an older version wrote the options alone."""
    try:
        content = json.loads(path.read_text()) if path.exists() else []
        if isinstance(content, list):
            return content, 1.0
        return content["opts"], float(content["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; start the sweep again") from error
