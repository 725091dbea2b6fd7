"""Published numbers come from the runs that are published beside them."""

import re
from functools import cache
from itertools import permutations
from pathlib import Path
from statistics import mean, stdev

import pytest

from helpers import load_tool
from sl_detectron.sweep import read_results
from sl_detectron.sweep.grid import METRICS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
SETS = tuple(sorted(path.parent.name for path in RESULTS.glob("*/runs.csv")))
PAGES = ("README.md", *(f"docs/results/{name}/README.md" for name in (".", *SETS)))
NUMBER = re.compile(r"[+−]?\d+\.\d ± \d+\.\d")
# Other runs, which chose the settings: of validation images, or of the older toy set.
ASIDE = re.compile(r"## What was chosen.*", re.DOTALL)
METHODS = {"Faster R-CNN": "SuperLoss logC", "RetinaNet": "SuperLoss ExpAvg"}


@cache
def levels(name):
    """{(detector, method, noise, metric): {seed: percent}} of a set."""
    values: dict[tuple, dict[int, float]] = {}
    for run in read_results(RESULTS / name / "runs.csv").runs.itertuples():
        for metric in METRICS:
            level = (run.detector, run.method, run.noise, metric)
            values.setdefault(level, {})[run.seed] = getattr(run, metric)
    return values


def spread(level):
    return f"{mean(level.values()):.1f} ± {stdev(level.values()):.1f}"


def difference(first, second):
    """Mean and standard error of the pairs by seed."""
    pairs = [first[seed] - second[seed] for seed in first.keys() & second]
    error = stdev(pairs) / len(pairs) ** 0.5
    return f"{mean(pairs):+.1f} ± {error:.1f}".replace("-", "−")


@cache
def numbers_of(name):
    """All means, and all differences of two levels of one detector in one metric."""
    found = {spread(level) for level in levels(name).values() if len(level) > 1}
    for first, second in permutations(levels(name), 2):
        same = [a == b for a, b in zip(first, second)]
        if not (same[0] and same[3] and (same[1] or same[2])):
            continue
        one, other = levels(name)[first], levels(name)[second]
        if len(one.keys() & other) > 1:
            found.add(difference(one, other))
    return found


@pytest.mark.parametrize("name", SETS)
def test_tables_are_made_from_the_runs(name, tmp_path, monkeypatch):
    tool, source = load_tool("make_table"), RESULTS / name / "runs.csv"
    monkeypatch.setattr("sys.argv", ["make_table.py", str(source), "--output", str(tmp_path)])
    assert tool.cli() == 0
    for file in ("table.md", "runs.csv"):
        published = (RESULTS / name / file).read_text(encoding="utf-8")
        assert (tmp_path / file).read_text(encoding="utf-8") == published


@pytest.mark.parametrize("page", PAGES)
def test_numbers_with_a_spread_are_those_of_the_runs(page):
    text = ASIDE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    known = set().union(*map(numbers_of, SETS))
    # Where the sign of a mean is plain from the sentence, it may be left out.
    known |= {number.lstrip("+−") for number in known}
    found = NUMBER.findall(" ".join(text.replace("**", "").split()))
    assert found
    assert [number for number in found if number not in known] == []


def test_each_row_of_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("**", "")
    section = text.split("## Does it help?")[1].split("## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    name, noise, num_rows = "", 0.0, 0
    for cells in (cells for cells in lines if len(cells) == 8):
        if cells[2] not in METHODS:
            continue
        name = next((n for n in SETS if f"results/{n}/" in cells[0]), name)
        noise = float(cells[1].strip(" %")) / 100 if cells[1] else noise
        methods = ("baseline", "equal weight", METHODS[cells[2]])
        baseline, weight, ours = (levels(name)[cells[2], m, noise, "AP50"] for m in methods)
        expected = [spread(baseline), spread(weight), spread(ours), difference(ours, baseline)]
        assert cells[4:] == expected, (name, noise, cells[2])
        assert cells[3] == str(len(ours)), (name, noise, cells[2])
        num_rows += 1
    assert num_rows == 10
