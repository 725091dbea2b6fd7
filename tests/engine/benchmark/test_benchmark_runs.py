"""Grids that train: killed and gone on with, failed and retried, here and by submitit."""

import fcntl
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPO
from grid_cases import make_tiny_set, write_tiny_grid

from sl_detectron.engine.benchmark import make_tables, plan, read_grid


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark") / "toy_digits"
    make_tiny_set(root)
    return root


@pytest.fixture(scope="module")
def grid_file(tiny_root):
    return write_tiny_grid(tiny_root.parent / "grid.yaml", tiny_root)


def command(grid_file, output, *args):
    tool = [sys.executable, str(REPO / "tools" / "benchmark.py")]
    return [*tool, "--config", str(grid_file), "--output", str(output), *map(str, args)]


def benchmark(grid_file, output, *args):
    return subprocess.run(command(grid_file, output, *args), capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(grid_file, tmp_path_factory):
    """An uninterrupted benchmark: (folder, what it said, seconds)."""
    output = tmp_path_factory.mktemp("finished")
    started = time.monotonic()
    done = benchmark(grid_file, output)
    assert done.returncode == 0, done.stderr
    return output, done, time.monotonic() - started


def results(output: Path) -> dict[str, bytes]:
    paths = output.rglob("result.json")
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def table(output: Path) -> bytes:
    make_tables(output, output)
    return (output / "table.csv").read_bytes()


def test_trains_every_cell_and_reports(finished):
    output, done, _ = finished
    assert "All 2 cells are finished" in done.stdout
    assert "[2/2] RetinaNet, SuperLoss, 40 % noise, seed 0: AP50 " in done.stderr
    assert "8/8" in done.stderr  # iterations of all cells
    assert "\r" not in done.stderr  # lines, as it is no terminal
    folder = output / "retinanet" / "superloss" / "noise_0.4" / "seed_0"
    assert (folder / "label_audit.json").is_file()  # so this one had the SuperLoss
    assert [path.name for path in folder.glob("*.pth")] == ["model_final.pth"]
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["metrics"]["AP50"] < 100
    assert result["seconds"] > 0
    assert result["versions"]["torch"]
    other = json.loads((output / "retinanet/baseline/noise_0.4/seed_0/result.json").read_text())
    assert other["metrics"]["AP"] != result["metrics"]["AP"]


def test_a_finished_cell_is_never_trained_again(finished, grid_file):
    output, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("seed_0/*")}
    done = benchmark(grid_file, output)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in output.rglob("seed_0/*")} == before


