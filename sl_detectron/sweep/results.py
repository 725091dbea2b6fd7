"""What a sweep's folder holds: the finished runs, their means and paired differences as tables."""

import dataclasses
import json
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from .grid import METRICS, Grid, Run
from .grid_file import read_grid
from .state import GRID_FILE, OPTIONS_FILE, read_result

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Results", "paired_difference", "read_results"]

RUN = ("detector", "method", "noise", "seed")
LEVEL = ("detector", "method", "noise", "metric")
MEANS = (*LEVEL, "num_seeds", "mean", "std", "paper_mean", "paper_std")
PAIR = ("detector", "method", "reference", "noise", "metric")
DIFFERENCES = (*PAIR, "num_seeds", "mean", "standard_error", "ci95_low", "ci95_high")
NAMES, INTEGERS = ("detector", "method", "reference", "metric"), ("seed", "num_seeds")
# Of columns that hold no floats.
DTYPES = {**dict.fromkeys(NAMES, str), **dict.fromkeys(INTEGERS, int)}


class Difference(NamedTuple):
    """Of two methods at one noise level, over the seeds that both have.

    The standard error of the mean and the bounds of its 95 % confidence interval are None for one
    seed.
    """

    num: int
    mean: float
    error: float | None
    low: float | None
    high: float | None


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """First minus second, {seed: value} each, with Student's t for the confidence interval.

    A seed fixes noise, order and weights for both, and what they share cancels out. None if they
    share no seed.

    Raises:
        ImportError: scipy is not installed

    Example:
        >>> paired_difference({0: 3.0, 1: 6.0, 2: 6.0}, {0: 2.0, 1: 4.0, 2: 3.0})
        Difference(num=3, mean=2.0, error=0.577..., low=-0.484..., high=4.484...)
    """
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second)]
    if len(pairs) < 2:
        return Difference(1, pairs[0][0] - pairs[0][1], None, None, None) if pairs else None
    from scipy.stats import sem, ttest_rel  # takes half a second, and runs import this package

    differences = [a - b for a, b in pairs]
    with warnings.catch_warnings():
        # Equal differences, whose interval is a point.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        low, high = ttest_rel(*zip(*pairs)).confidence_interval(0.95)
    error = float(sem(differences))
    return Difference(len(pairs), fmean(differences), error, float(low), float(high))


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
        return _frame(rows, MEANS)

    @cached_property
    def differences(self) -> "DataFrame":
        """A row for each metric, pair of methods and noise level, paired by seed."""
        rows = []
        for metric, pair, noise in product(METRICS, self.grid.pairs, self.grid.noise):
            values = [self._by_seed[m.detector, m.name, noise, metric].to_dict() for m in pair]
            difference = paired_difference(*values) or (0, None, None, None, None)
            names = (pair[0].detector, pair[0].name, pair[1].name)
            rows.append((*names, noise, metric, *difference))
        return _frame(rows, DIFFERENCES)

    @cached_property
    def _by_seed(self) -> "dict[tuple[str, str, float, str], Series]":
        """The finished values of each level, by seed; nothing of one without any."""
        values = self.runs.melt(RUN, METRICS, "metric", "percent").set_index("seed")
        groups = iter(values.groupby([*LEVEL])["percent"])
        return defaultdict(lambda: values["percent"][:0], groups)


def read_results(folder: str | os.PathLike, class_names: Sequence[str] = ()) -> Results:
    """Read the grid and all results of a sweep's folder.

    Args:
        folder: what ``tools/sweep.py`` had as ``--output``
        class_names: over which to take the means, in place of all; the published numbers, which
            are over all, are left out

    Raises:
        FileNotFoundError: it is not the folder of a sweep
        ValueError: a file in it is damaged, or a result lacks AP, AP50 or AP75, of a class
        ImportError: pandas is not installed
    """
    folder = Path(folder)
    if not (folder / GRID_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no {GRID_FILE}, so it is not the folder of a sweep"
        )
    grid = read_grid(folder / GRID_FILE, _read_options(folder / OPTIONS_FILE))
    if class_names:
        methods = tuple(dataclasses.replace(method, paper={}) for method in grid.methods)
        grid = dataclasses.replace(grid, methods=methods)
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
    return Results(grid, _frame(rows, (*RUN, *METRICS)), tuple(class_names), tuple(undefined))


def _frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> "DataFrame":
    import pandas as pd  # takes a quarter of a second, and runs import this package

    # The types are given, as there may be no row to tell them from.
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({column: DTYPES.get(column, float) for column in columns})


def _read_options(path: Path) -> list[str]:
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; start the sweep again") from error
