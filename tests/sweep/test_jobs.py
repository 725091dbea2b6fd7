"""Where runs run: a GPU of its own for each, and what submitit refuses in one line."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time

import pytest
import torch
from detectron2.config import CfgNode

from helpers.grid_cases import make_tiny_set, run_here, write_tiny_grid
from sl_detectron.engine.resume import STOPPED
from sl_detectron.sweep import jobs, plan, read_grid
from sl_detectron.sweep import run as run_module
from sl_detectron.sweep.cluster import SubmititPool, _NodeJob
from sl_detectron.sweep.jobs import ProcessPool, RunJob, _gpu_slots
from sl_detectron.sweep.progress import Progress, Unfinished
from sl_detectron.sweep.runner import _explain_failure, _settle


@pytest.mark.parametrize(
    ("visible", "num_jobs", "num_gpus", "expected"),
    [
        (None, 2, 2, ["0,1", "2,3"]),
        (None, 3, 1, ["0", "1", "2"]),
        ("4,5,6,7", 2, 1, ["4", "5"]),
        (None, 1, 4, [None]),  # alone, it sees what there is
    ],
)
def test_every_run_has_gpus_of_its_own(visible, num_jobs, num_gpus, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    slots = _gpu_slots(num_jobs, num_gpus)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in slots] == expected


def test_runs_on_a_cpu_need_no_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _gpu_slots(2, 0) == [{}, {}]


def test_too_few_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="need 6, but torch sees 4; lower --jobs"):
        ProcessPool(3, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--slurm", "partition=gpu"], "--slurm needs --executor slurm"),
        (["--executor", "local", "--jobs", "2"], "leave out --jobs"),
        (["--jobs", "abc"], "--jobs: must be a whole number of at least 1; got 'abc'"),
        (["--jobs", "0"], "must be a whole number of at least 1; got '0'"),
        # argparse gives the options to --slurm.
        (
            ["--executor", "local", "--slurm", "nodes=1", "SOLVER.MAX_ITER", "4"],
            "got 'SOLVER.MAX_ITER'. Config options KEY VALUE go last, after another option",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_line(args, message, tmp_path):
    if "nodes=1" in args:
        pytest.importorskip("submitit", reason="submitit is not installed")
    make_tiny_set(tmp_path / "toy")
    grid = write_tiny_grid(tmp_path / "grid.yaml", tmp_path / "toy")
    done = run_here("sweep", "--config", grid, "--output", tmp_path / "out", *args)
    assert done.returncode == 2
    assert message in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("run.log"))


@pytest.mark.parametrize(
    ("cluster", "parameters", "message"),
    [
        ("local", ["partion=x"], "submitit: Unknown argument 'partion'"),
        ("local", ["nodes=many"], "submitit: .*nodes.*many"),
        ("local", ["partition"], "--slurm takes KEY=VALUE; got 'partition'"),
        ("slurm", [], "submitit: Could not detect"),
    ],
)
def test_submitit_errors_are_one_line(cluster, parameters, message, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm
    with pytest.raises(ValueError, match=message) as caught:
        SubmititPool(cluster, tmp_path, None, 0, parameters)
    assert "\n" not in str(caught.value)


def test_without_submitit_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match="pip install submitit"):
        SubmititPool("local", tmp_path, None, 0, [])


def test_a_time_limit_ends_a_run_with_a_checkpoint_and_queues_it_again(tmp_path, monkeypatch):
    """Where submitit calls it: in a signal handler, as the thread waits for the run."""
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    stub = (
        "import pathlib, signal, sys, time\n"
        "def stop(*_): pathlib.Path('saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('ready').touch()\n"
        "while True: time.sleep(0.1)"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "RUN", ("-c", stub))
    monkeypatch.setattr(submitit, "JobEnvironment", lambda: argparse.Namespace(num_nodes=1))
    job = _NodeJob(RunJob(tmp_path / "run", ()))
    again = []

    def handler(number, frame):
        again.append(job.checkpoint())
        assert (tmp_path / "saved").exists()

    def send_when_ready():
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        threading.Thread(target=send_when_ready).start()
        assert job() == STOPPED
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert [delayed.function for delayed in again] == [job]
    again[0].dump(tmp_path / "job.pkl")


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


def test_leaving_the_pool_ends_its_runs(tmp_path):
    """The one that runs is killed, as it still imports; the one that waits is never started."""
    job = RunJob(tmp_path / "run", ())
    with pytest.raises(KeyboardInterrupt), ProcessPool(1, 1) as pool:  # noqa: PT012
        pool.submit([job, job])
        while not pool._running:
            pass
        (process,) = pool._running
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL
    assert len(pool._running) == 1


@pytest.mark.parametrize("full_disk", [True, False])
def test_checkpoints_go_only_when_the_result_is_there(full_disk, tmp_path, monkeypatch):
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path)})
    args = argparse.Namespace(keep="none", resume=False)

    def train_net(cfg, args):
        for name in ("model_0000001.pth", "model_final.pth", "last_checkpoint"):
            (tmp_path / name).touch()
        return {"bbox": {}}

    def write_json(path, data):
        if path.name == "result.json":
            raise OSError("no space left")

    monkeypatch.setattr(run_module, "train_net", train_net)
    if full_disk:
        monkeypatch.setattr(run_module, "write_json", write_json)
    with pytest.raises(OSError, match="no space") if full_disk else contextlib.nullcontext():
        run_module.train_run(cfg, args)
    left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    kept = {"model_0000001.pth", "model_final.pth", "last_checkpoint"}
    assert left == (kept if full_disk else {"result.json", "begun.json"})


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


def test_time_left_does_not_count_what_an_earlier_run_did(tmp_path):
    """A run half done and one that fails: neither is speed of this run."""
    grid_file = write_tiny_grid(tmp_path / "grid.yaml", tmp_path, 100)
    half, other = plan(read_grid(grid_file), tmp_path)
    for run in (half, other):
        run.folder.mkdir(parents=True)
    metrics = half.folder / "metrics.json"
    metrics.write_text('{"iteration": 59}\n')
    (half.folder / "last_checkpoint").write_text("model_0000059.pth")
    with Progress([half, other], []) as progress:
        metrics.write_text('{"iteration": 59}\n{"iteration": 79}\n')
        os.utime(metrics, (time.time() + 1, time.time() + 1))
        progress.update()
        assert progress._bar.n == 80
        assert progress._bar.n - progress._bar.initial == 20
        progress.settled(other, Unfinished(other, "failed", "wrong"))
        progress.update()
        assert (progress._bar.n, progress._bar.total) == (80, 100)
