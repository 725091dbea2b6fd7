"""What docs/extending.md shows: a file of a user's adds to the package, and a config names it."""

import argparse
import importlib
import json
import math
import re
import sys

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_backbone
from torchvision.models import get_model_weights

from helpers import REPO
from helpers.detectors import build, make_batch, run_losses, small_config
from helpers.label_noise_records import NUM_CLASSES, labels, make_records
from helpers.trainings import train_net
from sl_detectron import add_superloss_config
from sl_detectron.cli import run_tool
from sl_detectron.engine.setup import merge_cfg
from sl_detectron.label_noise import NOISE_REGISTRY, noisy_dataset_dicts
from sl_detectron.modeling import CLASSIFICATION_LOSS_REGISTRY, TAU_REGISTRY, TRUNK_REGISTRY
from sl_detectron.sweep import run as sweep_run
from sl_detectron.sweep.grid import Method, Run
from sl_detectron.sweep.plan import PlannedRun


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


MODULE = """
from sl_detectron.modeling import CLASSIFICATION_LOSS_REGISTRY
from my_parts import constant


@CLASSIFICATION_LOSS_REGISTRY.register()
def constant_loss(logits, labels):
    return 0 * logits.sum(dim=1) + constant
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A file of a project, which imports its neighbour, and a config that takes its name."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my_module.py").write_text(MODULE)
    (folder / "my_parts.py").write_text("constant = 7.0")
    base = REPO / "configs" / "Toy" / "faster_rcnn.yaml"
    heads = "ROI_HEADS: {NAME: SuperLossStandardROIHeads}"
    loss = "SUPERLOSS: {CLS: {ENABLED: False, LOSS: constant_loss}}"
    (folder / "my.yaml").write_text(f'_BASE_: "{base}"\nMODEL: {{{heads}, {loss}}}\n')
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield folder / "my_module.py"
    for name in ("my_module", "my_parts"):
        sys.modules.pop(name, None)
    CLASSIFICATION_LOSS_REGISTRY._obj_map.pop("constant_loss", None)


def test_a_command_imports_a_module_on_all_ranks(module, toy_env, tmp_path):
    opts = ["SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 2, "DATASETS.TEST", "()"]
    config = ["--config-file", module.with_name("my.yaml"), "OUTPUT_DIR", tmp_path / "out"]
    done = train_net(toy_env, "--import", module, "--num-gpus", 2, *config, *opts)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "out" / "metrics.json").read_text().splitlines()[:1]
    assert json.loads(line)["loss_cls"] == 7


@pytest.mark.parametrize("by", ["file", "name"])
def test_a_run_of_a_sweep_imports_a_module(module, monkeypatch, by):
    monkeypatch.setattr(sweep_run, "_end_with_parent", lambda: None)
    names = []
    job = lambda _, cfg, args: names.append((cfg.MODEL.SUPERLOSS.CLS.LOSS, args.imports))  # noqa: E731
    monkeypatch.setattr(sweep_run, "launch_job", job)
    monkeypatch.setattr(sweep_run, "setup_cfg", merge_cfg)
    monkeypatch.chdir(module.parent)
    name = str(module) if by == "file" else "my_module"
    run = Run(Method("Faster R-CNN", "mine", str(module.with_name("my.yaml"))), 0.0, 1)
    planned = PlannedRun(run, module.parent / "out", str(module.with_name("my.yaml")), None, "open")
    words = planned.job("all", 1, 1, [name]).args
    sweep_run.main([*words])
    assert names == [("constant_loss", [name])]
    assert "constant_loss" in CLASSIFICATION_LOSS_REGISTRY


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, r"--import .*none\.py: there is no such file"),
        ("no_such_module", None, "--import no_such_module: ModuleNotFoundError: No module"),
        ("bad.py", "1 / 0", r"--import .*bad\.py: ZeroDivisionError: division by zero"),
        ("bad2.py", "def", r"--import .*bad2\.py: SyntaxError"),
        ("json.py", "", r"--import .*json\.py: Python has another module 'json', .*; rename yours"),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch, capsys, name, text, message):
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text is not None:
        (tmp_path / name).write_text(text)
    path = str(tmp_path / name) if name.endswith(".py") else name
    args = argparse.Namespace(imports=[path], debug=False)
    assert run_tool(lambda _: pytest.fail("the tool was run"), args) == 2
    assert re.search(message, capsys.readouterr().err)


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
