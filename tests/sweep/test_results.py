"""Paired differences over seeds."""

import math

import pytest

from sl_detectron.sweep.statistics import difference_of, paired_difference


def test_interval_is_that_of_students_t():
    """Against its quantile from a table: t(0.975; 4) = 2.776."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    done = paired_difference(dict(enumerate(values)), dict.fromkeys(range(5), 0.0))
    error = math.sqrt(2.5 / 5)
    assert (done.num, done.mean) == (5, 3.0)
    assert done.error == pytest.approx(error)
    assert done.low == pytest.approx(3 - 2.776 * error, abs=1e-3)
    assert done.high == pytest.approx(3 + 2.776 * error, abs=1e-3)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("values", [[0.1] * 3, [16.7294, 16.7294, 16.729400000000002]])
def test_equal_differences_are_not_tested(values):
    """Rounding alone would give p = 1e-33."""
    done = difference_of(values)
    assert (done.num, done.error, done.p) == (3, 0.0, None)
    assert done.low == done.mean == done.high == pytest.approx(values[0])
