"""What a sweep's folder holds: the finished runs, their means and paired differences as tables."""

import dataclasses
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .grid import METRICS, Grid, Method, Run
from .grid_file import read_grid
from .state import GRID_FILE, OPTIONS_FILE, read_result
from .statistics import Difference, holm, paired_difference, seeds_needed

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Results", "as_frame", "read_results"]

CLASSES = "classes"  # in the file of runs: a,b,c if the metrics are means over these
RUN = ("detector", "method", "noise", "seed")
LEVEL = ("detector", "method", "noise", "metric")
MEANS = (*LEVEL, "num_seeds", "mean", "std", "paper_mean", "paper_std")
PAIR = ("detector", "method", "reference", "noise", "metric")
TEST = ("num_seeds", "mean", "standard_error", "ci95_low", "ci95_high", "p")
# Pairs that a difference of 1 point needs, by the spread of the differences.
SEEDS_NEEDED = "seeds_for_1_point"
DIFFERENCES = (*PAIR, *TEST, "p_holm", SEEDS_NEEDED)
LOST = (*LEVEL, *TEST, "paper")
NOTHING = (0, None, None, None, None, None)
NAMES = ("detector", "method", "reference", "metric")
INTEGERS = ("seed", "num_seeds", "num_pairs", "num_groups", "num_better")
# Of columns that hold no floats.
DTYPES = {**dict.fromkeys(NAMES, str), **dict.fromkeys(INTEGERS, int), SEEDS_NEEDED: "Int64"}


@dataclass(frozen=True)
class Results:
    """Finished runs of a grid. In all tables numbers are in percent, and NaN where there is none.

    Attributes:
        runs: a row for each finished run: detector, method, noise, seed, AP, AP50, AP75
        class_names: over which the metrics are means; empty for all
        undefined: runs that are finished, but whose evaluation gave no number (NaN), as without
            an object of a class; they count as missing
    """

    grid: Grid
    runs: "DataFrame"
    class_names: tuple[str, ...] = ()
    undefined: tuple[Run, ...] = ()

    @cached_property
    def means(self) -> "DataFrame":
        """A row for each metric, method and noise level, with the published numbers beside ours."""
        rows = []
        levels = enumerate(self.grid.noise)
        for metric, method, (i, noise) in product(METRICS, self.grid.methods, levels):
            level = (method.detector, method.name, noise, metric)
            values = self._by_seed[level]
            paper = method.paper[metric][i] if metric in method.paper else (None, None)
            rows.append((*level, len(values), values.mean(), values.std(), *paper))
        return as_frame(rows, MEANS)

    @cached_property
    def differences(self) -> "DataFrame":
        """A row for each metric, pair of methods and noise level, paired by seed.

        ``p_holm`` is p by Holm's correction over all differences in a metric.
        """
        rows = []
        for metric in METRICS:
            found = [
                (pair, noise, self._difference(self._values(pair[0], noise, metric), other))
                for pair, noise in product(self.grid.pairs, self.grid.noise)
                for other in [self._values(pair[1], noise, metric)]
            ]
            for (pair, noise, test), p in zip(found, holm([test[-1] for _, _, test in found])):
                names = (pair[0].detector, pair[0].name, pair[1].name)
                num, error = test[0], test[2]
                needed = None if error is None else seeds_needed(error * math.sqrt(num))
                rows.append((*names, noise, metric, *test, p, needed))
        return as_frame(rows, DIFFERENCES)

    @cached_property
    def lost(self) -> "DataFrame":
        """What each method loses from noise 0, at each other level: its clean number minus that.

        Paired by seed. Where no seed has both, ``mean`` is the difference of the two means and
        ``num_seeds`` 0. ``paper`` is what the published numbers lose. No row without noise 0.
        """
        rows = []
        levels = self.grid.noise if 0 in self.grid.noise else ()
        clean = levels.index(0) if levels else 0
        for metric, method, (i, noise) in product(METRICS, self.grid.methods, enumerate(levels)):
            if not noise:
                continue
            first, second = (self._values(method, n, metric) for n in (0.0, noise))
            test = self._difference(first, second)
            if not test[0] and first and second:
                test = (0, fmean(first.values()) - fmean(second.values()), *NOTHING[2:])
            paper = method.paper.get(metric)
            gone = None if paper is None else paper[clean][0] - paper[i][0]
            rows.append((method.detector, method.name, noise, metric, *test, gone))
        return as_frame(rows, LOST)

    def paired_values(self, pair: tuple[Method, Method], noise: float, metric: str) -> list[float]:
        """First minus second of each seed that both have."""
        first, second = (self._values(method, noise, metric) for method in pair)
        return [first[seed] - second[seed] for seed in sorted(first.keys() & second)]

    def _values(self, method: Method, noise: float, metric: str) -> dict[int, float]:
        return self._by_seed[method.detector, method.name, noise, metric].to_dict()

    @staticmethod
    def _difference(first: dict[int, float], second: dict[int, float]) -> Difference | Any:
        return paired_difference(first, second) or NOTHING

    @cached_property
    def _by_seed(self) -> "dict[tuple[str, str, float, str], Series]":
        """The finished values of each level, by seed; nothing of one without any."""
        values = self.runs.melt(RUN, METRICS, "metric", "percent").set_index("seed")
        groups = iter(values.groupby([*LEVEL])["percent"])
        return defaultdict(lambda: values["percent"][:0], groups)


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
        ValueError: a file in it is damaged, a result lacks AP, AP50 or AP75, of a class, or
            ``class_names`` are given for a file, which has no metrics by class
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
    return Results(grid, as_frame(rows, (*RUN, *METRICS)), tuple(class_names), tuple(undefined))


def _read_file(path: Path, grid: Grid) -> Results:
    import pandas as pd

    columns = [*RUN, *METRICS]
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := [name for name in columns if name not in frame]:
            raise ValueError(f"no column {missing[0]}")
        runs = as_frame(list(frame[columns].itertuples(index=False)), tuple(columns))
        if not runs[[*METRICS]].map(math.isfinite).all(axis=None):
            raise ValueError("a metric that is no number")
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
    order = [(run.method.detector, run.method.name, run.noise, run.seed) for run in grid.runs]
    keys = list(runs[[*RUN]].itertuples(index=False, name=None))
    for i, key in enumerate(keys):
        if key not in order or key in keys[:i]:
            what = "comes twice" if key in order else f"is not in the {GRID_FILE} beside it"
            raise ValueError(f"the run {', '.join(map(str, key))} {what}")
    places = sorted(range(len(keys)), key=lambda i: order.index(keys[i]))
    return runs.iloc[places].reset_index(drop=True)


def as_frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> "DataFrame":
    """Rows as a table whose columns have their types also where there is no row."""
    import pandas as pd  # takes a quarter of a second, and runs import this package

    # The types are given, as there may be no row to tell them from.
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({column: DTYPES.get(column, float) for column in columns})


def _read_options(path: Path) -> tuple[list[str], float]:
    """Options and scale of the command line; an older version wrote the options alone."""
    try:
        content = json.loads(path.read_text()) if path.exists() else []
        if isinstance(content, list):
            return content, 1.0
        return content["opts"], float(content["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; start the sweep again") from error
