"""Runs by submitit: what it refuses in one line, and the end of a job's time."""

import argparse
import os
import signal
import sys
import threading
import time

import pytest

from sl_detectron.engine.resume import STOPPED
from sl_detectron.sweep import jobs
from sl_detectron.sweep.cluster import SubmititPool, _NodeJob
from sl_detectron.sweep.jobs import RunJob


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
