"""Grids of training runs: detectors x methods x label noise x seeds, and their tables."""

from .grid_file import read_grid
from .reading import read_results
from .runner import run_grid
from .summary import write_summary
from .table import make_tables

__all__ = ["make_tables", "read_grid", "read_results", "run_grid", "write_summary"]
