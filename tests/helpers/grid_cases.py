"""Grids of trainings that take seconds, and made-up results."""

import contextlib
import io
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import yaml

from helpers import REPO
from sl_detectron.data import make_toy_dataset, toy
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.sweep import read_grid
from sl_detectron.sweep.grid import Grid

NUM_IMAGES = 6
R, F = "RetinaNet", "Faster R-CNN"
# With made-up results: they train nothing.
RESULTS_GRID = {
    "noise": [0.0, 0.4],
    "seeds": [0, 1, 2],
    "source": "A. Author, 2020",
    "baseline": "baseline",
    "controls": ["equal weight"],
    "detectors": {
        R: {
            "baseline": {"config": "x", "paper": {"AP50": ["80.6±0.2", "74.6±0.6"]}},
            "equal weight": {"config": "x"},
            "τ_avg": {"config": "x"},
        },
        F: {"baseline": {"config": "x"}, "τ_avg": {"config": "x"}},
    },
}
# {(detector, method, noise): AP50 by seed}; None is missing.
AP50 = {
    (R, "baseline", 0.0): (50.0, 52.0, 54.0),
    (R, "baseline", 0.4): (40.0, 42.0, 47.0),
    (R, "equal weight", 0.0): (50.0, 50.0, 50.0),
    (R, "equal weight", 0.4): (41.0, None, 44.0),
    (R, "τ_avg", 0.0): (51.0, 54.0, 57.0),
    (R, "τ_avg", 0.4): (None, None, 46.0),
    (F, "baseline", 0.0): (60.0, 61.0, 62.0),
    (F, "τ_avg", 0.0): (None, None, None),
}
ONE_METHOD = {
    "noise": [0.0, 0.4],
    "seeds": [0],
    "detectors": {"RetinaNet": {"baseline": {"config": "Toy/retinanet.yaml"}}},
}


def method(**keys: object) -> dict:
    """The detectors of ``ONE_METHOD`` with more keys of their method."""
    return {"detectors": {"RetinaNet": {"baseline": {"config": "Toy/retinanet.yaml", **keys}}}}


def run_here(tool: str, *args: object) -> subprocess.CompletedProcess:
    """A tool in this process: to start it costs more than what it does, beside its runs."""
    argv = [str(REPO / "tools" / f"{tool}.py"), *map(str, args)]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = runpy.run_path(argv[0])["cli"]()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def make_tiny_set(root: Path) -> None:
    """A toy set with ``NUM_IMAGES`` training images."""
    with patch.object(toy, "TOY_SPLITS", {"train": NUM_IMAGES, "test": 1}):
        make_toy_dataset(root)


def write_tiny_grid(path: Path, root: Path, iterations: int = 6, **changes: object) -> Path:
    """Two methods at one noise level; every detection counts, so that AP is above 0 at once."""
    name = f"tiny_{root.parent.name}"
    tiny = {"NAME": name, "ROOT": str(root), "SPLIT": "train", "CLASSES": list(TOY_CLASS_NAMES)}
    opts = {
        "DATASETS.CUSTOM_VOC": [tiny],
        "DATASETS.TRAIN": f"('{name}',)",
        "DATASETS.TEST": f"('{name}',)",
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
        "INPUT.MIN_SIZE_TRAIN": [64],
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": 0,  # so that a few iterations make a difference
        "SOLVER.CHECKPOINT_PERIOD": 2,
    }
    grid = {
        "noise": [0.4],
        "seeds": [0],
        "baseline": "baseline",
        "opts": [part for pair in opts.items() for part in pair],
        "detectors": {
            "RetinaNet": {
                "baseline": {"config": "Toy/retinanet.yaml"},
                "SuperLoss": {"config": "Toy/retinanet_superloss.yaml"},
            }
        },
    }
    path.write_text(yaml.safe_dump({**grid, **changes}, sort_keys=False))
    return path


def write_results(grid_file: Path, folder: Path, values: dict[tuple, float]) -> Grid:
    """Results of {(detector, method, noise, seed): AP50}, with AP half and AP75 0.8 of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    grid = read_grid(grid_file)
    (folder / "grid.yaml").write_text(grid.text)
    for run in grid.runs:
        key = (run.method.detector, run.method.name, run.noise, run.seed)
        if key in values:
            ap50 = values[key]
            metrics = {"AP": ap50 / 2, "AP50": ap50, "AP75": 0.8 * ap50}
            (folder / run.folder).mkdir(parents=True)
            result = {"metrics": metrics, "seconds": 1.0, "fingerprint": "of no config"}
            (folder / run.folder / "result.json").write_text(json.dumps(result))
    return grid
