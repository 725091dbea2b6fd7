"""Models at the edges: low precision, nothing to learn from, one class or a thousand."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from helpers.detectors import (
    NUM_CLASSES,
    build,
    make_batch,
    on_resnet_18,
    roi_batch,
    run_losses,
    small_config,
)
from sl_detectron.losses import SuperLoss

DETECTORS = ("standard", "retinanet")
every_width = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


def superloss_config(detector, num_classes=NUM_CLASSES, tau="ExpAvg"):
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    cfg.MODEL.SUPERLOSS.CLS.TAU = tau
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    return cfg


def assert_finite(losses, gradients, model, has_objects=True):
    """And tau, which is nan until a loss was seen: of a batch with objects, it is not."""
    assert all(value.isfinite() for value in losses.values()), losses
    assert all(g.isfinite().all() for g in gradients.values())
    for criterion in (m for m in model.modules() if isinstance(m, SuperLoss)):
        assert criterion.tau.isfinite() or (not has_objects and criterion.tau.isnan())


@pytest.mark.parametrize("detector", DETECTORS)
def test_bfloat16_autocast(detector):
    """tau and the losses are of float32 size and near those of float32."""
    model, batch = build(superloss_config(detector)), make_batch()
    exact, _, _ = run_losses(model, batch)
    model = build(superloss_config(detector))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, gradients, _ = run_losses(model, batch)
    assert_finite(losses, gradients, model)
    for criterion in (m for m in model.modules() if isinstance(m, SuperLoss)):
        assert criterion.tau.dtype in (torch.float32, torch.float64)
    if detector == "retinanet":  # no sampling, so the same anchors
        torch.testing.assert_close(
            {k: v.float() for k, v in losses.items()}, exact, rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("counts", [(0,), (0, 0), (3, 0)])
def test_images_without_objects(detector, counts):
    model = build(superloss_config(detector))
    for _ in range(2):  # the first batch may be the one without
        losses, gradients, _ = run_losses(model, make_batch(counts))
        assert_finite(losses, gradients, model, has_objects=any(counts))
    losses, gradients, _ = run_losses(model, make_batch())
    assert_finite(losses, gradients, model)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("num_classes", [1, 1000])
@pytest.mark.parametrize("tau", ["ExpAvg", "logC"])
def test_one_class_and_a_thousand(detector, num_classes, tau):
    if (detector, tau) == ("retinanet", "logC"):
        pytest.skip("logC is of softmax only")
    cfg = superloss_config(detector, num_classes, tau)
    model, batch = build(cfg), make_batch()
    for sample in batch:
        sample["instances"].gt_classes %= num_classes
        sample["instances"].gt_classes[:1] = num_classes - 1
    losses, gradients, _ = run_losses(model, batch)
    assert_finite(losses, gradients, model)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("size", [1.0, 0.01])
def test_boxes_of_a_pixel(detector, size):
    model, batch = build(superloss_config(detector)), make_batch()
    for sample in batch:
        corners = sample["instances"].gt_boxes.tensor[:, :2]
        sample["instances"].gt_boxes = Boxes(torch.cat([corners, corners + size], dim=1))
    losses, gradients, _ = run_losses(model, batch)
    assert_finite(losses, gradients, model)


def test_a_batch_of_ignored_anchors_only():
    model = build(superloss_config("retinanet"))
    label = model.label_anchors

    def ignore_all(anchors, targets):
        labels, boxes = label(anchors, targets)
        return [torch.full_like(image_labels, -1) for image_labels in labels], boxes

    model.label_anchors = ignore_all
    for _ in range(2):
        losses, gradients, _ = run_losses(model, make_batch())
        assert all(value == 0 for value in losses.values())
        assert_finite(losses, gradients, model, has_objects=False)
        assert all((g == 0).all() for g in gradients.values())
    model.label_anchors = label
    losses, gradients, _ = run_losses(model, make_batch())
    assert_finite(losses, gradients, model)
    assert losses["loss_cls"] != 0


@pytest.mark.parametrize("detector", DETECTORS)
def test_labels_that_are_all_wrong(detector):
    """Steps on labels that no two images agree on: losses stay finite, tau follows them."""
    model = build(superloss_config(detector))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = make_batch()
    criteria = [m for m in model.modules() if isinstance(m, SuperLoss)]
    means = {criterion: [] for criterion in criteria}
    for criterion in criteria:
        criterion.threshold.register_forward_hook(
            lambda _, args, __, c=criterion: means[c].append(float(args[0][args[1]].mean()))
        )
    for step in range(4):
        for sample in batch:
            classes = sample["instances"].gt_classes
            sample["instances"].gt_classes = (classes + step) % NUM_CLASSES
        losses, gradients, _ = run_losses(model, batch)
        assert_finite(losses, gradients, model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for criterion in criteria:
        expected = means[criterion][0]
        for mean in means[criterion]:
            expected = 0.9 * expected + 0.1 * mean
        assert len(means[criterion]) == 4
        assert float(criterion.tau) == pytest.approx(expected, rel=1e-6)
        assert float(criterion.tau) != pytest.approx(means[criterion][0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tau", ["Avg", "ExpAvg", "1.5"])
def test_half_precision_losses(dtype, tau):
    """Losses of a model under autocast, up to the largest that float16 can hold."""
    losses = torch.tensor([0.0, 1e-4, 1.0, 30.0, 6e4], dtype=dtype, requires_grad=True)
    criterion = SuperLoss(float(tau) if tau == "1.5" else tau)
    value, sigma = criterion.with_confidence(losses)
    value.float().sum().backward()
    assert value.isfinite().all()
    assert sigma.isfinite().all()
    assert losses.grad.dtype == dtype
    assert losses.grad.isfinite().all()
    exact = SuperLoss(float(tau) if tau == "1.5" else tau)(losses.detach().double())
    torch.testing.assert_close(value.double(), exact, rtol=2e-2, atol=2e-2)


@every_width
def test_retinanet_with_parameters_of_16_bits(dtype):
    """Not autocast: weights, images and gradients are of 16 bits, tau stays float64."""
    cfg = on_resnet_18(superloss_config("retinanet"))
    exact, model, batch = build(cfg), build(cfg).to(dtype), make_batch()
    for sample in batch:
        sample["image"] = sample["image"].to(dtype)
    losses, gradients, _ = run_losses(model, batch)
    expected, _, _ = run_losses(exact, make_batch())
    assert_finite(losses, gradients, model)
    assert {g.dtype for g in gradients.values()} == {dtype}
    for key, value in losses.items():
        torch.testing.assert_close(value.float(), expected[key], rtol=0.05, atol=0.05)
    for ours, theirs in zip(model.modules(), exact.modules()):
        if isinstance(ours, SuperLoss):
            torch.testing.assert_close(ours.tau, theirs.tau, rtol=0.02, atol=0)


@every_width
@pytest.mark.parametrize("granularity", ["sample", "instance"])
@pytest.mark.parametrize("tau", ["logC", "ExpAvg"])
def test_box_head_with_parameters_of_16_bits(tau, granularity, dtype):
    """Its losses alone: in 16 bits torchvision's nms and ROIAlign do not run on a CPU."""
    cfg = superloss_config("standard", tau=tau)
    cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = granularity
    (scores, deltas), proposals = roi_batch(64, 20)
    proposals[0].gt_annotation_ids = torch.arange(64) % 7
    results = {}
    for width in (torch.float64, dtype):
        predictor = build(cfg).roi_heads.box_predictor.to(width)
        leaves = [x.detach().to(dtype).to(width).requires_grad_() for x in (scores, deltas)]
        with EventStorage():
            losses = predictor.losses(leaves, proposals)
        sum(v.float() for v in losses.values()).backward()
        assert all(leaf.grad.dtype == width for leaf in leaves)
        results[width] = {**losses, "scores": leaves[0].grad, "deltas": leaves[1].grad}
        assert predictor.superloss_cls.superloss.tau.dtype == torch.float64
    for key, value in results[dtype].items():
        expected = results[torch.float64][key].float()
        torch.testing.assert_close(value.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("detector", DETECTORS)
def test_channels_last(detector):
    """As in the contiguous format, but for the order in which convolutions add."""
    expected, expected_gradients, _ = run_losses(build(superloss_config(detector)), make_batch())
    model = build(superloss_config(detector)).to(memory_format=torch.channels_last)
    losses, gradients, _ = run_losses(model, make_batch())
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)
    for name, gradient in gradients.items():
        assert gradient.shape == expected_gradients[name].shape
    assert_finite(losses, gradients, model)
