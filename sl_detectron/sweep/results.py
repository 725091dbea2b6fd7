"""What a sweep's folder holds: values by method, noise level and seed."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from .grid import METRICS, Grid, Method, Run
from .grid_file import read_grid
from .state import GRID_FILE, OPTIONS_FILE, read_result
from .statistics import Difference, Summary, paired_difference, summarise

__all__ = ["Results", "read_results"]


@dataclass(frozen=True)
class Results:
    """Finished runs of a grid.

    Attributes:
        grid: all runs
        metrics: {run: {metric: percent}} of the finished ones
        class_names: over which the metrics are means; empty for all
        undefined: runs that are finished, but whose evaluation gave no number (NaN), as without
            an object of a class; they count as missing
    """

    grid: Grid
    metrics: dict[Run, dict[str, float]]
    class_names: tuple[str, ...] = ()
    undefined: tuple[Run, ...] = ()

    @property
    def missing(self) -> list[Run]:
        """The runs without a result."""
        return [run for run in self.grid.runs if run not in self.metrics]

    def values(self, method: Method, noise: float, metric: str) -> dict[int, float]:
        """{seed: percent} of the seeds that are finished."""
        runs = {seed: Run(method, noise, seed) for seed in self.grid.seeds}
        return {
            seed: self.metrics[run][metric] for seed, run in runs.items() if run in self.metrics
        }

    def summary(self, method: Method, noise: float, metric: str) -> Summary | None:
        """Mean and standard deviation over seeds; None without a finished one."""
        return summarise(list(self.values(method, noise, metric).values()))

    def difference(
        self, method: Method, reference: Method, noise: float, metric: str
    ) -> Difference | None:
        """Method minus reference, paired by seed; None if they share none."""
        return paired_difference(
            self.values(method, noise, metric), self.values(reference, noise, metric)
        )

    def pairs(self) -> Iterator[tuple[Method, Method]]:
        """(method, reference) of all methods and of the references of the same detector."""
        for method in self.grid.methods:
            # A reference is compared with those named before it only: once is enough.
            names = self.grid.references
            if method.name in names:
                names = names[: names.index(method.name)]
            for name in names:
                for other in self.grid.methods:
                    if other.detector == method.detector and other.name == name:
                        yield method, other


def read_results(folder: str | os.PathLike, class_names: Sequence[str] = ()) -> Results:
    """Read the grid and all results of a sweep's folder.

    Args:
        folder: what ``tools/sweep.py`` had as ``--output``
        class_names: over which to take the means, in place of all; where a test set has few
            objects of most classes; the published numbers, which are over all, are left out

    Raises:
        FileNotFoundError: it is not the folder of a sweep
        ValueError: a file in it is damaged, or a result lacks AP, AP50 or AP75, of a class
    """
    folder = Path(folder)
    if not (folder / GRID_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {GRID_FILE}: it is not a sweep's folder")
    grid = read_grid(folder / GRID_FILE, _read_options(folder / OPTIONS_FILE))
    if class_names:
        rows = tuple(dataclasses.replace(method, paper={}) for method in grid.methods)
        grid = dataclasses.replace(grid, methods=rows)
    metrics, undefined = {}, []
    for run in grid.runs:
        result = read_result(folder / run.folder)
        if result is not None:
            try:
                found = {m: _mean_over(result["metrics"], m, class_names) for m in METRICS}
            except KeyError as error:
                raise ValueError(f"the result in {folder / run.folder} has no {error}") from error
            except TypeError as error:
                raise ValueError(
                    f"the result in {folder / run.folder} has a metric that is no number"
                ) from error
            if all(map(math.isfinite, found.values())):
                metrics[run] = found
            else:
                undefined.append(run)
    return Results(grid, metrics, tuple(class_names), tuple(undefined))


def _read_options(path: Path) -> list[str]:
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; start the sweep again") from error


def _mean_over(metrics: dict[str, float], metric: str, class_names: Sequence[str]) -> float:
    if not class_names:
        return float(metrics[metric])
    return fmean(metrics[f"{metric}-{name}"] for name in class_names)
