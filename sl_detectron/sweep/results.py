"""What a sweep's folder holds: the finished runs, their means and paired differences as tables."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .grid import METRICS, Grid, Run
from .grid_file import read_grid
from .state import GRID_FILE, OPTIONS_FILE, read_result
from .statistics import paired_difference

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Results", "read_results"]

RUN = ("detector", "method", "noise", "seed")
MEAN = ("detector", "method", "noise", "metric")
DIFFERENCE = ("detector", "method", "reference", "noise", "metric")
# Columns that hold no floats.
DTYPES = dict.fromkeys(("detector", "method", "reference", "metric"), str) | {"seed": int}


@dataclass(frozen=True)
class Results:
    """Finished runs of a grid. In all tables numbers are in percent, and NaN where there is none.

    Attributes:
        grid: all runs
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
        """Over seeds: a row for each metric, method and noise level, with the published numbers.

        The columns are detector, method, noise, metric, num_seeds, mean, std, which is divided by
        ``num_seeds - 1``, paper_mean and paper_std.
        """
        wanted = _frame(
            [
                (method.detector, method.name, noise, metric, *published)
                for metric in METRICS
                for method in self.grid.methods
                for noise, published in zip(
                    self.grid.noise, method.paper.get(metric, repeat((None, None)))
                )
            ],
            (*MEAN, "paper_mean", "paper_std"),
        )
        values = self.runs.melt(RUN, METRICS, "metric", "percent").groupby([*MEAN])["percent"]
        found = values.agg(num_seeds="count", mean="mean", std="std").reset_index()
        means = wanted.merge(found, "left", [*MEAN])
        means["num_seeds"] = means["num_seeds"].fillna(0).astype(int)
        return means[[*MEAN, "num_seeds", "mean", "std", "paper_mean", "paper_std"]]

    @cached_property
    def differences(self) -> "DataFrame":
        """Paired by seed: a row for each metric, method, reference and noise level.

        The columns are detector, method, reference, noise, metric, num_seeds, mean,
        standard_error, ci95_low and ci95_high.
        """
        groups = self.runs.set_index("seed").groupby(["detector", "method", "noise"])
        by_seed = {key: group.to_dict() for key, group in groups}
        rows = []
        for metric in METRICS:
            for method, reference in self.grid.pairs:
                for noise in self.grid.noise:
                    both = [
                        by_seed.get((m.detector, m.name, noise), {}).get(metric, {})
                        for m in (method, reference)
                    ]
                    names = (method.detector, method.name, reference.name, noise, metric)
                    rows.append((*names, *(paired_difference(*both) or (0, *repeat(None, 4)))))
        columns = ("num_seeds", "mean", "standard_error", "ci95_low", "ci95_high")
        return _frame(rows, (*DIFFERENCE, *columns)).astype({"num_seeds": int})


def read_results(folder: str | os.PathLike, class_names: Sequence[str] = ()) -> Results:
    """Read the grid and all results of a sweep's folder.

    Args:
        folder: what ``tools/sweep.py`` had as ``--output``
        class_names: over which to take the means, in place of all; where a test set has few
            objects of most classes; the published numbers, which are over all, are left out

    Raises:
        FileNotFoundError: it is not the folder of a sweep
        ValueError: a file in it is damaged, or a result lacks AP, AP50 or AP75, of a class
        ImportError: pandas is not installed
    """
    folder = Path(folder)
    if not (folder / GRID_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {GRID_FILE}: it is not a sweep's folder")
    grid = read_grid(folder / GRID_FILE, _read_options(folder / OPTIONS_FILE))
    if class_names:
        methods = tuple(dataclasses.replace(method, paper={}) for method in grid.methods)
        grid = dataclasses.replace(grid, methods=methods)
    rows, undefined = [], []
    for run in grid.runs:
        result = read_result(folder / run.folder)
        if result is None:
            continue
        try:
            values = [_mean_over(result["metrics"], metric, class_names) for metric in METRICS]
        except KeyError as error:
            raise ValueError(f"the result in {folder / run.folder} has no {error}") from error
        except TypeError as error:
            raise ValueError(
                f"the result in {folder / run.folder} has a metric that is no number"
            ) from error
        if all(map(math.isfinite, values)):
            rows.append((run.method.detector, run.method.name, run.noise, run.seed, *values))
        else:
            undefined.append(run)
    return Results(grid, _frame(rows, (*RUN, *METRICS)), tuple(class_names), tuple(undefined))


def _frame(rows: Iterable[tuple[Any, ...]], columns: tuple[str, ...]) -> "DataFrame":
    import pandas as pd  # takes a quarter of a second, and runs import this package

    # The types are said, as there may be no row to tell them from.
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({column: DTYPES.get(column, float) for column in columns})


def _read_options(path: Path) -> list[str]:
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; start the sweep again") from error


def _mean_over(metrics: dict[str, float], metric: str, class_names: Sequence[str]) -> float:
    if not class_names:
        return float(metrics[metric])
    return fmean(metrics[f"{metric}-{name}"] for name in class_names)
