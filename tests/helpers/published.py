"""Numbers that docs/results and the pages beside it publish, from the runs published with them."""

from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sl_detectron.sweep import read_results
from sl_detectron.sweep.grid import METRICS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SETS = tuple(sorted(path.parent.name for path in RESULTS.glob("*/runs.csv")))
F, R = "Faster R-CNN", "RetinaNet"
METHODS = {F: "SuperLoss logC", R: "SuperLoss ExpAvg"}
Level = dict[int, float]  # percent by seed


@cache
def results(name: str) -> Any:
    return read_results(RESULTS / name / "runs.csv")


@cache
def levels(name: str) -> dict[tuple, Level]:
    """{(detector, method, noise, metric): {seed: percent}} of a set."""
    values: dict[tuple, Level] = {}
    for run in results(name).runs.itertuples():
        for metric in METRICS:
            level = (run.detector, run.method, run.noise, metric)
            values.setdefault(level, {})[run.seed] = getattr(run, metric)
    return values


def signed(value: float, digits: int = 1) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def spread(level: Level) -> str:
    return f"{mean(level.values()):.1f} ± {stdev(level.values()):.1f}"


def pairs(first: Level, second: Level) -> list[float]:
    """First minus second by seed."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second)]


def difference(first: Level, second: Level) -> str:
    """Mean and standard error of the pairs by seed."""
    values = pairs(first, second)
    return f"{signed(mean(values))} ± {stdev(values) / len(values) ** 0.5:.1f}"


def level(name: str, detector: str, method: str, noise: float, metric: str = "AP50") -> Level:
    return levels(name)[detector, method, noise, metric]


def vs(
    name: str, detector: str, method: str, other: str, noise: float, metric: str = "AP50"
) -> str:
    """Difference of two methods, with its standard error."""
    return difference(*(level(name, detector, m, noise, metric) for m in (method, other)))


def average(name: str, detector: str, method: str, noise: float, metric: str = "AP50") -> str:
    return f"{mean(level(name, detector, method, noise, metric).values()):.1f}"


def row(
    name: str,
    detector: str,
    method: str,
    noise: float,
    metric: str = "AP50",
    other: str = "baseline",
) -> Any:
    """Of the table of differences."""
    frame = results(name).differences.set_index(["detector", "method", "reference"])
    frame = frame.loc[(detector, method, other)]
    return frame[(frame["noise"] == noise) & (frame["metric"] == metric)].iloc[0]


def interval(found: Any, digits: int = 1) -> str:
    return f"{signed(found.ci95_low, digits)} to {signed(found.ci95_high, digits)}"


def text_of(page: str) -> str:
    """In one line, without emphasis."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").replace("**", "").split())


def table_after(page: str, text: str) -> list[list[str]]:
    """Cells of the first table of a page after a text, without its head."""
    rest = (ROOT / page).read_text(encoding="utf-8").replace("**", "").split(text, 1)[1]
    body = rest.split("|---|", 1)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
