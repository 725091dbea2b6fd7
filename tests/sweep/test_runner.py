"""Sweeps that train: killed and gone on with, failed and retried, here and by submitit."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers import REPO
from helpers.forked import Program, forked_runs
from helpers.forked_python import forked_python
from helpers.grid_cases import run_here, write_tiny_grid
from sl_detectron.engine.resume import STOPPED
from sl_detectron.sweep import make_tables, read_grid
from sl_detectron.sweep.jobs import RunJob
from sl_detectron.sweep.plan import PlannedRun, plan, shared_first_rounds
from sl_detectron.sweep.progress import Progress, Unfinished
from sl_detectron.sweep.runner import _explain_failure, _settle, _settle_first
from sl_detectron.sweep.state import RUN_LOG

BASELINE = {"config": "Toy/retinanet.yaml"}


TOOL = REPO / "tools" / "sweep.py"


def options(grid_file, output, *args):
    return ["--config", str(grid_file), "--output", str(output), *map(str, args)]


def start(grid_file, output, *args):
    """A sweep in a process of its own, with its runs in others; none pays for imports."""
    return Program(TOOL, options(grid_file, output, *args), {**os.environ}, forks_runs=True)


def sweep(grid_file, output, *args):
    return run_here("sweep", "--config", grid_file, "--output", output, *args)


@pytest.fixture(autouse=True, scope="module")
def runs_without_imports():
    """Of sweeps in this process."""
    with forked_runs():
        yield


@pytest.fixture(scope="module")
def finished(grid_file, tmp_path_factory):
    """An uninterrupted sweep with all its checkpoints: (folder, (stdout, stderr), seconds)."""
    output = tmp_path_factory.mktemp("finished")
    started = time.monotonic()
    program = start(grid_file, output, "--keep", "all")
    printed = program.communicate()
    assert program.returncode == 0, printed
    return output, printed, time.monotonic() - started


def results(output: Path) -> dict[str, bytes]:
    paths = output.rglob("result.json")
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def weights(output: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What was trained, by run: AP after a few iterations is too coarse to tell runs apart."""
    paths = sorted(output.rglob("model_final.pth"))
    return {
        str(path.relative_to(output)): torch.load(path, weights_only=False)["model"]
        for path in paths
    }


def assert_equal_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, model in one.items():
        torch.testing.assert_close(model, other[name], rtol=0, atol=0, equal_nan=True)


def table(output: Path) -> bytes:
    make_tables(output, output)
    return (output / "table.csv").read_bytes()


def test_trains_every_run_and_reports(finished):
    output, (out, err), _ = finished
    assert "All 2 runs are finished" in out
    assert "[2/2] RetinaNet, SuperLoss, 40 % noise, seed 0: AP50 " in err
    assert "12/12" in err  # iterations of all runs
    assert "\r" not in err  # lines, as it is no terminal
    folder = output / "retinanet" / "superloss" / "noise_0.4" / "seed_0"
    assert (folder / "label_audit.json").is_file()  # so this one had the SuperLoss
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["metrics"]["AP50"] < 100
    assert result["seconds"] > 0
    assert result["versions"]["torch"]
    baseline, superloss = weights(output).values()
    assert baseline.keys() <= superloss.keys()
    assert any(not torch.equal(baseline[name], superloss[name]) for name in baseline)


def test_a_finished_run_is_never_trained_again(finished, grid_file):
    output, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("seed_0/*")}
    done = sweep(grid_file, output)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in output.rglob("seed_0/*")} == before


def test_killed_at_a_random_moment_it_gives_the_same_table(finished, grid_file, tmp_path):
    output, _, seconds = finished
    delay = random.SystemRandom().uniform(0, seconds)
    process = start(grid_file, tmp_path)
    time.sleep(delay)
    process.kill()
    process.communicate()
    done = sweep(grid_file, tmp_path)
    assert done.returncode == 0, (delay, done.stderr)
    assert table(tmp_path) == table(output), delay
    assert b"RetinaNet,SuperLoss,0.4,AP50,1," in table(output)
    assert_equal_weights(tmp_path, output)
    assert [path.name for path in tmp_path.rglob("*.pth")] == ["model_final.pth"] * 2


