"""Methods of other papers as objects of a LazyConfig, against the YAML form."""

import copy

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig

from helpers.detectors import build, run_losses, small_config
from helpers.method_cases import (
    METHODS,
    NODE,
    NUM_ANNOTATIONS,
    detector_with,
    numbered_batch,
    options,
)
from helpers.trainings import assert_equal, train_net
from sl_detectron import rivals
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.engine.lazy import _build_method
from sl_detectron.model_zoo import get_config, get_config_file

CO_TEACHING = get_config_file("LazyConfig/toy_faster_rcnn_co_teaching.py")
# What the helper's options of the methods are in small letters.
LAZY = {
    "CoTeaching": L(rivals.CoTeaching)(rate=0.4, ramp=0),
    "CoTeaching, one trunk": L(rivals.CoTeaching)(rate=0.4, ramp=0),
    "CoTeaching, by class": L(rivals.CoTeaching)(rate=0.4, ramp=0, num_classes=5),
    "CABBC": L(rivals.CABBC)(alpha=100.0),
    "CLC": L(rivals.CLC)(num_classes=5),
    "CLC, relabelled": L(rivals.CLC)(num_classes=5, form="relabel"),
    "EMATeacher": L(rivals.EMATeacher)(num_classes=5, decay=0.5, share=0.5),
    "NoteRCNN": L(rivals.NoteRCNN)(),
    "SDLocNet": L(rivals.SDLocNet)(num_annotations=None, num_classes=5),
}


def table(num=NUM_ANNOTATIONS):
    return AnnotationTable(num, 7, ("a", "b"), {}, ())


def lazy(node):
    names = {"method": copy.deepcopy(node), "train": {"device": "cpu"}}
    return DictConfig(names, flags={"allow_objects": True})


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_the_yaml_form(name):
    model, method = detector_with(name)
    cfg = small_config("standard", superloss=True)
    cfg.merge_from_list(options(name, "standard"))
    other = build(cfg)
    built = _build_method(lazy(LAZY[name]), other, table(), corrects=False)
    assert type(built) is type(method)
    for step in range(2):
        losses = []
        for detector, of in ((model, method), (other, built)):
            of.begin_step(step)
            losses.append(run_losses(detector, numbered_batch(seed=step), seed=step)[0])
            of.end_step()
        assert losses[0] == losses[1]
    assert method.state_dict().keys() == built.state_dict().keys()


def test_the_shipped_pair_is_that_of_the_yaml_keys():
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list(["MODEL.SUPERLOSS.CLS.FIXED_SIGMA", 1.0, NODE + "NAME", "CoTeaching"])
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "PairedRCNN", NODE + "NOISE_RATE", 0.4])
    by_yaml = build(cfg)
    yaml_method = rivals.build_method(cfg, by_yaml, NUM_ANNOTATIONS)
    names = LazyConfig.load(CO_TEACHING)
    by_lazy = instantiate(names.model).train()
    method = _build_method(names, by_lazy, table(), corrects=False)
    assert (method.rate, method.start) == (yaml_method.rate, yaml_method.start)
    by_lazy.load_state_dict(by_yaml.state_dict())
    losses = []
    for detector, of in ((by_yaml, yaml_method), (by_lazy, method)):
        of.begin_step(60)
        losses.append(run_losses(detector, numbered_batch())[0])
    assert losses[0] == losses[1]
    assert "second_loss_cls" in losses[0]


def test_one_trunk_by_arguments():
    names = LazyConfig.load(CO_TEACHING)
    names.model.shared_trunk = True
    model = instantiate(names.model)
    keys = {key.split(".")[1] for key in model.state_dict() if key.startswith("second.")}
    assert keys == {"roi_heads"}
    del names.model.second
    with pytest.raises(ValueError, match="needs second, another GeneralizedRCNN; got NoneType"):
        instantiate(names.model)


def test_what_is_refused():
    model = build(small_config("standard", superloss=True))
    node = LAZY["CLC"]
    assert _build_method(lazy(None), model, table(), corrects=False) is None
    with pytest.raises(ValueError, match="method and label_correction both"):
        _build_method(lazy(node), model, table(), corrects=True)
    with pytest.raises(ValueError, match="to be a build_noisy_train_loader"):
        _build_method(lazy(node), model, None, corrects=False)
    with pytest.raises(ValueError, match="must be a sl_detectron"):
        _build_method(lazy(L(torch.nn.ReLU)()), model, table(), corrects=False)
    with pytest.raises(ValueError, match=r"CLC\.FORM must be one of .*; got 'both'"):
        rivals.CLC(5, "both")
    with pytest.raises(ValueError, match=r"START must be at least 0; got -1"):
        rivals.CLC(5, start=-1)


@pytest.mark.slow
def test_a_training_with_a_method_goes_on_bit_for_bit(toy_env, tmp_path):
    opts = ["dataloader.train.total_batch_size=2", "train.eval_period=0", "train.max_iter=4"]
    opts += ["train.checkpointer.period=2", "method.ramp=1"]
    args = ["--config-file", CO_TEACHING, f"train.output_dir={tmp_path}", *opts]
    done = train_net(toy_env, *args)
    assert done.returncode == 0, done.stderr
    expected = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert not expected["method"]["first.queue"].isnan().all()
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    done = train_net(toy_env, "--resume", *args)
    assert done.returncode == 0, done.stderr
    assert_equal(torch.load(tmp_path / "model_final.pth", weights_only=True), expected)
