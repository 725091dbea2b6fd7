"""LazyConfigs through tools/train_net.py: trained, resumed, evaluated; errors of one line."""

import re

import pytest

from helpers.trainings import train_net
from sl_detectron.engine.lazy import setup_lazy_cfg
from sl_detectron.model_zoo import get_config_file

LAZY = get_config_file("LazyConfig/toy_faster_rcnn_superloss.py")


def test_lazy_config_trains_resumes_and_is_evaluated(toy_env, tmp_path):
    """The example, with a smaller batch: train, evaluate, go on from the checkpoint."""
    opts = [f"train.output_dir={tmp_path}", "dataloader.train.total_batch_size=2"]
    done = train_net(
        toy_env, "--config-file", LAZY, *opts, "train.max_iter=3", "train.eval_period=3"
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"copypaste: AP,AP50,AP75\n.*copypaste: [\d.,]+", done.stdout)
    more = ["train.max_iter=5", "train.eval_period=0"]
    done = train_net(toy_env, "--resume", "--config-file", LAZY, *opts, *more)
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
def test_lazy_config_errors_are_one_line(toy_env, opts, message):
    done = train_net(toy_env, "--config-file", LAZY, *opts)
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