def test_a_half_done_run_goes_on_from_its_checkpoint(finished, grid_file, tmp_path):
    """One was killed in training, one as it was evaluated; the results are those of no kill."""
    output, _, _ = finished
    subprocess.run(["cp", "-a", f"{output}/.", tmp_path], check=True)
    runs = [run.folder for run in plan(read_grid(grid_file), tmp_path)]
    expected = [json.loads((folder / "result.json").read_text())["metrics"] for folder in runs]
    for folder in runs:
        (folder / "result.json").unlink()
    (runs[1] / "model_final.pth").unlink()
    (runs[1] / "model_0000003.pth").unlink()
    (runs[1] / "last_checkpoint").write_text("model_0000001.pth")
    done = sweep(grid_file, tmp_path)
    assert done.returncode == 0, done.stderr
    after = [json.loads((folder / "result.json").read_text()) for folder in runs]
    assert [result["metrics"] for result in after] == expected
    assert [result["resumed"] for result in after] == [True, True]
    assert_equal_weights(tmp_path, output)
    assert "Starting training from iteration 2" in (runs[1] / "log.txt").read_text()


def test_no_run_outlives_its_sweep(tiny_root, tmp_path):
    """SIGTERM or Ctrl-C leave a checkpoint, from which the next one goes on; SIGKILL does not.

    The runs are new interpreters, as in use.
    """
    grid_file = write_tiny_grid(
        tmp_path / "grid.yaml", tiny_root, 300, detectors={"RetinaNet": {"baseline": BASELINE}}
    )
    folder = plan(read_grid(grid_file), tmp_path / "out")[0].folder

    def start_and_send(number: int, is_time: Callable[[], bool]) -> int:
        process = Program(TOOL, options(grid_file, tmp_path / "out"), {**os.environ})
        while not is_time():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(number)
        process.communicate()
        return process.returncode

    stop = random.SystemRandom().choice([signal.SIGTERM, signal.SIGINT])
    assert start_and_send(stop, (folder / "last_checkpoint").exists) == 128 + stop
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the run has ended before its sweep
    log = folder / "log.txt"
    (stopped,) = re.findall(r"Stopped by SIGTERM after iteration (\d+)", log.read_text())
    assert (folder / "last_checkpoint").read_text() == f"model_{int(stopped):07d}.pth"
    assert not (folder / "failed.json").exists()

    again = f"Starting training from iteration {int(stopped) + 1}"
    assert start_and_send(signal.SIGKILL, lambda: again in log.read_text()) == -signal.SIGKILL
    with open(folder / ".lock") as lock:
        # Waits for the run. Had it gone on, it would end with a result.
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert not (folder / "result.json").exists()
    assert not (folder / "model_final.pth").exists()


