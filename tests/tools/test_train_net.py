"""tools/train_net.py as a user runs it: trains, evaluates, resumes, several ranks, clear errors."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers import REPO
from sl_detectron.audit import read_audit
from sl_detectron.data import TOY_CLASS_NAMES, register_toy_datasets
from sl_detectron.engine import SuperLossTrainer, setup_cfg, setup_lazy_cfg

RETINANET = str(REPO / "configs" / "Toy" / "retinanet_superloss.yaml")
FASTER_RCNN = str(REPO / "configs" / "Toy" / "faster_rcnn_superloss.yaml")
NO_TEST = ["DATASETS.TEST", "()"]
TINY = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "1000"]


@pytest.fixture(scope="module")
def toy_root(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def train_net(toy_root):
    env = {**os.environ, "DETECTRON2_DATASETS": str(toy_root), "OMP_NUM_THREADS": "1"}

    def run(*args):
        tool = [sys.executable, str(REPO / "tools" / "train_net.py")]
        return subprocess.run([*tool, *map(str, args)], capture_output=True, text=True, env=env)

    return run


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


def test_two_ranks_on_cpu_share_tau(trained, train_net, toy_root, tmp_path):
    """On a set of one's own, which the spawned ranks must know as well."""
    classes = list(TOY_CLASS_NAMES)
    mine = {"NAME": "mine", "ROOT": f"{toy_root}/toy_digits", "SPLIT": "train", "CLASSES": classes}
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


@pytest.fixture
def toy_sets(toy_root):
    """The toy set in this process, under names of its own."""
    register_toy_datasets(toy_root / "toy_digits", prefix="toy_here")
    yield ["DATASETS.TRAIN", "('toy_here_train',)", "DATASETS.TEST", "('toy_here_test',)"]
    for split in ("train", "test"):
        DatasetCatalog.remove(f"toy_here_{split}")
        MetadataCatalog.remove(f"toy_here_{split}")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SUPERLOSS.CLS.LAMBDA", "1"], r"CLS\.LAMBDA takes a float such as 1\.0; got a int"),
        (["MODEL.SUPERLOSS.CLS.TAU", "1.5"], r"CLS\.TAU takes a str, in quotes"),
        (["MODEL.SUPERLOS.CLS.TAU", "Avg"], r"no config key MODEL\.SUPERLOS.*MODEL\.SUPERLOSS"),
        (["DATASETS.TRAIN", "('toy_her_train',)"], r"'toy_her_train'.*'toy_here_train'"),
        (["DATASETS.LABEL_NOISE.RATE", "1.5"], r"DATASETS\.LABEL_NOISE\.RATE.*1\.5"),
        (["MODEL.SUPERLOSS.CLS.TAU", "Mean"], r"MODEL\.SUPERLOSS\.CLS\.TAU.*ExpAvg.*'Mean'"),
        (["MODEL.DEVICE", "cuda"], r"MODEL\.DEVICE cpu"),
        (["TEST.EVALUATOR", "kitti"], r"TEST\.EVALUATOR.*voc.*coco.*'kitti'"),
        (["SOLVER.AMP.ENABLED", "True"], r"SOLVER\.AMP\.ENABLED needs MODEL\.DEVICE cuda"),
        (["TEST.ABSENT_CLASSES", "drop"], r"TEST\.ABSENT_CLASSES.*skip.*zero.*'drop'"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "9"], r"ROI_HEADS\.NUM_CLASSES is 9.* set it to 10"),
        (["DATASETS.CUSTOM_VOC", "[{'NAME': 'x'}]"], r"DATASETS\.CUSTOM_VOC\[0\] needs the keys"),
    ],
)
def test_bad_values_stop_before_training(opts, message, toy_sets, tmp_path):
    if opts[1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=message):
        SuperLossTrainer(setup_cfg(FASTER_RCNN, [*toy_sets, "OUTPUT_DIR", str(tmp_path), *opts]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["MODEL: [", "", "MODEL: 3", "- 1"])
def test_a_file_that_is_no_config(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="config"):
        setup_cfg(str(path), ["MODEL.DEVICE", "cpu"])


def test_evaluation_needs_no_training_set(toy_sets):
    opts = [*toy_sets, "DATASETS.TRAIN", "('voc_2012_train',)"]
    with pytest.raises(FileNotFoundError, match="VOC2012"):
        setup_cfg(FASTER_RCNN, opts)
    assert setup_cfg(FASTER_RCNN, opts, eval_only=True)


def test_superloss_keys_without_a_superloss_model_warn(toy_sets, caplog):
    stock = FASTER_RCNN.replace("_superloss", "")
    caplog.set_level("WARNING", logger="sl_detectron")
    logging.getLogger("sl_detectron").propagate = True
    SuperLossTrainer.build_model(setup_cfg(stock, toy_sets))
    assert "has no SuperLoss" not in caplog.text
    opts = [*toy_sets, "MODEL.SUPERLOSS.CLS.TAU", "Avg"]
    SuperLossTrainer.build_model(setup_cfg(stock, opts))
    assert "has no SuperLoss" in caplog.text


def test_errors_are_one_line(train_net, tmp_path):
    done = train_net("--config-file", "nowhere.yaml", "OUTPUT_DIR", tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"train_net.py: error: .*nowhere\.yaml.*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert "Traceback" in train_net("--debug", "--config-file", "nowhere.yaml").stderr


LAZY = str(REPO / "configs" / "LazyConfig" / "toy_faster_rcnn_superloss.py")


def test_lazy_config_trains_resumes_and_is_evaluated(train_net, tmp_path):
    """The example, with a smaller batch: train, evaluate, go on from the checkpoint."""
    opts = [f"train.output_dir={tmp_path}", "dataloader.train.total_batch_size=2"]
    done = train_net("--config-file", LAZY, *opts, "train.max_iter=3", "train.eval_period=3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"copypaste: AP,AP50,AP75\n.*copypaste: [\d.,]+", done.stdout)
    more = ["train.max_iter=5", "train.eval_period=0"]
    done = train_net("--resume", "--config-file", LAZY, *opts, *more)
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 3" in done.stdout
    assert re.search(r"tau by rank of roi_heads.box_predictor.superloss_cls.*2\.39789", done.stdout)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["train.max_iter"], "cannot apply"),
        (["train=["], "cannot apply"),
        (["~train"], "cannot apply"),
    ],
)
def test_lazy_config_errors_are_one_line(train_net, opts, message):
    done = train_net("--config-file", LAZY, *opts)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert re.search(rf"train_net\.py: error: .*toy_faster_rcnn_superloss\.py.*({message})", line)


def test_a_misspelt_lazy_key_names_the_nearest():
    with pytest.raises(ValueError, match=r"no train\.max_itr; did you mean train\.max_iter\?"):
        setup_lazy_cfg(LAZY, ["train.max_itr=3"])
    cfg = setup_lazy_cfg(LAZY, ["train.max_iter=3", "+train.ddp.fp16_compression=True"])
    assert cfg.train.max_iter == 3
    assert cfg.train.ddp.fp16_compression


def test_data_params_learn_one_temperature_an_annotation(train_net, tmp_path):
    """SuperLossTrainer counts them; seen ones move, at a learning rate of their own, and resume."""
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
