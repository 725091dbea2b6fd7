"""What docs/extending.md shows: a file of a user's adds to the package, and a config names it."""

import importlib
import math
import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_backbone
from torchvision.models import get_model_weights

from helpers import REPO
from helpers.detectors import build, make_batch, run_losses, small_config
from helpers.label_noise_records import NUM_CLASSES, labels, make_records
from sl_detectron import add_superloss_config
from sl_detectron.label_noise import NOISE_REGISTRY, noisy_dataset_dicts
from sl_detectron.modeling import CLASSIFICATION_LOSS_REGISTRY, TAU_REGISTRY, TRUNK_REGISTRY


@pytest.fixture
def section(tmp_path, monkeypatch):
    """Write the blocks of one section under their names; import the Python file, merge the YAML."""

    def use(title):
        page = (REPO / "docs" / "extending.md").read_text()
        text = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for name, block in re.findall(r"```\w+\n# (\S+)\n(.*?)```", text, flags=re.DOTALL):
            (tmp_path / name).write_text(block.replace('"configs/', f'"{REPO}/configs/'))
        module, config = (next(tmp_path.glob(f"*.{suffix}")) for suffix in ("py", "yaml"))
        assert len(module.read_text().splitlines()) <= 15
        monkeypatch.syspath_prepend(tmp_path)
        importlib.import_module(module.stem)
        cfg = get_cfg()
        add_superloss_config(cfg)
        cfg.merge_from_file(str(config))
        return cfg

    return use


def train_step(cfg):
    """One training step of a small detector: (model, losses)."""
    small = small_config("standard", superloss=True)
    small.MODEL.SUPERLOSS = cfg.MODEL.SUPERLOSS
    model = build(small)
    return model, run_losses(model, make_batch())[0]


def test_a_loss(section):
    cfg = section("A loss")
    name = cfg.MODEL.SUPERLOSS.CLS.LOSS
    try:
        # Far above all differences of losses, lambda leaves the loss alone (Lemma 1).
        cfg.MODEL.SUPERLOSS.CLS.LAMBDA, cfg.MODEL.SUPERLOSS.CLS.TAU = 1e6, "0"
        model, losses = train_step(cfg)
    finally:
        CLASSIFICATION_LOSS_REGISTRY._obj_map.pop(name)
    assert model.roi_heads.box_predictor.classification_loss.__name__ == name
    # Six outcomes, all about as probable at first.
    assert float(losses["loss_cls"]) == pytest.approx(2 - 2 / 6, abs=0.15)


def test_a_tau(section):
    cfg = section("A tau")
    name = cfg.MODEL.SUPERLOSS.CLS.TAU
    try:
        model, losses = train_step(cfg)
    finally:
        TAU_REGISTRY._obj_map.pop(name)
    strategy = model.roi_heads.box_predictor.superloss_cls.superloss.threshold
    assert type(strategy).__name__ == name
    assert losses["loss_cls"].isfinite()
    # A tenth of the way from 1 to the median of six outcomes that are about as probable.
    assert float(strategy.tau) == pytest.approx(1 + 0.1 * (math.log(6) - 1), abs=0.03)
    assert any(key.endswith("threshold.tau") for key in model.state_dict())


def test_a_noise(section):
    cfg = section("A noise")
    name = cfg.DATASETS.LABEL_NOISE.TYPE
    clean = make_records()
    DatasetCatalog.register("extending_noise", lambda: clean)
    MetadataCatalog.get("extending_noise").thing_classes = [f"c{i}" for i in range(NUM_CLASSES)]
    cfg.DATASETS.TRAIN = ("extending_noise",)
    try:
        (noisy,) = noisy_dataset_dicts(cfg).values()
    finally:
        NOISE_REGISTRY._obj_map.pop(name)
        DatasetCatalog.remove("extending_noise")
        MetadataCatalog.remove("extending_noise")
    before, after = ([c for row in labels(rs).values() for c in row] for rs in (clean, noisy))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert abs(len(changed) / len(before) - 0.4) < 0.1
    assert all(new == (old + 1) % NUM_CLASSES for old, new in changed)


def test_a_trunk(section):
    cfg = section("A trunk")
    name = cfg.MODEL.FROZEN_TRUNK.NAME
    assert cfg.MODEL.FROZEN_TRUNK.WEIGHTS in get_model_weights(name).__members__
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = ""  # would be downloaded
    try:
        backbone = build_backbone(cfg)
    finally:
        TRUNK_REGISTRY._obj_map.pop(name)
    trunk = backbone.bottom_up
    trunk._store = None
    features = trunk(torch.zeros(1, 3, 64, 64))
    for stage, shape in trunk.output_shape().items():
        side = 64 // shape.stride
        assert features[stage].shape == (1, shape.channels, side, side)
    assert not any(p.requires_grad for p in trunk.parameters())
