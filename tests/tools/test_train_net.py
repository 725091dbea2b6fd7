"""tools/train_net.py as a user runs it: trains, evaluates, resumes, several ranks, clear errors."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPO

TINY = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "4"]


def train_net(*args, root, timeout=600):
    env = {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(REPO / "tools" / "train_net.py"), *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


def superloss_tau(checkpoint):
    """{state-dict key: value} of all running tau in a checkpoint."""
    state = torch.load(checkpoint, weights_only=False)["model"]
    return {k: float(v) for k, v in state.items() if k.endswith("threshold.mean")}


@pytest.fixture(scope="module")
def trained(toy_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    config = REPO / "configs" / "Toy" / "retinanet_superloss.yaml"
    done = train_net("--config-file", config, *TINY, "OUTPUT_DIR", output, root=toy_root)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_ends_in_ap(trained):
    _, log = trained
    assert re.search(r"copypaste: AP,AP50,AP75\n.*copypaste: [\d.]+,[\d.]+,[\d.]+", log)


def test_logs_the_realised_noise(trained):
    _, log = trained
    rate = float(re.search(r"Label noise in toy_digits_train: ([\d.]+) %", log)[1])
    assert 30 < rate < 50


def test_resume_continues_with_the_saved_tau(trained, toy_root, tmp_path):
    output, _ = trained
    saved = superloss_tau(output / "model_final.pth")
    assert saved
    config = REPO / "configs" / "Toy" / "retinanet_superloss.yaml"
    # No iteration is left: what is written again is what was loaded.
    done = train_net(
        *("--config-file", config, "--resume", *TINY, "OUTPUT_DIR", output), root=toy_root
    )
    assert done.returncode == 0, done.stderr
    more = ["SOLVER.MAX_ITER", "5", "MODEL.SUPERLOSS.MOMENTUM", "0.999999"]
    done = train_net(
        *("--config-file", config, "--resume", *TINY, "OUTPUT_DIR", output, *more), root=toy_root
    )
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 4" in done.stdout
    # One step with nearly all of the old tau kept: it hardly moved, so it was the saved one.
    resumed = superloss_tau(output / "model_final.pth")
    assert resumed != saved
    assert resumed == pytest.approx(saved, rel=1e-4)


def test_eval_only(trained, toy_root, tmp_path):
    output, _ = trained
    config = REPO / "configs" / "Toy" / "retinanet_superloss.yaml"
    weights = ["MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", tmp_path]
    done = train_net("--config-file", config, "--eval-only", *weights, root=toy_root)
    assert done.returncode == 0, done.stderr
    assert "copypaste: AP,AP50,AP75" in done.stdout
    assert not list(tmp_path.glob("*.pth"))


def test_two_ranks_on_cpu_share_tau(toy_root, tmp_path):
    config = REPO / "configs" / "Toy" / "faster_rcnn_superloss.yaml"
    opts = ["MODEL.SUPERLOSS.CLS.TAU", "ExpAvg", "MODEL.SUPERLOSS.BOX_REG.ENABLED", "True"]
    opts += ["SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", tmp_path]
    done = train_net(
        *("--config-file", config, "--num-gpus", 2, "--dist-url", "auto", *opts), root=toy_root
    )
    assert done.returncode == 0, done.stderr
    assert "copypaste: AP,AP50,AP75" in done.stdout
    lines = re.findall(r"tau by rank of (\S+): \[(.+), (.+)\]", done.stdout)
    assert len(lines) == 2
    assert all(first == second != "nan" for _, first, second in lines)


def test_metrics_file_has_the_superloss(toy_root, tmp_path):
    config = REPO / "configs" / "Toy" / "faster_rcnn_superloss.yaml"
    opts = ["SOLVER.MAX_ITER", "20", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", tmp_path]
    done = train_net("--config-file", config, *opts, "DATASETS.TEST", "()", root=toy_root)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    for key in ("raw_loss", "superloss", "tau", "sigma_foreground", "capped_share"):
        assert f"superloss_cls/{key}" in metrics


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["MODEL.SUPERLOSS.CLS.LAMBDA", "1"], r"CLS\.LAMBDA takes a float such as 1\.0; got a int"),
        (["MODEL.SUPERLOSS.CLS.TAU", "1.5"], r"CLS\.TAU takes a str, in quotes"),
        (["MODEL.SUPERLOS.CLS.TAU", "Avg"], r"no config key MODEL\.SUPERLOS.*MODEL\.SUPERLOSS"),
        (["DATASETS.TRAIN", "('toy_digit_train',)"], r"'toy_digit_train'.*'toy_digits_train'"),
        (["DATASETS.TRAIN", "('voc_2007_val',)"], r"no VOC devkit folder .*VOC2007"),
        (["DATASETS.LABEL_NOISE.RATE", "1.5"], r"DATASETS\.LABEL_NOISE\.RATE.*1\.5"),
        (["MODEL.SUPERLOSS.CLS.TAU", "Mean"], r"MODEL\.SUPERLOSS\.CLS\.TAU.*ExpAvg.*'Mean'"),
        (["MODEL.DEVICE", "cuda"], r"MODEL\.DEVICE cpu"),
        (["TEST.EVALUATOR", "kitti"], r"TEST\.EVALUATOR.*voc.*coco.*'kitti'"),
    ],
)
def test_bad_input_stops_before_training(args, message, toy_root, tmp_path):
    if args[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = REPO / "configs" / "Toy" / "faster_rcnn_superloss.yaml"
    output = tmp_path / "output"
    done = train_net("--config-file", config, *TINY, "OUTPUT_DIR", output, *args, root=toy_root)
    assert done.returncode == 2
    assert re.search(message, done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
    assert "Starting training" not in done.stdout


def test_missing_config_file(toy_root):
    done = train_net("--config-file", "nowhere.yaml", root=toy_root)
    assert done.returncode == 2
    assert "nowhere.yaml" in done.stderr.splitlines()[-1]
