"""Numbers that docs/results and the pages beside it publish, from the runs published with them."""

from functools import cache
from itertools import product
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
# Sets that label correction was run on, by the names of their rows.
CORRECTED = {"voc": "VOC", "deeppcb": "boards"}
# Of which estimate of docs/label_correction.md the classes are, where it is not the present one.
ESTIMATES = {
    **{("two rounds", name, detector): 1 for name in CORRECTED for detector in (F, R)},
    ("two rounds", "deeppcb", F, 0.6): 2,
    ("two rounds", "deeppcb", R, 0.4): 2,
    ("from features", "deeppcb", F, 0.6): 2,
}
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


def recovered(name: str, detector: str, method: str, noise: float = 0.4) -> tuple[int, list[int]]:
    """Of a set's AP50: percent of what noise costs, and percent of the seeds, ascending."""
    clean, noisy = (level(name, detector, "baseline", n) for n in (0.0, noise))
    ours = level(name, detector, method, noise)
    seeds = clean.keys() & noisy.keys() & ours.keys()
    won, cost = ({seed: x[seed] - noisy[seed] for seed in seeds} for x in (ours, clean))
    shares = sorted(100 * won[seed] / cost[seed] for seed in seeds)
    return round(100 * sum(won.values()) / sum(cost.values())), [round(share) for share in shares]


def correction_rows(corrected: str) -> list[list[str]]:
    """Set, detector, wrong labels, AP50 of three methods, difference, share: where it was run."""
    rows = []
    for name, detector, noise in product(CORRECTED, METHODS, (0.0, 0.4, 0.6)):
        methods = ("baseline", METHODS[detector], corrected)
        runs = [levels(name).get((detector, method, noise, "AP50"), {}) for method in methods]
        if len(runs[-1]) < 2:
            continue
        cells = [spread(x) + " (n = 2)" * (len(x) == 2) if len(x) > 1 else "–" for x in runs]
        found = row(name, detector, corrected, noise)
        gain = (
            f"{difference(runs[-1], runs[0])} [{signed(found.ci95_low)}, {signed(found.ci95_high)}]"
        )
        share, by_seed = recovered(name, detector, corrected, noise) if noise else (0, [])
        text = f"{share} % ({', '.join(map(str, by_seed))})" if noise else "–"
        older = ESTIMATES.get((corrected, name, detector, noise))
        older = older or ESTIMATES.get((corrected, name, detector))
        mark = f" ({older})" if older else ""
        rows.append([CORRECTED[name], detector, f"{100 * noise:g} %{mark}", *cells, gain, text])
    return rows


def text_of(page: str) -> str:
    """In one line, without emphasis."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").replace("**", "").split())


def table_after(page: str, text: str) -> list[list[str]]:
    """Cells of the first table of a page after a text, without its head."""
    rest = (ROOT / page).read_text(encoding="utf-8").replace("**", "").split(text, 1)[1]
    body = rest.split("|---|", 1)[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
