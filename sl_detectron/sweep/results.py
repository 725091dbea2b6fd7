"""The finished runs of a sweep, their means and paired differences as tables."""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from .grid import METRICS, Grid, Method, Run
from .statistics import Difference, holm, paired_difference, seeds_needed

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["Results", "as_frame"]

RUN = ("detector", "method", "noise", "seed")
LEVEL = ("detector", "method", "noise", "metric")
MEANS = (*LEVEL, "num_seeds", "mean", "std", "paper_mean", "paper_std")
PAIR = ("detector", "method", "reference", "noise", "metric")
TEST = ("num_seeds", "mean", "standard_error", "ci95_low", "ci95_high", "p")
DIFFERENCES = (*PAIR, *TEST, "p_holm")
# {column: true difference in points}: seeds that a test of it needs.
SEEDS_FOR = {f"seeds_for_{n}": n for n in (1, 2, 5)}
POWER = ("detector", "metric", "std", "freedom", *SEEDS_FOR)
LOST = (*LEVEL, *TEST, "paper")
RECOVERED = (*LEVEL, "num_seeds", "mean", "lowest", "highest")
NOTHING = (0, None, None, None, None, None)
NAMES = ("detector", "method", "reference", "metric")
INTEGERS = ("seed", "num_seeds", "num_pairs", "num_groups", "num_better", "freedom")
# Of columns that hold no floats.
DTYPES = {
    **dict.fromkeys(NAMES, str),
    **dict.fromkeys(INTEGERS, int),
    **dict.fromkeys(SEEDS_FOR, "Int64"),
}


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
                rows.append((*names, noise, metric, *test, p))
        return as_frame(rows, DIFFERENCES)

    @cached_property
    def power(self) -> "DataFrame":
        """A row for each metric and detector: the seeds that a difference of some points needs.

        ``std`` of a paired difference is pooled over all pairs of methods and levels of noise,
        weighted by their seeds but one: a single difference of two or three seeds tells its own
        spread to within a factor of ten. ``freedom`` is the number of independent ones of these
        deviations: A - C is known where A - B and B - C are. No row of a detector without a
        pair of two seeds.
        """
        rows = []
        for (metric, detector), found in self.differences.groupby(
            ["metric", "detector"], sort=False
        ):
            known = found[found["num_seeds"] > 1]
            weights = known["num_seeds"] - 1
            if len(known):
                squares = known["standard_error"] ** 2 * known["num_seeds"]
                std = math.sqrt((squares * weights).sum() / weights.sum())
                needed = (seeds_needed(std, points) for points in SEEDS_FOR.values())
                rows.append((detector, metric, std, self._freedom(detector, metric), *needed))
        return as_frame(rows, POWER)

    def _freedom(self, detector: str, metric: str) -> int:
        """How many deviations of paired differences from their means are independent."""
        pairs = [pair for pair in self.grid.pairs if pair[0].detector == detector]
        methods, seeds = [*dict.fromkeys(m for pair in pairs for m in pair)], [*self.grid.seeds]
        freedom = 0
        for noise in self.grid.noise:
            # Each as what it is of the values: one minus their mean, of both methods.
            deviations = [np.zeros((len(methods), len(seeds)))]
            for pair in pairs:
                first, second = (self._values(method, noise, metric) for method in pair)
                shared = [seeds.index(seed) for seed in first.keys() & second]
                own, other = map(methods.index, pair)
                for place in shared:
                    deviations.append(np.zeros_like(deviations[0]))
                    deviations[-1][own, shared] = -1 / len(shared)
                    deviations[-1][own, place] += 1
                    deviations[-1][other] = -deviations[-1][own]
            freedom += int(np.linalg.matrix_rank(np.stack(deviations).reshape(len(deviations), -1)))
        return freedom

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

    @cached_property
    def recovered(self) -> "DataFrame":
        """Percent of what each level of noise costs the baseline that a method wins back.

        (method - baseline) / (baseline at noise 0 - baseline), of means over the seeds that all
        three have; ``lowest`` and ``highest`` are those of one seed. NaN where the noise costs
        the baseline nothing, in the mean or in one of the seeds. No row without a baseline or
        noise 0.
        """
        rows = []
        baselines = [pair for pair in self.grid.pairs if pair[1].name == self.grid.baseline]
        levels = [noise for noise in self.grid.noise if noise] if 0 in self.grid.noise else []
        for metric, (method, baseline), noise in product(METRICS, baselines, levels):
            clean = self._values(baseline, 0.0, metric)
            ours, other = (self._values(m, noise, metric) for m in (method, baseline))
            seeds = sorted(clean.keys() & ours.keys() & other.keys())
            won = [ours[seed] - other[seed] for seed in seeds]
            cost = [clean[seed] - other[seed] for seed in seeds]
            shares = [100 * x / y if y > 0 else math.nan for x, y in zip(won, cost)]
            mean = 100 * sum(won) / sum(cost) if sum(cost) > 0 else math.nan
            defined = bool(shares) and not any(map(math.isnan, shares))
            ends = (min(shares), max(shares)) if defined else (None, None)
            level = (method.detector, method.name, noise, metric)
            rows.append((*level, len(seeds), mean, *ends))
        return as_frame(rows, RECOVERED)

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


def as_frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> "DataFrame":
    """Rows as a table whose columns have their types also where there is no row."""
    import pandas as pd  # takes a quarter of a second, and runs import this package

    # The types are given, as there may be no row to tell them from.
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({column: DTYPES.get(column, float) for column in columns})