def test_killed_at_random_moments_it_gives_the_same_table(finished, grid_file, tmp_path):
    output, _, seconds = finished
    delays = [random.SystemRandom().uniform(0, seconds) for _ in range(2)]
    for delay in delays:
        process = subprocess.Popen(command(grid_file, tmp_path), stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.kill()
        process.wait()
    done = benchmark(grid_file, tmp_path)
    assert done.returncode == 0, (delays, done.stderr)
    assert table(tmp_path) == table(output), delays
    assert b"RetinaNet,SuperLoss,0.4,AP50,1," in table(output)
    logs = [path.read_text() for path in tmp_path.rglob("seed_0/log.txt")]
    # The log of a cell holds one training.
    assert [log.count("Starting training from iteration 0") for log in logs] == [1, 1]


def test_no_cell_outlives_its_grid(tiny_root, tmp_path):
    grid_file = write_tiny_grid(tmp_path / "grid.yaml", tiny_root, iterations=300)
    process = subprocess.Popen(command(grid_file, tmp_path / "out"), stderr=subprocess.DEVNULL)
    folder = plan(read_grid(grid_file), tmp_path / "out")[0].folder
    while not (folder / "last_checkpoint").exists():  # it trains
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(folder / ".lock") as lock:
        # Waits for the cell. Had it gone on, it would end with a result.
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert not (folder / "result.json").exists()
    assert not (folder / "model_final.pth").exists()


def test_a_changed_config_is_refused_then_trained_on_demand(finished, tiny_root, tmp_path):
    """On a copy; one of the two rows has another option now."""
    output, _, _ = finished
    subprocess.run(["cp", "-a", f"{output}/.", tmp_path], check=True)
    before = results(tmp_path)
    changed = write_tiny_grid(
        tmp_path / "changed.yaml",
        tiny_root,
        detectors={
            "RetinaNet": {
                "baseline": {"config": "Toy/retinanet.yaml"},
                "SuperLoss": {
                    "config": "Toy/retinanet_superloss.yaml",
                    "opts": ["MODEL.SUPERLOSS.MOMENTUM", 0.5],
                },
            }
        },
    )
    done = benchmark(changed, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert "first RetinaNet, SuperLoss, 40 % noise, seed 0 in" in line
    assert "MODEL.SUPERLOSS.MOMENTUM was 0.9, is 0.5. " in line
    assert "--rerun-changed" in line
    assert results(tmp_path) == before
    done = benchmark(changed, tmp_path, "--rerun-changed")
    assert done.returncode == 0, done.stderr
    after = results(tmp_path)
    assert [name for name in after if after[name] != before[name]] == [
        "retinanet/superloss/noise_0.4/seed_0/result.json"
    ]


def test_failed_cells_are_reported_and_retried_on_demand(finished, tiny_root, tmp_path):
    """Two rows, the first of which starts from a checkpoint that is not there yet."""
    weights = tmp_path / "weights.pth"
    rows = {
        "broken": {"config": "Toy/retinanet.yaml", "opts": ["MODEL.WEIGHTS", str(weights)]},
        "sound": {"config": "Toy/retinanet.yaml"},
    }
    grid_file = write_tiny_grid(
        tmp_path / "grid.yaml", tiny_root, baseline="sound", detectors={"RetinaNet": rows}
    )
    output = tmp_path / "out"
    done = benchmark(grid_file, output)
    assert done.returncode == 1
    log = output / "retinanet" / "broken" / "noise_0.4" / "seed_0" / "cell.log"
    for said in (done.stdout, done.stderr):
        assert str(log) in said
        assert "weights.pth not found" in said
    assert "Traceback" in log.read_text()
    sound = output / "retinanet" / "sound" / "noise_0.4" / "seed_0" / "result.json"
    assert sound.is_file()
    assert b"RetinaNet,broken,0.4,AP,0,,,," in table(output)

    size = log.stat().st_size
    assert benchmark(grid_file, output).returncode == 1
    assert log.stat().st_size == size  # reported, not run

    trained, _, _ = finished
    model = trained / "retinanet" / "baseline" / "noise_0.4" / "seed_0" / "model_final.pth"
    weights.write_bytes(model.read_bytes())
    done = benchmark(grid_file, output, "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert b"RetinaNet,broken,0.4,AP,1," in table(output)


def test_a_missing_data_set_is_said_once(tiny_root, tmp_path):
    grid_file = write_tiny_grid(tmp_path / "grid.yaml", tmp_path / "nowhere" / "toy")
    done = benchmark(grid_file, tmp_path / "out")
    assert done.returncode == 2
    assert "error: RetinaNet, baseline: " in done.stderr.strip().splitlines()[-1]
    assert "nowhere" in done.stderr
    assert not list(tmp_path.rglob("cell.log"))


def test_a_cell_on_two_processes(finished, grid_file, tmp_path):
    """The lock and the result are those of rank 0."""
    done = benchmark(grid_file, tmp_path, "--num-gpus", 2, "SOLVER.MAX_ITER", 2)
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path)) == 2
    log = (tmp_path / "retinanet/baseline/noise_0.4/seed_0/log.txt").read_text()
    assert "Rank of current process: 0. World size: 2" in log


def test_submitit_runs_cells(finished, grid_file, tmp_path):
    """Its local executor runs the two cells, with the same results."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    done = benchmark(grid_file, tmp_path, "--executor", "local", "--slurm", "timeout_min=60")
    assert done.returncode == 0, done.stderr
    assert table(tmp_path) == table(finished[0])
    assert len(list((tmp_path / "submitit").glob("*_0_result.pkl"))) == 2
