"""Where runs run on this machine: a GPU of its own for each, and none outlives the pool."""

import signal

import pytest
import torch

from sl_detectron.sweep.jobs import ProcessPool, RunJob, _gpu_slots


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
