"""Published tables, and all numbers with a spread, come from the runs published beside them."""

import re
from functools import cache
from itertools import combinations, pairwise
from statistics import mean

import pytest

from helpers import load_tool
from helpers.published import (
    METHODS,
    RESULTS,
    SETS,
    F,
    correction_rows,
    difference,
    levels,
    spread,
    table_after,
    text_of,
)
from sl_detectron.sweep.grid import METRICS

# Pages with the sets whose numbers they have.
PAGES = {
    **dict.fromkeys(("README.md", "docs/results/README.md", "docs/label_correction.md"), SETS),
    **{f"docs/results/{name}/README.md": (name,) for name in SETS},
}
NUMBER = re.compile(r"[+−]?\d+\.\d ± \d+\.\d")
# Other runs, which chose the settings: of validation images, or of the older toy set.
ASIDE = re.compile(r"## What was chosen.*", re.DOTALL)


@cache
def numbers_of(name):
    """All means, and all differences of two levels of one detector in one metric.

    A method minus one that is before it in the grid, and what is lost with more noise: a number
    with the wrong sign is none of them.
    """
    found = {spread(level) for level in levels(name).values() if len(level) > 1}
    for first, second in combinations(levels(name), 2):
        same = [a == b for a, b in zip(first, second)]
        if not (same[0] and same[3] and (same[1] or same[2])):
            continue
        one, other = levels(name)[first], levels(name)[second]
        if len(one.keys() & other) > 1:
            found.add(difference(other, one) if same[2] else difference(one, other))
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
    text = ASIDE.sub("", text_of(page))
    known = set().union(*map(numbers_of, PAGES[page]))
    # Where the sign of a mean is plain from the sentence, it may be left out.
    known |= {number.lstrip("+−") for number in known}
    found = NUMBER.findall(text)
    assert found
    assert [number for number in found if number not in known] == []


def test_each_row_of_the_readme():
    name, noise, num_rows = "", 0.0, 0
    for cells in table_after("README.md", "## Does it help?"):
        name = next((n for n in SETS if f"results/{n}/" in cells[0]), name)
        noise = float(cells[1].strip(" %")) / 100 if cells[1] else noise
        methods = ("baseline", "equal weight", METHODS[cells[2]])
        runs = [levels(name)[cells[2], m, noise, "AP50"] for m in methods]
        fewer = [f" (n = {len(x)})" if len(x) < len(runs[2]) else "" for x in runs]
        expected = [spread(x) + count for x, count in zip(runs, fewer)]
        assert cells[4:] == [*expected, difference(runs[2], runs[0])], (name, noise, cells[2])
        assert cells[3] == str(len(runs[2])), (name, noise, cells[2])
        num_rows += 1
    assert num_rows == 10


def test_each_row_of_the_toy_set():
    page, noises, detector = "docs/results/toy/README.md", (0.0, 0.2, 0.4, 0.6), ""
    rows = table_after(page, "![AP50")
    assert len(rows) == 12
    for cells in rows:
        detector, method = cells[0] or detector, cells[1].replace("log C", "logC")
        for cell, noise in zip(cells[2:], noises, strict=True):
            runs = levels("toy")[detector, method, noise, "AP50"]
            count = f" ({len(runs)})" if len(runs) < 3 else ""
            number = spread(runs) if len(runs) > 1 else f"{mean(runs.values()):.1f}"
            assert cell == number + count, (detector, method, noise)
    for cells in table_after(page, "The bold rows"):
        detector = cells[0] or detector
        ours, other = METHODS[detector], cells[1].removeprefix("− ")
        values = [[levels("toy")[detector, m, x, "AP50"] for m in (ours, other)] for x in noises]
        assert cells[2:] == [difference(*pair) for pair in values], (detector, other)


def test_each_row_of_voc():
    """Three seeds are said, as most numbers are of two."""
    rows, noise = table_after("docs/results/voc/README.md", "AP50, mean over"), 0.0
    assert len(rows) == 6
    for cells in rows:
        noise = float(cells[0].strip(" %")) / 100 if cells[0] else noise
        methods = ("baseline", "equal weight", METHODS[cells[1]])
        runs = [levels("voc")[cells[1], m, noise, "AP50"] for m in methods]
        pairs = [(runs[2], runs[0]), (runs[2], runs[1])]
        texts = [(spread(x), len(x)) for x in runs]
        texts += [(difference(a, b), len(a.keys() & b)) for a, b in pairs]
        assert cells[2:] == [text + (" (3)" if n == 3 else "") for text, n in texts], cells[:2]


@pytest.mark.parametrize(
    ("text", "method"), [("## On test sets", "from features"), ("### Two rounds", "two rounds")]
)
def test_each_row_of_label_correction(text, method):
    shown = table_after("docs/label_correction.md", text)
    for above, cells in pairwise(shown):
        cells[:2] = [cell or before for cell, before in zip(cells, above[:2])]
    assert shown == correction_rows(method)
    assert len(shown) > 2


def test_each_row_of_circuit_boards():
    names = [("baseline", 0.4), ("SuperLoss logC", 0.4), ("two rounds", 0.4), ("baseline", 0.0)]
    rows = table_after("docs/results/deeppcb/README.md", "Test set, mean")
    for cells, (method, noise) in zip(rows, names, strict=True):
        runs = [levels("deeppcb")[F, method, noise, m] for m in METRICS]
        assert cells[1:] == list(map(spread, runs))
        assert {*map(len, runs)} == {3}
