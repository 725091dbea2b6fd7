"""Paired differences over seeds."""

import warnings
from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

__all__ = ["Difference", "paired_difference"]

CONFIDENCE = 0.95


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
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second)]
    if not pairs:
        return None
    differences = [a - b for a, b in pairs]
    if len(pairs) == 1:
        return Difference(1, differences[0], None, None, None)
    from scipy.stats import sem, ttest_rel  # takes half a second, and runs import this package

    with warnings.catch_warnings():
        # Equal differences, whose interval is a point.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        low, high = ttest_rel(*zip(*pairs)).confidence_interval(CONFIDENCE)
    mean, error = fmean(differences), float(sem(differences))
    return Difference(len(pairs), mean, error, float(low), float(high))
