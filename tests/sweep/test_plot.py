"""The picture of a sweep."""

import dataclasses

from matplotlib.figure import Figure

from sl_detectron.sweep import read_results
from sl_detectron.sweep.table import _draw


def test_a_line_goes_through_the_levels_in_order(folder):
    results = read_results(folder)
    grid = dataclasses.replace(results.grid, noise=(0.4, 0.0))
    axes = Figure().subplots()
    _draw(axes, dataclasses.replace(results, grid=grid), 0, grid.methods[0])
    ours, published = axes.get_lines()
    assert list(ours.get_xdata()) == [0.0, 40.0]
    assert list(ours.get_ydata()) == [52.0, 43.0]
    assert list(published.get_ydata()) == [74.6, 80.6]
