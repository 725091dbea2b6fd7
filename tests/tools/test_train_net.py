"""tools/train_net.py as a user runs it: trains, evaluates, resumes, several ranks, clear errors."""

import json
import re
from functools import partial

import pytest
import torch

from helpers import trainings
from helpers.trainings import FASTER_RCNN, RETINANET
from sl_detectron.audit import read_audit
from sl_detectron.data.toy import TOY_CLASS_NAMES

NO_TEST = ["DATASETS.TEST", "()"]
TINY = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "1000"]


@pytest.fixture(scope="module")
def train_net(toy_env):
    return partial(trainings.train_net, toy_env)


@pytest.fixture(scope="module")
def trained(train_net, tmp_path_factory):
    """A run of 20 iterations, and what it printed."""
    output = tmp_path_factory.mktemp("trained")
    opts = ["SOLVER.MAX_ITER", 20, "OUTPUT_DIR", output]
    done = train_net("--config-file", RETINANET, *TINY, *NO_TEST, *opts)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def running_tau(checkpoint):
    """{state-dict key: value} of all running tau in a checkpoint."""
    state = torch.load(checkpoint, weights_only=False)["model"]
    return {k: float(v) for k, v in state.items() if k.endswith("threshold.mean")}


def test_logs_the_realised_noise(trained):
    _, log = trained
    rate = float(re.search(r"Label noise in toy_digits_train: ([\d.]+) %", log)[1])
    assert 30 < rate < 50


def test_metrics_file_has_the_superloss(trained):
    output, _ = trained
    metrics = json.loads((output / "metrics.json").read_text().splitlines()[0])
    for key in ("raw_loss", "superloss", "tau", "sigma_foreground", "capped_share"):
        assert f"superloss_cls/{key}" in metrics


def test_resume_continues_with_the_saved_tau(trained, train_net):
    output, _ = trained
    saved = running_tau(output / "model_final.pth")
    assert saved
    opts = ["SOLVER.MAX_ITER", 21, "MODEL.SUPERLOSS.MOMENTUM", 0.999999, "OUTPUT_DIR", output]
    done = train_net("--config-file", RETINANET, "--resume", *TINY, *NO_TEST, *opts)
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 20" in done.stdout
    # One step that keeps nearly all of the old tau: it hardly moved, so it was the saved one.
    resumed = running_tau(output / "model_final.pth")
    assert resumed != saved
    assert resumed == pytest.approx(saved, rel=1e-4)


def test_evaluates_a_checkpoint(trained, train_net, tmp_path):
    output, _ = trained
    opts = ["MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", tmp_path]
    done = train_net("--config-file", RETINANET, "--eval-only", *opts)
    assert done.returncode == 0, done.stderr
    assert re.search(r"copypaste: AP,AP50,AP75\n.*copypaste: [\d.]+,[\d.]+,[\d.]+", done.stdout)
    assert not list(tmp_path.glob("*.pth"))


def test_two_ranks_on_cpu_share_tau(trained, train_net, toy_env, tmp_path):
    """On a custom dataset, which the spawned ranks must know as well."""
    root, classes = toy_env["DETECTRON2_DATASETS"], list(TOY_CLASS_NAMES)
    mine = {"NAME": "mine", "ROOT": f"{root}/toy_digits", "SPLIT": "train", "CLASSES": classes}
    opts = ["MODEL.SUPERLOSS.CLS.TAU", "ExpAvg", "MODEL.SUPERLOSS.BOX_REG.ENABLED", True]
    opts += ["DATASETS.CUSTOM_VOC", [mine], "DATASETS.TRAIN", "('mine',)"]
    opts += ["SOLVER.MAX_ITER", 3, "OUTPUT_DIR", tmp_path]
    ranks = ["--num-gpus", 2, "--dist-url", "auto"]
    done = train_net("--config-file", FASTER_RCNN, *ranks, *TINY, *NO_TEST, *opts)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"tau by rank of (\S+): \[(.+), (.+)\]", done.stdout)
    assert len(lines) == 2
    assert all(first == second != "nan" for _, first, second in lines)
    # Three steps of an image a rank: the audit has what both ranks have seen.
    audit = read_audit(tmp_path / "label_audit.json")
    assert len({a.image_id for a in audit.annotations}) == 6


def test_errors_are_one_line(train_net, tmp_path):
    done = train_net("--config-file", "nowhere.yaml", "OUTPUT_DIR", tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"train_net.py: error: .*nowhere\.yaml.*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert "Traceback" in train_net("--debug", "--config-file", "nowhere.yaml").stderr


def test_data_params_learn_one_temperature_an_annotation(train_net, tmp_path):
    """SuperLossTrainer counts them; seen ones move, at their custom learning rate, and resume."""
    opts = ["MODEL.SUPERLOSS.CLS.LOSS", "data_params", "OUTPUT_DIR", tmp_path, *NO_TEST, *TINY]
    opts += ["MODEL.SUPERLOSS.CLS.ENABLED", "False"]
    done = train_net("--config-file", FASTER_RCNN, *opts, "SOLVER.MAX_ITER", 4)
    assert done.returncode == 0, done.stderr
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=False)
    (logs,) = (v for k, v in checkpoint["model"].items() if "log_sample_temperature" in k)
    total = int(re.search(r"% of (\d+) annotations", done.stdout)[1])
    assert len(logs) == total
    assert 4 <= int((logs != 0).sum()) <= 4 * 2 * 5  # 4 batches of 2 images of up to 5 digits
    groups = checkpoint["trainer"]["_trainer"]["optimizer"]["param_groups"]
    assert [g["momentum"] for g in groups][-1] == 0.0
    done = train_net("--resume", "--config-file", FASTER_RCNN, *opts, "SOLVER.MAX_ITER", 6)
    assert done.returncode == 0, done.stderr
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    (later,) = (v for k, v in resumed.items() if "log_sample_temperature" in k)
    assert not torch.equal(later, logs)
    assert (later[logs != 0] != 0).all()  # learned on, not from the start
