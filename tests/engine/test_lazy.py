"""LazyConfigs through tools/train_net.py: trained, resumed, evaluated; errors of one line."""

import re

import pytest
import torch

from helpers.trainings import assert_equal, train_net
from sl_detectron.engine.lazy import setup_lazy_cfg
from sl_detectron.model_zoo import get_config_file

LAZY = get_config_file("LazyConfig/toy_faster_rcnn_superloss.py")


def test_lazy_config_trains_is_evaluated_and_resumes_bit_for_bit(toy_env, tmp_path):
    """The example, with a smaller batch and labels that are corrected after every step."""
    correct = ["label_correction.start=0.1", "label_correction.period=1"]
    opts = ["dataloader.train.total_batch_size=2", "train.eval_period=3", *correct]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, *more in (
        (whole, "train.max_iter=5"),
        (parts, "train.max_iter=5", "train.checkpointer.period=3"),
    ):
        args = ["--config-file", LAZY, f"train.output_dir={folder}", *opts, *more]
        done = train_net(toy_env, *args)
        assert done.returncode == 0, done.stderr
    assert re.search(r"copypaste: AP,AP50,AP75\n.*copypaste: [\d.,]+", done.stdout)
    assert re.search(r"tau by rank of roi_heads.box_predictor.superloss_cls.*2\.39789", done.stdout)
    assert "Corrected labels at iteration 4" in done.stdout
    assert (whole / "label_audit.json").is_file()
    expected = torch.load(whole / "model_final.pth", weights_only=True)
    assert expected["annotation_tracker"]["sums"].any()
    (parts / "model_final.pth").unlink()
    (parts / "last_checkpoint").write_text("model_0000002.pth")
    done = train_net(toy_env, "--resume", *args)
    assert done.returncode == 0, done.stderr
    assert "Starting training from iteration 3" in done.stdout
    assert_equal(torch.load(parts / "model_final.pth", weights_only=True), expected)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["train.max_iter"], "cannot apply"),
        (["train=["], "cannot apply"),
        (["~train"], "cannot apply"),
    ],
)
def test_lazy_config_errors_are_one_line(toy_env, opts, message):
    done = train_net(toy_env, "--config-file", LAZY, *opts)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert re.search(rf"train_net\.py: error: .*toy_faster_rcnn_superloss\.py.*({message})", line)


def test_more_classes_than_a_lazy_detector_has_are_refused(toy_env):
    """The last class would be trained as background."""
    heads = "model.roi_heads"
    opts = [f"{heads}.num_classes=9", f"{heads}.superloss_cls.superloss.num_outcomes=10"]
    opts += ["train.device=cpu", "train.max_iter=1"]
    done = train_net(toy_env, "--config-file", LAZY, *opts)
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    message = r"error: model\.roi_heads\.num_classes is 9, but the training sets have 10 classes"
    assert re.search(message, line)


def test_a_misspelt_lazy_key_names_the_nearest():
    with pytest.raises(ValueError, match=r"no train\.max_itr; did you mean train\.max_iter\?"):
        setup_lazy_cfg(LAZY, ["train.max_itr=3"])
    cfg = setup_lazy_cfg(LAZY, ["train.max_iter=3", "+train.ddp.fp16_compression=True"])
    assert cfg.train.max_iter == 3
    assert cfg.train.ddp.fp16_compression