def test_a_changed_config_is_refused_then_trained_on_demand(finished, tiny_root, tmp_path):
    """On a copy; one of the two methods has another option now."""
    output, _, _ = finished
    subprocess.run(["cp", "-a", f"{output}/.", tmp_path], check=True)
    before = results(tmp_path)
    changed = write_tiny_grid(
        tmp_path / "changed.yaml",
        tiny_root,
        detectors={
            "RetinaNet": {
                "baseline": BASELINE,
                "SuperLoss": {
                    "config": "Toy/retinanet_superloss.yaml",
                    "opts": ["MODEL.SUPERLOSS.MOMENTUM", 0.5],
                },
            }
        },
    )
    done = sweep(changed, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert "first RetinaNet, SuperLoss, 40 % noise, seed 0 in" in line
    assert "MODEL.SUPERLOSS.MOMENTUM was 0.9, is 0.5. " in line
    assert "--rerun-changed" in line
    assert results(tmp_path) == before
    done = sweep(changed, tmp_path, "--rerun-changed")
    assert done.returncode == 0, done.stderr
    after = results(tmp_path)
    assert [name for name in after if after[name] != before[name]] == [
        "retinanet/superloss/noise_0.4/seed_0/result.json"
    ]


def test_results_stay_where_a_new_training_cannot_start(finished, grid_file, tmp_path, monkeypatch):
    output, _, _ = finished
    subprocess.run(["cp", "-a", f"{output}/.", tmp_path], check=True)
    monkeypatch.setenv("PATH", str(tmp_path))  # without srun
    done = sweep(
        grid_file, tmp_path, "--rerun-changed", "--executor", "slurm", "SOLVER.GAMMA", "0.5"
    )
    assert done.returncode == 2, done.stderr
    assert "slurm" in done.stderr
    assert results(tmp_path) == results(output)
    assert (tmp_path / "options.json").read_text() == '{"opts": [], "scale": 1.0}\n'


def run_alone(run: PlannedRun, folder: Path, *opts: str) -> tuple[int, str]:
    """Exit code and output of a planned run's process in another folder."""
    (folder / RUN_LOG).unlink()
    job = RunJob(folder, (*run.args[:-1], str(folder), *opts))
    with job.start() as process:
        code = process.wait()
    return code, (folder / RUN_LOG).read_text()


def test_a_run_leaves_the_result_of_another_grid(finished, grid_file, tmp_path):
    """Two grids that start at once on one folder: each planned before the other had a result."""
    output, _, _ = finished
    run = plan(read_grid(grid_file), output)[0]
    other = tmp_path / "out"
    shutil.copytree(run.folder, other)
    code, said = run_alone(run, other, "SOLVER.GAMMA", "0.5")
    assert code == 1
    assert "result.json belongs to another config: do two grids share a folder?" in said
    assert (other / "result.json").read_bytes() == (run.folder / "result.json").read_bytes()
    assert (other / "model_final.pth").is_file()


def test_a_stock_detector_goes_on_to_the_same_weights(finished, grid_file, tmp_path):
    """Its focal loss is a scripted function, which torch would fuse only after some calls."""
    output, _, _ = finished
    run = plan(read_grid(grid_file), output)[0]
    other = tmp_path / "out"
    shutil.copytree(run.folder, other)
    for name in ("result.json", "model_final.pth", "model_0000005.pth", "model_0000003.pth"):
        (other / name).unlink()
    (other / "last_checkpoint").write_text("model_0000001.pth")
    code, said = run_alone(run, other)
    assert code == 0, said
    assert "Starting training from iteration 2" in said
    assert_equal_weights(other, run.folder)


@pytest.fixture
def rounds_grid(tiny_root, tmp_path):
    superloss = {"config": "Toy/retinanet_superloss.yaml"}
    two_rounds = {**superloss, "opts": ["MODEL.SUPERLOSS.CORRECTION.ROUNDS", 2]}
    methods = {"SuperLoss": superloss, "two rounds": two_rounds}
    return write_tiny_grid(
        tmp_path / "grid.yaml",
        tiny_root,
        baseline="SuperLoss",
        detectors={"RetinaNet": methods},
    )


def test_a_first_round_is_the_result_of_the_run_that_it_is_equal_to(
    rounds_grid, finished, tmp_path
):
    said = sweep(rounds_grid, tmp_path / "out")
    assert said.returncode == 0, said.stderr
    assert "[1/2] RetinaNet, two rounds" in said.stderr
    assert "[2/2] RetinaNet, SuperLoss" in said.stderr
    superloss, rounds = (run.folder for run in plan(read_grid(rounds_grid), tmp_path / "out"))
    assert (rounds / "run.log").exists()
    assert not (superloss / "run.log").exists()  # no process of its own
    # As if trained alone: the fixture's sweep did.
    alone = finished[0] / superloss.relative_to(tmp_path / "out")
    (trained,), (expected,) = (
        weights(superloss).values(),
        (torch.load(alone / "model_final.pth", weights_only=False)["model"],),
    )
    torch.testing.assert_close(trained, expected, rtol=0, atol=0, equal_nan=True)
    metrics = [json.loads((f / "result.json").read_text())["metrics"] for f in (superloss, alone)]
    assert metrics[0] == metrics[1]
    assert [run.state for run in plan(read_grid(rounds_grid), tmp_path / "out")] == ["finished"] * 2


def test_a_half_done_run_is_not_taken_over_by_a_first_round(rounds_grid, tmp_path):
    runs = plan(read_grid(rounds_grid), tmp_path / "out")
    assert shared_first_rounds(runs) == {runs[1].folder: runs[0]}
    for run in runs:
        begun = run.folder / "last_checkpoint"
        begun.parent.mkdir(parents=True)
        begun.touch()
        assert shared_first_rounds(runs) == {}
        begun.unlink()


def test_a_run_without_the_first_round_that_it_should_have_been(rounds_grid, tmp_path):
    first, run = plan(read_grid(rounds_grid), tmp_path / "out")
    failed = Unfinished(run, "failed", "out of memory")
    assert _settle_first(first, run, failed).state == "failed"
    assert "as the first round of RetinaNet, two rounds" in _settle_first(first, run, failed).why
    first.folder.mkdir(parents=True)
    (first.folder / "result.json").touch()
    assert _settle_first(first, run, failed) is None


def test_failed_runs_are_reported_and_retried_on_demand(finished, tiny_root, tmp_path):
    """Two methods, the first of which starts from a checkpoint that is not there yet."""
    weights = tmp_path / "weights.pth"
    methods = {
        "broken": {"config": "Toy/retinanet.yaml", "opts": ["MODEL.WEIGHTS", str(weights)]},
        "sound": BASELINE,
    }
    grid_file = write_tiny_grid(
        tmp_path / "grid.yaml", tiny_root, baseline="sound", detectors={"RetinaNet": methods}
    )
    output = tmp_path / "out"
    done = sweep(grid_file, output)
    assert done.returncode == 1
    log = output / "retinanet" / "broken" / "noise_0.4" / "seed_0" / "run.log"
    for said in (done.stdout, done.stderr):
        assert str(log) in said
        assert re.search(r"FileNotFoundError: .*weights\.pth", said)
    assert "Traceback" in log.read_text()
    sound = output / "retinanet" / "sound" / "noise_0.4" / "seed_0" / "result.json"
    assert sound.is_file()
    assert b"RetinaNet,broken,0.4,AP,0,,,," in table(output)

    size = log.stat().st_size
    assert sweep(grid_file, output).returncode == 1
    assert log.stat().st_size == size  # reported, not run

    trained, _, _ = finished
    model = trained / "retinanet" / "baseline" / "noise_0.4" / "seed_0" / "model_final.pth"
    weights.write_bytes(model.read_bytes())
    done = sweep(grid_file, output, "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert b"RetinaNet,broken,0.4,AP,1," in table(output)


def test_a_missing_dataset_is_said_once(tiny_root, tmp_path):
    grid_file = write_tiny_grid(tmp_path / "grid.yaml", tmp_path / "nowhere" / "toy")
    done = sweep(grid_file, tmp_path / "out")
    assert done.returncode == 2
    assert "error: RetinaNet, baseline: " in done.stderr.strip().splitlines()[-1]
    assert "nowhere" in done.stderr
    assert not list(tmp_path.rglob("run.log"))


@pytest.mark.long
def test_a_run_on_two_processes(tiny_root, tmp_path):
    """The lock and the result are those of rank 0."""
    grid_file = write_tiny_grid(
        tmp_path / "grid.yaml", tiny_root, 2, detectors={"RetinaNet": {"baseline": BASELINE}}
    )
    done = sweep(grid_file, tmp_path, "--num-gpus", 2)
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path)) == 1
    log = (tmp_path / "retinanet/baseline/noise_0.4/seed_0/log.txt").read_text()
    assert "Rank of current process: 0. World size: 2" in log


