"""What the tests measure: printed at the end, also where one fails, and kept for gpu_report.py."""

import json
import os

import pytest

from sl_detectron.commands.gpu import FIGURES_VARIABLE

FIGURES = pytest.StashKey[list[dict]]()


@pytest.fixture
def measured(request):
    """Called with a name, a number and its unit: notes a figure of this test."""
    notes = request.config.stash.setdefault(FIGURES, [])

    def note(name: str, value: float, unit: str) -> None:
        figure = {"name": name, "value": float(value), "unit": unit}
        notes.append(figure)
        if FIGURES_VARIABLE in os.environ:
            # At once, line by line: what comes after it may be killed.
            with open(os.environ[FIGURES_VARIABLE], "a") as file:
                file.write(json.dumps(figure) + "\n")

    return note


def pytest_terminal_summary(terminalreporter, config):
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("measured on the GPU")
        for figure in figures:
            terminalreporter.line("{name}: {value:.6g} {unit}".format(**figure))
