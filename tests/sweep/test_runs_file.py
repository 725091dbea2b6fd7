"""A sweep's table of runs gives the tables that its folder gives."""

import json
import re
import shutil

import pytest
import yaml

from helpers.grid_cases import RESULTS_GRID, F, run_here, write_results
from sl_detectron.sweep import make_tables, read_results, write_summary
from sl_detectron.sweep.table import markdown


@pytest.fixture
def published(folder, tmp_path):
    """runs.csv of a sweep with the sweep's grid beside it, and no run."""
    published = tmp_path / "published"
    (folder / "options.json").write_text(json.dumps({"opts": [], "scale": 1.0}))
    make_tables(folder, published)
    for name in ("grid.yaml", "options.json"):
        shutil.copy(folder / name, published)
    return published


def test_it_gives_the_tables_of_the_folder(published, folder, tmp_path):
    again = make_tables(published / "runs.csv", tmp_path / "again")
    assert markdown(read_results(folder)) == (published / "table.md").read_text()
    # The page and the plots have the means unrounded, which four decimals do not.
    for path in (path for path in again if path.suffix in (".md", ".tex", ".csv")):
        assert path.read_bytes() == (published / path.name).read_bytes(), path.name


def test_the_order_of_its_lines_does_not_matter(published):
    before = markdown(read_results(published / "runs.csv"))
    head, *lines = (published / "runs.csv").read_text().splitlines()
    (published / "runs.csv").write_text("\n".join([head, *reversed(lines)]))
    assert markdown(read_results(published / "runs.csv")) == before


def test_means_over_classes_are_named_without_published_numbers(published):
    lines = (published / "runs.csv").read_text().splitlines()
    named = [lines[0], *(f'{line}"car,cat"' for line in lines[1:])]
    (published / "runs.csv").write_text("\n".join(named))
    text = markdown(read_results(published / "runs.csv"))
    assert "Mean over car, cat." in text
    assert "(published)" not in text
    assert "Published:" not in text


def test_a_summary_names_the_set(published, folder, tmp_path):
    text = write_summary([published / "runs.csv", folder], tmp_path / "summary")[0].read_text()
    assert text.startswith("2 sets: published, output.")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("AP75", "AP_75", "no column AP75"),
        ("baseline,0,1,", "baseline,0,9,", r"the run R.*, baseline, 0.0, 9 is not in the grid"),
        ("baseline,0,1,", "baseline,0,0,", r"the run R.*, baseline, 0.0, 0 comes twice"),
        ("50.0000", "nan", "a metric that is no number"),
        ("50.0000", "500000", r"a metric that is no number in \[0, 100\]"),
        ("50.0000", "fifty", "fifty"),
        ("40.0000,", "40.0000,car", "means over different classes"),
        ("40.0000,\n", "40.0000,,\n", "literal|Expected 8 fields"),
    ],
)
def test_bad_files_are_refused_by_name(old, new, message, published):
    path = published / "runs.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: .*{message}"):
        read_results(path)


def test_other_mistakes(published, tmp_path):
    with pytest.raises(ValueError, match="has no metrics by class: name the sweep's folder"):
        read_results(published / "runs.csv", ["car"])
    (published / "grid.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no grid.yaml, so that the runs of runs"):
        read_results(published / "runs.csv")
    with pytest.raises(FileNotFoundError, match="so that it is not a sweep's"):
        read_results(tmp_path / "nothing")


def test_a_folder_with_published_runs_alone_keeps_them(published, folder, tmp_path):
    """Its tables would be those of no run, written over the runs."""
    before, names = (published / "runs.csv").read_bytes(), [*published.iterdir()]
    for sources in ([published], [published, folder]):
        done = run_here("make_table", *sources, "--output", published)
        assert done.returncode == 2
        assert f"{published} has no result of a run; its runs.csv has: name that file" in (
            done.stderr
        )
        assert (published / "runs.csv").read_bytes() == before
    done = run_here("make_table", published / "runs.csv")
    assert done.returncode == 2
    assert f"--output must name a folder for the tables of {published / 'runs.csv'}" in done.stderr
    assert [*published.iterdir()] == names
    # Nothing is lost where the file has no run either, as that of a sweep that has just begun.
    (published / "runs.csv").write_bytes(before.splitlines(keepends=True)[0])
    assert read_results(published).runs.empty


def test_a_level_that_the_file_has_rounded(tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({**RESULTS_GRID, "noise": [0.0, 1 / 3]}, sort_keys=False))
    key = (F, "baseline", 1 / 3, 0)
    write_results(grid, tmp_path / "output", {key: 50.0})
    make_tables(tmp_path / "output", tmp_path / "output")
    results = read_results(tmp_path / "output" / "runs.csv")
    assert markdown(results) == (tmp_path / "output" / "table.md").read_text()
    assert results.means["num_seeds"].sum() == 3


def test_a_folder_and_its_table_of_runs_are_one_set(folder, tmp_path):
    make_tables(folder, folder)
    with pytest.raises(ValueError, match=r"runs\.csv is given twice: its runs would count twice"):
        write_summary([folder / "runs.csv", folder], tmp_path / "summary")


def test_a_summary_names_the_classes_of_each_set(published, folder, tmp_path):
    lines = (published / "runs.csv").read_text().splitlines()
    named = [lines[0], *(f'{line}"car,cat"' for line in lines[1:])]
    (published / "runs.csv").write_text("\n".join(named))
    text = write_summary([published / "runs.csv", folder], tmp_path / "summary")[0].read_text()
    assert text.startswith("2 sets: published (mean over car, cat), output.")
