"""The report on a GPU, as far as it can be tried without one."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import REPO
from helpers.forked import CONTEXT, Program, start_server
from sl_detectron.commands import gpu, gpu_job
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.engine.setup import merge_cfg
from sl_detectron.model_zoo import find_config
from sl_detectron.sweep import read_grid

REPORT = {
    "machine": {"card": "NVIDIA H100 80GB HBM3", "driver": "1.2", "torch": "2.11.0"},
    "tests": {
        "exit_code": 1,
        "seconds": 12.3,
        "counts": {"passed": 3, "failed": 1, "skipped": 0},
        "failed": ["tests.gpu.test_cost.test_share: assert 0.06 < 0.05"],
    },
    "figures": [{"name": "step", "value": 123.456, "unit": "ms"}],
    "job": {
        "state": "finished",
        "seconds": 100.0,
        "iterations": 200,
        "weights": "from scratch",
        "runs": [
            {
                "method": "baseline",
                "iterations": 200,
                "metrics": {"AP": 1.25, "AP50": 3.5, "AP75": float("nan")},
            },
            {"method": "SuperLoss", "iterations": 120, "metrics": {}},
        ],
    },
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_cuda_one_line_says_what_is_missing(tmp_path):
    args = ["--work", str(tmp_path / "w"), "--output", str(tmp_path / "reports")]
    program = Program(REPO / "tools" / "gpu_report.py", args, {**os.environ})
    out, err = program.communicate()
    assert program.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith("gpu_report.py: error: no CUDA: torch ")
    assert not out
    assert not [*tmp_path.iterdir()]


def test_report_in_words_and_as_json(tmp_path):
    path = gpu.write_report(tmp_path / "reports", REPORT)
    assert path.name == "nvidia_h100_80gb_hbm3.json"
    metrics = json.loads(path.read_text())["job"]["runs"][0]["metrics"]
    assert metrics == {"AP": 1.25, "AP50": 3.5, "AP75": None}
    text = path.with_suffix(".md").read_text()
    for words in (
        "# NVIDIA H100 80GB HBM3",
        "driver 1.2, torch 2.11.0.",
        "3 passed, 1 failed, 0 skipped; run to the end, 12 s.",
        "- failed: tests.gpu.test_cost.test_share: assert 0.06 < 0.05",
    ):
        assert words in text.splitlines()
    assert "\nState: finished. Faster R-CNN R50-FPN, 40% wrong labels, 200 iterations, one " in text
    assert "| step       | 123.5 | ms     |" in text
    assert [line.split() for line in text.splitlines() if line.startswith("| SuperLoss")] == [
        ["|", "SuperLoss", "|", "120", "|", "|", "|", "|"]
    ]


def test_a_process_ends_with_its_work_or_at_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_job, "GRACE", 1.0)
    budget = gpu_job.Budget(time.monotonic() + 30)
    done = budget.run(
        [sys.executable, "-c", "import os; exit(int(os.environ['X']))"], {"X": "3"}, 2
    )
    assert done == 3
    waits = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: {}); time.sleep(60)"
    for code in (f"{waits.split('; ')[0]}; time.sleep(60)", waits):  # the second has to be killed
        started = time.monotonic()
        budget = gpu_job.Budget(started + 1.5)
        assert budget.run([sys.executable, "-c", code], {}, signal.SIGTERM) is None
        assert time.monotonic() - started < 10


def wait_for(code):
    gpu_job.Budget(time.monotonic() + 60).run([sys.executable, "-c", code], {}, 2)


def test_sigterm_leaves_no_process_behind(tmp_path):
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    start_server()
    process = CONTEXT.Process(target=wait_for, args=(child,))
    process.start()
    deadline = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.join(20)
    assert process.exitcode == 143
    assert not Path("/proc", pid.read_text()).exists()


@pytest.mark.parametrize(
    ("minutes", "root", "message"),
    [
        (0, None, "--minutes must be a number above 0; got 0"),
        (math.nan, None, "--minutes must be a number above 0; got nan"),
        (20, "absent", "there is no VOC folder .*absent.*--voc-root FOLDER.*--no-job"),
    ],
)
def test_what_is_refused_before_anything_runs(minutes, root, message, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "check_cuda", lambda: None)
    folders = REPO / "tests" / "gpu", tmp_path / "reports", tmp_path / "work"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gpu.run_gpu_report(*folders, minutes, root and tmp_path / root)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("left", "step", "wanted", "expected"),
    [
        (1000, 0.5, 300, 300),
        (400, 0.5, 1000, 280),
        (2 * gpu_job.RUN_OVERHEAD + 10, 0.5, 1000, 0),  # ten steps say nothing
        (-5, 0.5, 1000, 0),
    ],
)
def test_schedule_of_the_job(left, step, wanted, expected):
    assert gpu_job.fitting_iterations(left, step, wanted) == expected


def test_results_and_figures_of_tests_that_ran(tmp_path):
    """Also of those that failed: by a small folder of tests in the place of tests/gpu."""
    tests = tmp_path / "tests" / "gpu"
    tests.mkdir(parents=True)
    (tmp_path / ".pytest.ini").write_text("[pytest]\nmarkers = gpu: of these tests\n")
    (tests / "test_it.py").write_text(
        "import os, pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good():\n"
        f"    with open(os.environ['{gpu.FIGURES_VARIABLE}'], 'a') as file:\n"
        '        file.write(\'{"name": "a", "value": 1.5, "unit": "ms"}\\n\')\n'
        "def test_bad():\n    assert 1 + 1 == 3\n"
        "@pytest.mark.skip(reason='none')\ndef test_skipped():\n    pass\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    ended, figures = gpu._run_tests(tests, work, gpu_job.Budget(time.monotonic() + 60))
    assert ended["exit_code"] == 1
    assert ended["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert len(ended["failed"]) == 1
    assert "test_bad: assert (1 + 1) == 3" in ended["failed"][0]
    assert figures == [{"name": "a", "value": 1.5, "unit": "ms"}]


@pytest.mark.parametrize("weights", ["", "R-50.pkl"])
def test_grid_of_the_job(toy_root, tmp_path, weights):
    """Each of its configs is one that a training accepts."""
    import yaml

    (toy_root / "ImageSets/Main/val.txt").write_text("")
    sets = gpu_job.voc_entries(toy_root)
    assert [entry["SPLIT"] for entry in sets] == ["train", "test"]
    assert set(sets[0]["CLASSES"]) == set(TOY_CLASS_NAMES)
    assert sets[0]["CLASSES"] == sets[1]["CLASSES"]
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump(gpu_job.job_grid(sets, weights, 100, ["SOLVER.BASE_LR", "0.01"]))
    )
    grid = read_grid(tmp_path / "grid.yaml")
    assert [run.noise for run in grid.runs] == [0.4, 0.4]
    for method in grid.methods:
        cfg = merge_cfg(find_config(method.config), list(method.opts))
        assert cfg.DATASETS.CUSTOM_VOC == sets
        assert cfg.SOLVER.STEPS == (70, 90)
        assert cfg.SOLVER.BASE_LR == 0.01
        assert cfg.MODEL.WEIGHTS == weights
        assert cfg.MODEL.BACKBONE.FREEZE_AT == (2 if weights else 0)