def test_submitit_runs_runs(finished, grid_file, tmp_path):
    """Its local executor runs the two runs, with the same results."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    with forked_python():
        done = sweep(grid_file, tmp_path, "--executor", "local", "--slurm", "timeout_min=60")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == table(finished[0])
    assert len(list((tmp_path / "submitit").glob("*_0_result.pkl"))) == 2


def test_slurm_runs_a_run_on_two_nodes(tiny_root, tmp_path, monkeypatch):
    """Slurm's commands are stood in for; submitit, the ranks and their meeting are real."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "sacct"):
        script = tmp_path / "bin" / name
        script.write_text((REPO / "tests/helpers/fake_slurm.py").read_text())
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    grid_file = write_tiny_grid(
        tmp_path / "grid.yaml", tiny_root, 2, detectors={"RetinaNet": {"baseline": BASELINE}}
    )
    output = tmp_path / "out"
    args = ["--executor", "slurm", "--slurm", "partition=gpu", "nodes=2", "timeout_min=30"]
    with forked_python():
        done = sweep(grid_file, output, *args)
    assert done.returncode == 0, done.stderr
    folder = output / "retinanet" / "baseline" / "noise_0.4" / "seed_0"
    assert "World size: 2" in (folder / "log.txt").read_text()
    assert (folder / "log.txt.rank1").is_file()
    assert len(results(output)) == 1
    script = next((output / "submitit").glob("*.sh")).read_text()
    for line in ("--partition=gpu", "--nodes=2", "--time=30", "--ntasks-per-node=1"):
        assert f"#SBATCH {line}\n" in script


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--slurm", "partition=gpu"], "--slurm needs --executor slurm"),
        (["--executor", "local", "--jobs", "2"], "drop --jobs"),
        (["--jobs", "abc"], "--jobs: must be a whole number of at least 1; got 'abc'"),
        (["--jobs", "0"], "must be a whole number of at least 1; got '0'"),
        # argparse gives the options to --slurm.
        (
            ["--executor", "local", "--slurm", "nodes=1", "SOLVER.MAX_ITER", "4"],
            "got 'SOLVER.MAX_ITER'. Config options KEY VALUE go last, after another option",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_line(args, message, grid_file, tmp_path):
    if "nodes=1" in args:
        pytest.importorskip("submitit", reason="submitit is not installed")
    done = sweep(grid_file, tmp_path / "out", *args)
    assert done.returncode == 2
    assert message in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("run.log"))


