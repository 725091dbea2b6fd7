"""Grids of trainings: detectors x methods x label noise x seeds, and the tables made of them."""

from .grid import Cell, Grid, Method
from .grid_file import read_grid
from .plan import PlannedCell, plan, train_net_command
from .runner import KEEP, RunSettings, last_log_line, run_grid

__all__ = [
    "KEEP",
    "Cell",
    "Grid",
    "Method",
    "PlannedCell",
    "RunSettings",
    "last_log_line",
    "plan",
    "read_grid",
    "run_grid",
    "train_net_command",
]
