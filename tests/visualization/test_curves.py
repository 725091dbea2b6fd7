"""Training curves of runs."""

import json

import pytest

from helpers.grid_cases import run_here
from sl_detectron.visualization.curves import PANELS, draw_curves, read_curves

TAU, LOSS = "superloss_cls/tau", "superloss_cls/raw_loss"


def write_run(folder, lines, end="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metrics.json").write_text(text + end)
    return folder


@pytest.fixture
def runs(tmp_path):
    first = [{"iteration": i, "total_loss": 3.0 - i / 20} for i in (19, 39)]
    second = [{"iteration": i, "total_loss": 1.0, TAU: i / 10, LOSS: 2.0} for i in (19, 39, 59)]
    second.append({"iteration": 59, "bbox/AP50": 41.0})
    return write_run(tmp_path / "baseline", first), write_run(tmp_path / "superloss", second)


def test_an_iteration_trained_twice_counts_as_it_was_last(tmp_path):
    lines = [{"iteration": i, "total_loss": v} for i, v in ((19, 3.0), (39, 2.0), (39, 1.5))]
    curves = read_curves(write_run(tmp_path, [*lines, {"iteration": 39, "lr": 0.1}]))
    assert curves == {"total_loss": {19: 3.0, 39: 1.5}, "lr": {39: 0.1}}


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    write_run(tmp_path, [{"iteration": 19, "total_loss": 3.0}, '{"iteration": 39, "tot'], end="")
    assert read_curves(tmp_path) == {"total_loss": {19: 3.0}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['{"iteration": 19, "tot', {"iteration": 39, "total_loss": 1.0}],
            r"line 1 has no metrics",
        ),
        ([{"total_loss": 1.0}, {"iteration": 39}], "line 1 has no metrics"),
        (["[1]"], "line 1 has no metrics"),
        ([""], "line 1 has no metrics"),
        ([{"iteration": 19}], "has no metrics yet"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, lines, message):
    write_run(tmp_path, lines)
    with pytest.raises(ValueError, match=rf"metrics\.json.*{message}"):
        read_curves(tmp_path)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the output of a training run"):
        read_curves(tmp_path)


def test_panels_have_what_a_run_has_and_no_others(runs):
    figure = draw_curves({folder.name: read_curves(folder) for folder in runs})
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == [PANELS[0].title, PANELS[1].title, PANELS[5].title]
    loss, tau, ap50 = panels.values()
    assert [line.get_label() for line in loss.get_lines()] == ["baseline", "superloss"]
    assert [list(line.get_ydata()) for line in loss.get_lines()] == [[2.05, 1.05], [1.0] * 3]
    colours = [line.get_color() for line in loss.get_lines()]
    assert len(set(colours)) == 2
    # A run has its colour in every panel, also where the other one has no curve.
    assert {line.get_color() for axes in (tau, ap50) for line in axes.get_lines()} == {colours[1]}
    assert [line.get_label() for line in tau.get_lines()] == ["superloss: loss", "superloss: τ"]
    assert list(tau.get_lines()[1].get_ydata()) == [1.9, 3.9, 5.9]
    (point,) = ap50.get_lines()
    assert (list(point.get_xdata()), point.get_marker()) == ([59], "o")


def test_the_command_draws_two_runs(runs, tmp_path):
    done = run_here("visualize", "--curves", *runs, "--output", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "pictures" / "curves.png"
    assert done.stdout == f"curves of baseline, superloss drawn: {path}\n"
    assert path.stat().st_size > 10_000


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    lines = [{"iteration": 19, "total_loss": 3.0}]
    folders = [write_run(tmp_path / name / "seed_0", lines) for name in "ab"]
    done = run_here("visualize", "--curves", *folders, "--output", tmp_path)
    assert f"{folders[0]}, {folders[1]} drawn" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--curves", "a", "--num", "3", "--output", "x"], "--curves takes --output"),
        (["--curves", "a", "a/", "--output", "x"], "names a run twice"),
        (["--curves", "gone", "--output", "x"], "gone is not the output of a training run"),
        (["--curves", "a"], "give --output DIR, --show, or both"),
        (["--curves", "a", "--show"], "--show needs a screen"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", [{"iteration": 19, "total_loss": 3.0}])
    done = run_here("visualize", *options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