class Pool:
    """Of one job that has ended."""

    def __init__(self, code):
        self.code = code

    def exit_code(self, handle):
        if isinstance(self.code, Exception):
            raise self.code
        return self.code


@pytest.mark.parametrize(
    ("code", "why", "state"),
    [
        (1, "ValueError: wrong", "failed"),
        (0, "ValueError: wrong", "failed"),  # it says all is well, but there is no result
        (-signal.SIGKILL, "killed by signal 9", "failed"),
        (RuntimeError("node lost"), "RuntimeError: node lost", "failed"),
        # A scheduler's doing: nothing to mend, so the next start goes on.
        (STOPPED, "by SIGTERM", "open"),
        (-signal.SIGTERM, "by SIGTERM", "open"),
    ],
)
def test_how_a_run_ended(code, why, state, tmp_path, capsys):
    grid = read_grid(write_tiny_grid(tmp_path / "grid.yaml", tmp_path))
    run = plan(grid, tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "run.log").write_text("$ command\nTraceback\nValueError: wrong\n")
    end = _settle(run, Pool(code), None)
    assert end.why.startswith(why)
    assert end.state == ("failed" if state == "failed" else "stopped")
    assert plan(grid, tmp_path)[0].state == state
    with Progress([run], []) as progress:
        (run.folder / "metrics.json").write_text('{"iteration": 1}\n')
        progress.settled(run, end)
        progress.update()
    said = capsys.readouterr().err
    assert ("FAILED" in said) == (state == "failed")
    assert ("stopped by SIGTERM" in said) == (state == "open")
    # What a stopped run has not done is still to be done; of a failed one nothing is.
    assert ("2/2" in said) == (state == "failed")
    assert ("2/6" in said) == (state == "open")


@pytest.mark.parametrize(
    ("log", "why"),
    [(None, "exit code 1; run.log is gone or empty"), ("", "gone or empty"), ("a\nb\n", "b")],
)
def test_a_failure_is_explained_without_its_log(log, why, tmp_path):
    (tmp_path / "failed.json").write_text('{"exit_code": 1}')
    if log is not None:
        (tmp_path / "run.log").write_text(log)
    assert why in _explain_failure(tmp_path)
    (tmp_path / "failed.json").write_text("{}")
    assert _explain_failure(tmp_path) == f"{tmp_path / 'failed.json'} is damaged"
