"""Grids of trainings: detectors x methods x label noise x seeds, and the tables made of them."""

from .grid import Grid, Method, Run
from .grid_file import read_grid
from .plan import PlannedRun, plan, train_net_command
from .progress import Unfinished
from .results import Results, read_results
from .runner import RunSettings, run_grid
from .state import KEEP
from .table import make_tables

__all__ = [
    "KEEP",
    "Run",
    "Grid",
    "Method",
    "PlannedRun",
    "Results",
    "RunSettings",
    "Unfinished",
    "make_tables",
    "plan",
    "read_grid",
    "read_results",
    "run_grid",
    "train_net_command",
]
