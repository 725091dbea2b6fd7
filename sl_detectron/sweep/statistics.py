"""Means and paired differences over seeds."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

__all__ = ["Difference", "Summary", "paired_difference", "summarise"]

CONFIDENCE = 0.95


class Summary(NamedTuple):
    """Of the results of one method at one noise level.

    Attributes:
        num: seeds
        mean: of their values
        std: their standard deviation, divided by ``num - 1``; None for one seed
    """

    num: int
    mean: float
    std: float | None


class Difference(NamedTuple):
    """Of two methods at one noise level, paired by seed.

    Attributes:
        num: seeds that both have
        mean: of the differences
        error: standard error of the mean; None for one seed, as are the bounds
        low: lower bound of the mean's 95 % confidence interval
        high: its upper bound
    """

    num: int
    mean: float
    error: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary | None:
    """Mean and standard deviation; None of nothing.

    Example:
        >>> summarise([1.0, 2.0, 3.0])
        Summary(num=3, mean=2.0, std=1.0)
        >>> summarise([1.0])
        Summary(num=1, mean=1.0, std=None)
    """
    if not values:
        return None
    return Summary(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """First minus second, seed by seed, with Student's t for the confidence interval.

    A seed fixes noise, order and weights for both, and what they share cancels out.

    Args:
        first: {seed: value}
        second: the same; seeds that only one has are left out

    Returns:
        None if they share no seed

    Raises:
        ImportError: scipy is not installed

    Example:
        >>> paired_difference({0: 3.0, 1: 6.0, 2: 6.0}, {0: 2.0, 1: 4.0, 2: 3.0})
        Difference(num=3, mean=2.0, error=0.577..., low=-0.484..., high=4.484...)
    """
    summary = summarise([first[seed] - second[seed] for seed in sorted(first.keys() & second)])
    if summary is None or summary.std is None:
        return summary and Difference(summary.num, summary.mean, None, None, None)
    from scipy.stats import t  # takes a second, and trainings import this package

    error = summary.std / math.sqrt(summary.num)
    half = float(t.ppf((1 + CONFIDENCE) / 2, summary.num - 1)) * error
    return Difference(summary.num, summary.mean, error, summary.mean - half, summary.mean + half)
