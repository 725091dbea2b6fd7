"""Differences over several sets and detectors, by hand arithmetic."""

import csv

import pytest
import yaml

from helpers.grid_cases import RESULTS_GRID, F, R, run_here, write_results
from sl_detectron.sweep import read_results
from sl_detectron.sweep.statistics import holm, seeds_needed
from sl_detectron.sweep.summary import summarise
from sl_detectron.sweep.table import markdown

# {detector: differences by seed} of two sets; the mean of all six is 2, their deviation sqrt(2).
SETS = {"first": {R: (1.0, 2.0), F: (4.0,)}, "second": {R: (3.0, 2.0, 0.0)}}


@pytest.fixture
def folders(tmp_path):
    paths = []
    for name, detectors in SETS.items():
        grid = tmp_path / f"{name}.yaml"
        methods = {"baseline": {"config": "x"}, "ours": {"config": "x"}}
        content = {"detectors": dict.fromkeys(detectors, methods), "controls": []}
        grid.write_text(yaml.safe_dump({**RESULTS_GRID, **content}, sort_keys=False))
        values = {
            (detector, method, 0.4, seed): 50.0 + 10 * seed + (gain if method == "ours" else 0)
            for detector, gains in detectors.items()
            for seed, gain in enumerate(gains)
            for method in methods
        }
        write_results(grid, tmp_path / name, values)
        paths.append(tmp_path / name)
    return paths


def test_every_set_detector_and_seed_is_a_pair(folders):
    frame = summarise([read_results(folder) for folder in folders])
    (row,) = frame.query("metric == 'AP50' and noise == 0.4").itertuples()
    assert (row.method, row.reference) == ("ours", "baseline")
    assert (row.num_groups, row.num_better, row.num_pairs) == (3, 3, 6)
    assert row.mean == pytest.approx(2.0)
    error = (10 / 5 / 6) ** 0.5  # squares of -1, 0, 2, 1, 0, -2
    assert row.standard_error == pytest.approx(error)
    assert row.ci95_high == pytest.approx(2.0 + 2.5706 * error, abs=1e-3)
    # One test for this metric, as nothing of noise 0 is there.
    assert row.p_holm == row.p
    (missing,) = frame.query("metric == 'AP50' and noise == 0").itertuples()
    assert (missing.num_groups, missing.num_pairs) == (0, 0)


def test_the_tool_writes_one_summary_of_several_sweeps(folders, tmp_path):
    output = tmp_path / "summary"
    done = run_here("make_table", *folders, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(output / name) for name in ("summary.md", "summary.csv")]
    text = (output / "summary.md").read_text()
    assert "2 sets: first, second." in text
    # p of t(5) = 2 / 0.577 is 0.018.
    cell = "+2.0 ± 0.6 [+0.5, +3.5] * (3 of 3 above 0, n = 6)"
    line = next(x for x in text.split("## Differences in AP50")[1].splitlines() if "ours" in x)
    assert [part.strip() for part in line.strip("|").split("|")] == [
        *("ours − baseline", "3", "–"),
        cell,
    ]
    with open(output / "summary.csv") as file:
        assert len(list(csv.DictReader(file))) == 2 * 3
    assert run_here("make_table", *folders).returncode == 2
    twice = run_here("make_table", folders[0], folders[0], "--output", output)
    assert "is given twice: its runs would count twice" in twice.stderr


def test_a_grid_of_several_detectors_has_a_summary_in_its_tables(folders):
    done = run_here("make_table", folders[0])
    assert done.returncode == 0, done.stderr
    text = (folders[0] / "table.md").read_text()
    section = text.split("## Differences in AP50 over all detectors")[1]
    assert "+2.3 ± 0.9 [−1.5, +6.1] (2 of 2 above 0, n = 3)" in section
    run_here("make_table", folders[1])
    assert "over all detectors" not in (folders[1] / "table.md").read_text()


def test_holm_by_hand():
    """0.01 * 3, then the larger of that and 0.03 * 2, then of that and 0.04 * 1."""
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_needed_are_those_of_the_tables():
    """Of a paired t test at 5 %, 80 %, by d: G*Power gives 34 for 0.5, 15 for 0.8, 199 for 0.2."""
    assert [seeds_needed(1 / d) for d in (0.5, 0.8, 0.2)] == [34, 15, 199]
    assert seeds_needed(2.0, difference=2.0) == seeds_needed(1.0) == 10
    assert seeds_needed(1e3) is None


def test_the_summary_in_the_tables_says_what_it_is_of(folders):
    """Its * are of its own family of tests, not of that of the differences of one detector."""
    text = markdown(read_results(folders[0]))
    assert "\n\nDifferences over all detectors: mean over all (set, detector, seed)" in text
    assert "Holm's correction over all differences of this summary in a metric" in text
    assert "over all detectors" not in markdown(read_results(folders[1]))
