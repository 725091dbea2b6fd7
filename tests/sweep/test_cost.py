"""Estimates of time and memory: layers by hand arithmetic, and what scales with what."""

import dataclasses

import pytest
import torch
from torch import nn

from helpers.detectors import small_config
from helpers.grid_cases import run_here
from helpers.method_cases import options
from sl_detectron.sweep.cost import GPUS, OF_TENSOR_CORES, Cost, _counting, cost_of, estimate
from sl_detectron.sweep.grid import Method, Run
from sl_detectron.sweep.plan import PlannedRun


def test_layers_by_hand():
    """A convolution of 3 x 3 from 2 to 4 maps on 5 x 5, in two groups: 100 outputs of 9 each."""
    convolution, linear = nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Linear(100, 7)
    linear.weight.requires_grad_(False)
    with _counting() as counts:
        linear(convolution(torch.zeros(1, 2, 5, 5)).flatten(1))
    assert counts.multiplied == 100 * 9 + 7 * 100
    assert counts.with_backward == 3 * 100 * 9 + 7 * 100
    assert counts.outputs == 100
    convolution(torch.zeros(1, 2, 5, 5))
    assert counts.multiplied == 1600  # nothing outside is counted


def test_hours_and_memory_by_hand():
    cost = Cost(forward=1e9, step=3e9, outputs=2**30, trained=2**27, frozen=2**28)
    cfg = small_config("standard", superloss=False)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 1000, 8
    seconds = 8000 * 3e9 / (495e12 * OF_TENSOR_CORES)
    assert cost.hours(cfg, "H100") == pytest.approx(seconds / 3600)
    # 1 + 8 images of twice 1 GiB + three of 0.5 and one of 1 GiB.
    assert cost.gib(cfg, 1) == pytest.approx(1 + 16 + 1.5 + 1)
    assert cost.gib(cfg, 4) == pytest.approx(1 + 4 + 1.5 + 1)
    cfg.SOLVER.AMP.ENABLED = True
    assert cost.hours(cfg, "H100") == pytest.approx(seconds * 495 / 989 / 3600)
    assert cost.gib(cfg, 1) == pytest.approx(1 + 8 + 1.5 + 1)
    cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS = 2
    assert cost.hours(cfg, "H100") == pytest.approx(2 * seconds * 495 / 989 / 3600)
    hours = [cost.hours(cfg, gpu) for gpu in GPUS]
    assert hours == sorted(hours)


def config(detector, *opts):
    cfg = small_config(detector, superloss=True)
    cfg.merge_from_list(list(opts))
    return cfg


def test_a_faster_rcnn_scales_with_its_image_and_its_rois():
    roi = "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"
    sizes = ["INPUT.MIN_SIZE_TEST", 768, "INPUT.MAX_SIZE_TEST", 4096]
    one, two = (cost_of(config("standard", *sizes, roi, n)) for n in (64, 128))
    # Two linear layers, then classes and boxes: 64 more RoIs of each.
    of_roi = 64 * 7 * 7 * 256 + 256 * 256 + 256 * (6 + 20)
    assert two.forward - one.forward == pytest.approx(2 * 64 * of_roi)
    large = cost_of(config("standard", *sizes[:1], 1536, *sizes[2:], roi, 64))
    rois = 2 * 64 * of_roi
    assert large.forward - rois == pytest.approx(4 * (one.forward - rois), rel=1e-6)
    assert (one.trained, one.frozen) == (two.trained, two.frozen)


def test_a_pair_costs_twice_and_one_trunk_less():
    alone = cost_of(config("standard"))
    pair = cost_of(config("standard", *options("CoTeaching", "standard")))
    shared = cost_of(config("standard", *options("CoTeaching, one trunk", "standard")))
    assert pair.step == pytest.approx(2 * alone.step)
    assert pair.trained == 2 * alone.trained
    assert alone.step < shared.step < 1.5 * alone.step
    teacher = cost_of(config("standard", *options("EMATeacher", "standard")))
    assert teacher.step == pytest.approx(alone.step + alone.forward)
    assert teacher.frozen == alone.frozen + alone.trained


@pytest.mark.parametrize("detector", ["retinanet", "c4", "cascade"])
def test_other_detectors_have_an_estimate(detector):
    cost = cost_of(config(detector))
    assert 0 < cost.forward < cost.step <= 3 * cost.forward
    assert cost.outputs > 0


def test_a_detector_of_other_parts_has_a_reason_in_its_row(tmp_path):
    cfg = config("standard", "MODEL.META_ARCHITECTURE", "ProposalNetwork")
    run = Run(Method("R", "a", "x"), 0.4, 0)
    planned = PlannedRun(run, tmp_path, "x", cfg, "open")
    assert "no estimate: ProposalNetwork of NoneType" in estimate([planned])
    fine = dataclasses.replace(planned, cfg=config("standard"))
    assert "no estimate" not in estimate([fine])


def test_a_dry_run_prints_it_apart_from_the_commands(tmp_path):
    done = run_here("sweep", "--config", "Sweep/toy.yaml", "--output", tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("python tools/train_net.py") for line in done.stdout.splitlines())
    assert "run on one H100" in done.stderr
    assert "Estimates from counts, not measured" in done.stderr
    assert "Faster R-CNN, baseline" in done.stderr
