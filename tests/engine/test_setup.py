"""A command line becomes a checked config; a bad key or value stops it before training."""

import logging
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from sl_detectron.data import register_toy_datasets
from sl_detectron.engine import SuperLossTrainer, setup_cfg
from sl_detectron.model_zoo import get_config_file

FASTER_RCNN = get_config_file("Toy/faster_rcnn_superloss.yaml")


@pytest.fixture
def toy_sets(toy_root):
    """The toy set in this process, under other names."""
    register_toy_datasets(toy_root, prefix="toy_here")
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
        (
            ["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "meta"],
            r"SOLVER\.AMP\.ENABLED needs MODEL\.DEVICE cuda or cpu; got 'meta'",
        ),
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


@pytest.mark.parametrize("missing", ["cv2", "matplotlib"])
def test_what_draws_is_missed_before_training(monkeypatch, missing):
    """And by a training that is to draw only."""
    file = get_config_file("Toy/faster_rcnn.yaml")
    opts = ["DATASETS.TEST", "()", "VIS_PERIOD", "2"]
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"VIS_PERIOD is 2, .*sl_detectron\[visualize\]"):
        setup_cfg(file, opts)
    assert setup_cfg(file, opts, eval_only=True).VIS_PERIOD == 2
