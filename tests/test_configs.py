"""Every shipped config merges, builds and trains a step."""

import math
import re

import pytest
import torch
from detectron2.modeling import build_model

from helpers import REPO
from helpers.detectors import make_batch, run_losses
from sl_detectron.model_zoo import get_config, get_config_file
from sl_detectron.modeling import SuperLossTerm

ROOT = REPO / "configs"
# Sweep/ holds grids of configs: tests/sweep/.
CONFIGS = sorted(
    str(p.relative_to(ROOT))
    for p in ROOT.rglob("*.yaml")
    if not p.name.startswith("Base-") and p.parent.name != "Sweep"
)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_step(name):
    cfg = get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = cfg.MODEL.FROZEN_TRUNK.STORE = ""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    terms = [m for m in model.modules() if isinstance(m, SuperLossTerm)]
    assert bool(terms) == ("superloss" in name)
    losses, gradients, _ = run_losses(model, make_batch((1,)))
    assert all(v.isfinite() for v in losses.values())
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("name", [n for n in CONFIGS if "-Detection" in n])
def test_noise_and_lambda_follow_the_paper(name):
    """lambda = 1 on clean, 0.25 on noisy data (supplementary 3.3); a CPU's RetinaNet is tuned."""
    cfg = get_config(name)
    noisy, on_cpu = "noisy" in name, "mobilenet" in name or "efficientnet" in name
    assert cfg.DATASETS.LABEL_NOISE.RATE == (0.4 if noisy else 0.0)
    if "superloss" in name:
        tuned = 0.02 if "retinanet" in name and on_cpu else 0.25
        assert cfg.MODEL.SUPERLOSS.CLS.LAMBDA == (tuned if noisy else 1.0)
    assert cfg.SOLVER.MAX_ITER == (9400 if "mobilenet" in name else 750 if on_cpu else 18000)


def test_unknown_config_lists_the_known():
    with pytest.raises(ValueError, match=r"Toy/rcnn\.yaml.*Toy/faster_rcnn\.yaml"):
        get_config_file("Toy/rcnn.yaml")


CONTROLS = [n for n in CONFIGS if "Controls" in n]


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_differs_in_one_thing(name):
    """From the SuperLoss config of the same detector and noise."""
    folder, _, leaf = name.split("/")
    base, kind = re.fullmatch(
        r"(.*)_(equal_weight|scope_all|box_only|cls_and_box|instance)\.yaml", leaf
    ).groups()
    expected = get_config(f"{folder}/{base}.yaml")
    node = expected.MODEL.SUPERLOSS
    if kind == "equal_weight":
        node.CLS.FIXED_SIGMA = round(math.e, 9)
    elif kind == "scope_all":
        node.CLS.SCOPE = "all"
    elif kind == "instance":
        node.CLS.GRANULARITY = "instance"
    else:
        node.BOX_REG.ENABLED, node.CLS.ENABLED = True, kind == "cls_and_box"
    assert get_config(name) == expected


def test_every_detector_has_every_control():
    assert len(CONTROLS) == 2 * 2 * 5
