"""Thousands of steps: no growth of memory or of step time. And two runs that are equal."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from helpers import REPO
from helpers.trainings import FASTER_RCNN, RETINANET, assert_equal, few_test_images, train_net
from sl_detectron.data import register_toy_datasets
from sl_detectron.engine import SuperLossTrainer, setup_cfg
from sl_detectron.model_zoo import get_config_file

NUM_STEPS = 2000
PAGE = os.sysconf("SC_PAGE_SIZE")


class Measure(HookBase):
    """Resident memory and CPU time, which other processes do not lengthen, after every step."""

    def __init__(self):
        self.memory, self.times = [], []

    def before_step(self):
        self._started = time.process_time()

    def after_step(self):
        self.times.append(time.process_time() - self._started)
        self.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20)
        if len(self.times) % 250 == 0:
            time_per_step = statistics.median(self.times[-250:]) * 1e3
            print(f"{len(self.times)} steps: {self.memory[-1]:.1f} MiB, {time_per_step:.1f} ms")


@pytest.mark.long
@pytest.mark.parametrize("config", [RETINANET, FASTER_RCNN])
def test_memory_and_step_time_do_not_grow(tmp_path, config):
    prefix = f"long_{config[4:8]}"
    register_toy_datasets(tmp_path / "toy", prefix=prefix)
    opts = [
        "SOLVER.MAX_ITER",
        NUM_STEPS,
        "SOLVER.IMS_PER_BATCH",
        2,
        "SOLVER.CHECKPOINT_PERIOD",
        500,
    ]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "DATASETS.TRAIN", f"('{prefix}_train',)"]
    opts += ["DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "out"]
    opts += ["MODEL.FPN.OUT_CHANNELS", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
    trainer = SuperLossTrainer(setup_cfg(get_config_file(config), list(map(str, opts))))
    measure = Measure()
    trainer.register_hooks([measure])
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert len(measure.times) == NUM_STEPS
    early, late = slice(250, 750), slice(-500, None)
    memory = [max(measure.memory[part]) for part in (early, late)]
    # Not the mean: a checkpoint now and then is a step of its own length.
    times = [statistics.median(measure.times[part]) * 1e3 for part in (early, late)]
    # detectron2's storage keeps every scalar of up to a million steps: about 1 kB a step.
    assert memory[1] - memory[0] < 16
    assert times[1] < 1.15 * times[0]


def test_two_runs_of_one_seed_are_equal(toy_env, tmp_path):
    """Metrics, also of the evaluation, and all of the checkpoint; the second run is in a new
    interpreter, which has another hash seed."""
    metrics, checkpoints = [], []
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    for name in ("a", "b"):
        opts = ["SOLVER.MAX_ITER", 3, *few_test_images(toy_env), "OUTPUT_DIR", tmp_path / name]
        opts += ["INPUT.MIN_SIZE_TRAIN", [64], "INPUT.MIN_SIZE_TEST", 64]
        args = ["--config-file", get_config_file(FASTER_RCNN), *map(str, opts)]
        if name == "a":
            done = train_net(toy_env, *args)
        else:
            command = [sys.executable, str(REPO / "tools" / "train_net.py"), *args]
            env = {**toy_env, "PYTHONHASHSEED": hash_seed}
            done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "metrics.json").read_text().splitlines()
        metrics.append([without_times(json.loads(line)) for line in lines])
        checkpoints.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True))
    assert_equal(*metrics)
    assert any("bbox/AP" in line for line in metrics[0])
    assert_equal(*checkpoints)


def without_times(line):
    return {k: v for k, v in line.items() if "time" not in k and "eta" not in k}
