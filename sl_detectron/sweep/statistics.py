"""Paired differences with their tests, correction for many of them, and seeds that one needs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

__all__ = ["Difference", "difference_of", "holm", "paired_difference", "seeds_needed"]

LEVEL = 0.05
POWER = 0.8
MOST_SEEDS = 10_000
# In percent: differences nearer to each other than this differ by rounding alone.
ROUNDING = 1e-9


class Difference(NamedTuple):
    """The mean of paired differences.

    Its standard error, the bounds of its 95 % confidence interval and p of Student's paired test
    are None for one pair; p is also None where all differences are equal.
    """

    num: int
    mean: float
    error: float | None
    low: float | None
    high: float | None
    p: float | None


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """First minus second, {seed: value} each, with Student's t for the confidence interval.

    A seed fixes noise, order and weights for both, and what they share cancels out. None if they
    share no seed.

    Raises:
        ImportError: scipy is not installed

    Example:
        >>> paired_difference({0: 3.0, 1: 6.0, 2: 6.0}, {0: 2.0, 1: 4.0, 2: 3.0})
        Difference(num=3, mean=2.0, error=0.577..., low=-0.484..., high=4.484..., p=0.074...)
    """
    shared = sorted(first.keys() & second)
    return difference_of([first[seed] - second[seed] for seed in shared])


def difference_of(differences: Sequence[float]) -> Difference | None:
    """The mean of differences of pairs that are independent of each other; None of none."""
    if len(differences) < 2:
        return Difference(1, differences[0], None, None, None, None) if differences else None
    num, mean = len(differences), fmean(differences)
    if max(differences) - min(differences) < ROUNDING:
        return Difference(num, mean, 0.0, mean, mean, None)
    from scipy.stats import sem, ttest_1samp  # takes half a second, and runs import this package

    test = ttest_1samp(differences, 0.0)
    low, high = map(float, test.confidence_interval(1 - LEVEL))
    return Difference(num, mean, float(sem(differences)), low, high, float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values of a family of tests, in the order given; None stays None.

    Example:
        >>> holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def seeds_needed(deviation: float, difference: float = 1.0) -> int | None:
    """Pairs that a two-sided paired t test at 5 % needs to find a difference in 80 % of cases.

    Args:
        deviation: standard deviation of the paired differences, in the unit of ``difference``
        difference: the true one, above 0

    Returns:
        at least 2; None where it is more than 10,000

    Example:
        >>> seeds_needed(1.0), seeds_needed(2.0), seeds_needed(0.0)
        (10, 34, 2)
    """
    from scipy.stats import nct, t

    if not deviation > 0:
        return 2
    # From what the normal distribution gives, which is a little less.
    num = max(2, math.floor(7.8 * (deviation / difference) ** 2))
    while num <= MOST_SEEDS:
        bound = t.ppf(1 - LEVEL / 2, num - 1)
        shift = difference / deviation * math.sqrt(num)
        if nct.sf(bound, num - 1, shift) + nct.cdf(-bound, num - 1, shift) >= POWER:
            return num
        num += 1
    return None
