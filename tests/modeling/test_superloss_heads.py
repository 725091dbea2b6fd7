"""What the SuperLoss does inside the detectors: per instance, in scope, logged, safe when empty."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling.box_regression import (
    Box2BoxTransform,
    Box2BoxTransformRotated,
    _dense_box_regression_loss,
)
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, RotatedBoxes
from detectron2.utils.events import EventStorage

from helpers.detectors import (
    DETECTORS,
    NUM_CLASSES,
    build,
    make_batch,
    random_boxes,
    require_sigmoid_classification,
    roi_batch,
    run_losses,
    small_config,
)
from sl_detectron.losses import SuperLoss, confidence, superloss
from sl_detectron.modeling import SuperLossTerm, to_superloss_output_layers
from sl_detectron.modeling.box_regression import box_regression_losses
from sl_detectron.modeling.class_targets import ClassTargets, attach_class_targets
from sl_detectron.modeling.fast_rcnn import SuperLossFastRCNNOutputLayers


def superloss_config(detector, *opts):
    cfg = small_config(detector, superloss=True)
    cfg.merge_from_list(["MODEL.SUPERLOSS.BOX_REG.ENABLED", True, *opts])
    return cfg


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_box_losses_sum_to_detectron2s(loss_type):
    generator = torch.Generator().manual_seed(0)
    anchors, gt_boxes = random_boxes(40, generator), random_boxes(40, generator)
    deltas = torch.randn(40, 4, generator=generator) * 0.3
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    expected = _dense_box_regression_loss(
        [Boxes(anchors)], transform, [deltas[None]], [gt_boxes], ..., loss_type, 0.5
    )
    losses = box_regression_losses(anchors, gt_boxes, deltas, transform, loss_type, 0.5)
    assert losses.shape == (40,)
    torch.testing.assert_close(losses.sum(), expected)


def test_unknown_box_loss_is_named():
    with pytest.raises(ValueError, match=r"BBOX_REG_LOSS_TYPE.*ciou.*'l7'"):
        box_regression_losses(*[torch.zeros(1, 4)] * 3, Box2BoxTransform((1.0,) * 4), "l7")


def output_layers(cls=None, box_reg=None, **kwargs):
    return SuperLossFastRCNNOutputLayers(
        8,
        superloss_cls=cls,
        superloss_box_reg=box_reg,
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=NUM_CLASSES,
        **kwargs,
    )


@pytest.mark.parametrize("scope", ["all", "foreground"])
def test_roi_losses_against_a_loop(scope):
    """One softmax loss for every RoI, one box loss for every foreground RoI, both divided by R."""
    tau, lam, num_rois, num_foreground = 1.5, 0.25, 12, 5
    (scores, deltas), proposals = roi_batch(num_rois, num_foreground)
    layers = output_layers(
        SuperLossTerm("cls", SuperLoss(tau, lam), scope),
        SuperLossTerm("box_reg", SuperLoss(tau, lam), scope),
        loss_weight={"loss_cls": 2.0, "loss_box_reg": 3.0},
    )
    with EventStorage():
        losses = layers.losses((scores, deltas), proposals)
    expected_cls = expected_box = 0.0
    for i in range(num_rois):
        label = int(proposals[0].gt_classes[i])
        loss = -F.log_softmax(scores[i], dim=0)[label]
        in_scope = scope == "all" or i < num_foreground
        expected_cls += superloss(loss, tau, lam) if in_scope else loss
        if i < num_foreground:
            box_loss = box_regression_losses(
                proposals[0].proposal_boxes.tensor[i : i + 1],
                proposals[0].gt_boxes.tensor[i : i + 1],
                deltas[i : i + 1, 4 * label : 4 * label + 4],
                layers.box2box_transform,
            )
            expected_box += superloss(box_loss, tau, lam).sum()
    torch.testing.assert_close(losses["loss_cls"], 2 * expected_cls / num_rois)
    torch.testing.assert_close(losses["loss_box_reg"], 3 * expected_box / num_rois)


def pooled(losses, ids, tau, lam):
    """The sum over annotations of size * SL(mean), by a loop."""
    groups = [losses[[i for i, other in enumerate(ids) if other == k]] for k in sorted({*ids})]
    return sum(len(group) * superloss(group.mean(), tau, lam) for group in groups)


def test_box_losses_of_an_annotation_are_pooled():
    tau, lam, ids = 1.5, 0.25, [7, 8, 7, 9, 8]
    predictions, proposals = roi_batch(num_rois=12, num_foreground=5)
    proposals[0].gt_annotation_ids = torch.tensor([*ids, *[9] * 7])
    term = SuperLossTerm("box_reg", SuperLoss(tau, lam), granularity="instance")
    layers = output_layers(box_reg=term)
    with EventStorage():
        loss = layers.losses(predictions, proposals)["loss_box_reg"]
    boxes = proposals[0].proposal_boxes.tensor, proposals[0].gt_boxes.tensor
    losses = layers.foreground_box_losses(*boxes, predictions[1], proposals[0].gt_classes)
    torch.testing.assert_close(loss, pooled(losses, ids, tau, lam) / 12)


def test_a_loss_that_asks_for_ids_gets_those_of_its_rois():
    predictions, proposals = roi_batch(num_rois=6, num_foreground=4)
    proposals[0].gt_annotation_ids = torch.tensor([7, 8, 5, 9, 8, 8])
    seen = []

    def by_annotation(logits, labels, ids):
        seen.append((labels, ids))
        return F.cross_entropy(logits, labels, reduction="none") * ids

    by_annotation.needs_annotation_ids = True
    layers = output_layers(classification_loss=by_annotation)
    with EventStorage():
        loss = layers.losses(predictions, proposals)["loss_cls"]
    ((labels, ids),) = seen
    assert ids.tolist() == [7, 8, 5, 9, -1, -1]  # background has none
    assert torch.equal(labels, proposals[0].gt_classes)
    plain = F.cross_entropy(predictions[0], labels, reduction="none")
    torch.testing.assert_close(loss, (plain * ids).sum() / 6)


def test_ignored_rois_have_no_box_loss():
    (_, deltas), (proposals,) = roi_batch(num_rois=12, num_foreground=5)
    proposals.gt_classes[1] = -1
    layers = output_layers()
    boxes = proposals.proposal_boxes.tensor, proposals.gt_boxes.tensor
    losses = layers.foreground_box_losses(*boxes, deltas, proposals.gt_classes)
    assert losses.shape == (4,)
    expected = layers.box_reg_loss(*boxes, deltas, proposals.gt_classes)
    torch.testing.assert_close(losses.sum() / 12, expected)


def test_retinanet_pools_the_box_losses_of_an_annotation():
    tau, lam, ids = 1.5, 0.25, [4, 5, 4, 6]
    opts = ["MODEL.SUPERLOSS.BOX_REG.TAU", f"'{tau}'", "MODEL.SUPERLOSS.BOX_REG.LAMBDA", lam]
    opts += ["MODEL.SUPERLOSS.BOX_REG.GRANULARITY", "instance"]
    model = build(superloss_config("retinanet", *opts))
    generator = torch.Generator().manual_seed(0)
    boxes, gt_boxes = random_boxes(7, generator), random_boxes(7, generator)
    labels = torch.tensor([0, NUM_CLASSES, 1, -1, 2, NUM_CLASSES, 0])
    foreground = (labels >= 0) & (labels < NUM_CLASSES)
    deltas = torch.randn(1, 7, 4, generator=generator)
    losses = model.foreground_box_losses(boxes, gt_boxes[None], deltas, foreground[None])
    all_ids = torch.full((7,), -1)
    all_ids[foreground] = torch.tensor(ids)
    model._annotation_ids = [all_ids]
    arguments = [Boxes(boxes)], [torch.zeros(1, 7, NUM_CLASSES)], [labels], [deltas], [gt_boxes]
    with EventStorage():
        loss = model.losses(*arguments)["loss_box_reg"]
    torch.testing.assert_close(loss, pooled(losses, ids, tau, lam) / model.loss_normalizer)
    # The ids are those of this batch alone.
    with EventStorage(), pytest.raises(ValueError, match="needs the annotation"):
        model.losses(*arguments)


def test_sigmoid_classification_is_one_sample_a_roi():
    require_sigmoid_classification(get_cfg())
    (scores, deltas), proposals = roi_batch()
    layers = output_layers(SuperLossTerm("cls", SuperLoss(0.5, 1e6), "all"), use_sigmoid_ce=True)
    stock = output_layers(use_sigmoid_ce=True)
    with EventStorage():
        ours = layers.losses((scores, deltas), proposals)["loss_cls"]
        expected = stock.losses((scores, deltas), proposals)["loss_cls"]
    torch.testing.assert_close(ours, expected - 0.5, rtol=1e-4, atol=1e-5)


def test_federated_loss_draws_classes_once():
    require_sigmoid_classification(get_cfg())
    frequencies = torch.ones(NUM_CLASSES)
    kwargs = {
        "use_sigmoid_ce": True,
        "use_fed_loss": True,
        "fed_loss_num_classes": 4,
        "get_fed_loss_cls_weights": lambda: frequencies,
    }
    (scores, deltas), proposals = roi_batch(num_foreground=2)
    classes = proposals[0].gt_classes
    foreground = classes < NUM_CLASSES
    proposals[0].gt_annotation_ids = torch.where(foreground, torch.arange(len(classes)), -1)
    corrected = output_layers(**kwargs)  # without the SuperLoss, as the last round of a correction
    attach_class_targets(corrected, ClassTargets(classes))
    values, states = [], []
    for layers in (
        corrected,
        output_layers(SuperLossTerm("cls", SuperLoss(0.0, 1e6), "all"), **kwargs),
        output_layers(**kwargs),
    ):
        torch.manual_seed(5)
        with EventStorage():
            values.append(layers.losses((scores, deltas), proposals)["loss_cls"])
        states.append(torch.get_rng_state())
    torch.testing.assert_close(values[0], values[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values[1], values[2], rtol=1e-4, atol=1e-5)
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[2])


def test_class_swap_keeps_the_module():
    stock = FastRCNNOutputLayers(
        8, box2box_transform=Box2BoxTransform((1.0,) * 4), num_classes=NUM_CLASSES
    )
    state = stock.state_dict()
    term = SuperLossTerm("cls", SuperLoss(1.0, 1.0))
    swapped = to_superloss_output_layers(stock, term, None)
    assert swapped is stock
    assert type(swapped) is SuperLossFastRCNNOutputLayers
    assert list(swapped.state_dict()) == list(state)
    assert type(to_superloss_output_layers(swapped, term, None)) is SuperLossFastRCNNOutputLayers
    with pytest.raises(TypeError, match=r"FastRCNNOutputLayers.*Linear"):
        to_superloss_output_layers(torch.nn.Linear(1, 1), term, None)


def test_rotated_boxes():
    generator = torch.Generator().manual_seed(0)
    _, proposals = roi_batch(num_rois=6, num_foreground=4)
    angles = torch.rand(6, 1, generator=generator) * 90
    for name in ("proposal_boxes", "gt_boxes"):
        boxes = torch.cat([random_boxes(6, generator), angles], dim=1)
        proposals[0].set(name, RotatedBoxes(boxes))
    predictions = torch.randn(6, NUM_CLASSES + 1), torch.randn(6, NUM_CLASSES * 5)
    transform = Box2BoxTransformRotated((1.0,) * 5)
    kwargs = {"box2box_transform": transform, "num_classes": NUM_CLASSES}
    term = SuperLossTerm("box_reg", SuperLoss(0.0, 1e6))
    ours = SuperLossFastRCNNOutputLayers(8, superloss_box_reg=term, **kwargs)
    stock = FastRCNNOutputLayers(8, **kwargs)
    with EventStorage():
        torch.testing.assert_close(
            ours.losses(predictions, proposals)["loss_box_reg"],
            stock.losses(predictions, proposals)["loss_box_reg"],
            rtol=1e-4,
            atol=1e-5,
        )


def test_rotated_heads():
    """A detector of rotated boxes takes the terms; it runs where detectron2's ops are compiled."""
    cfg = superloss_config("standard")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RRPN"
    cfg.MODEL.RPN.HEAD_NAME = "StandardRPNHead"
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0,) * 5
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.ANGLES = [[0, 45]]
    cfg.MODEL.ROI_HEADS.NAME = "SuperLossRROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignRotated"
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0, 1.0)
    model = build(cfg)
    assert isinstance(model.roi_heads.box_predictor.superloss_cls, SuperLossTerm)
    if not hasattr(torch.ops.detectron2, "box_iou_rotated"):
        pytest.skip("detectron2's compiled ops do not load: rotated boxes cannot be matched")
    batch = make_batch()
    for image in batch:
        instances = image["instances"]
        centers, sizes = instances.gt_boxes.get_centers(), instances.gt_boxes.tensor
        boxes = torch.cat([centers, sizes[:, 2:] - sizes[:, :2], torch.zeros(len(sizes), 1)], 1)
        instances.gt_boxes = RotatedBoxes(boxes)
        instances.remove("gt_masks")
    losses, gradients, _ = run_losses(model, batch)
    assert all(v.isfinite() for v in losses.values())
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("objects", [(0, 2), (0, 0)])
@pytest.mark.parametrize(
    ("detector", "tau"),
    [*((d, "ExpAvg") for d in DETECTORS), ("standard", "Avg"), ("standard", "'1.0'")],
)
def test_images_without_objects(detector, tau, objects):
    model = build(
        superloss_config(
            detector, "MODEL.SUPERLOSS.CLS.TAU", tau, "MODEL.SUPERLOSS.BOX_REG.TAU", tau
        )
    )
    for _ in range(2):
        losses, gradients, _ = run_losses(model, make_batch(objects))
        assert all(v.isfinite() for v in losses.values())
        assert all(g.isfinite().all() for g in gradients.values())
    # Data parallel training needs a gradient for every parameter on every rank.
    missing = {n for n, p in model.named_parameters() if p.requires_grad} - set(gradients)
    assert not missing


@pytest.mark.parametrize("detector", ["standard", "cascade", "retinanet"])
def test_tau_moves_once_a_step(detector):
    model = build(superloss_config(detector))
    terms = [m for m in model.modules() if isinstance(m, SuperLossTerm)]
    assert len(terms) == {"standard": 2, "cascade": 6, "retinanet": 2}[detector]
    updates = []
    for term in terms:
        threshold = term.superloss.threshold
        threshold.register_forward_hook(lambda *_, t=term: updates.append(t))
    run_losses(model, make_batch())
    assert sorted(map(id, updates)) == sorted(map(id, terms))
    before = [t.superloss.tau.clone() for t in terms]
    assert all(t.isfinite() for t in before)
    with torch.no_grad(), EventStorage():
        model(make_batch())  # a validation loss, or statistics for batch norm
        model.eval()(make_batch())
    assert all(torch.equal(a, t.superloss.tau) for a, t in zip(before, terms))


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_logged_once_a_period(detector):
    model = build(superloss_config(detector))
    _, _, storage = run_losses(model, make_batch(), start_iter=0)
    assert not [k for k in storage.latest() if k.startswith("superloss_")]
    losses, _, storage = run_losses(model, make_batch(seed=1), start_iter=19)
    logged = {k: v for k, (v, _) in storage.latest().items() if k.startswith("superloss_cls/")}
    assert set(logged) == {
        f"superloss_cls/{k}"
        for k in ("raw_loss", "superloss", "tau", "sigma_foreground", "sigma_background")
    } | {"superloss_cls/capped_share"}
    assert logged["superloss_cls/superloss"] == pytest.approx(float(losses["loss_cls"]), rel=1e-5)
    assert logged["superloss_cls/sigma_background"] == 1.0  # out of scope: plain loss
    assert 0 < logged["superloss_cls/sigma_foreground"] <= math.e + 1e-5
    # The batch meets the tau that the step before left, not the one it makes itself.
    tau = model.roi_heads.box_predictor if detector == "standard" else model
    assert logged["superloss_cls/tau"] != float(tau.superloss_cls.superloss.tau)


class RisingTau(torch.nn.Module):
    """A tau that learns in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("tau", torch.tensor(0.5))

    def forward(self, losses, mask=None):
        tau = self.tau.clone()
        self.tau += 1
        return tau


@pytest.mark.parametrize("scope", ["foreground", "all"])
def test_scalars_by_hand(scope):
    """Of three samples the first is at the cap, below tau - 2 * lambda / e."""
    term = SuperLossTerm("cls", SuperLoss(RisingTau(), 0.25), scope)
    losses = torch.tensor([0.1, 2.0, 9.0], requires_grad=True)
    with EventStorage(19) as storage:
        value = term(losses, torch.tensor([True, True, False]), 7)
    logged = {k.split("/")[1]: v for k, (v, _) in storage.latest().items()}
    sigma = confidence(losses, 0.5, 0.25)
    background = float(sigma[2]) if scope == "all" else 1.0
    expected = {
        "tau": 0.5,
        "superloss": float(value),
        "raw_loss": 11.1 / 7,
        "sigma_foreground": float(sigma[:2].mean()),
        "sigma_background": background,
        "capped_share": 1 / 3 if scope == "all" else 1 / 2,
    }
    assert logged == pytest.approx(expected, rel=1e-5)


def test_retinanet_class_granularity_sums_to_stock_when_flat():
    opts = ["MODEL.SUPERLOSS.CLS.GRANULARITY", "class", "MODEL.SUPERLOSS.CLS.TAU", "'0'"]
    opts += ["MODEL.SUPERLOSS.CLS.LAMBDA", 1e6, "MODEL.SUPERLOSS.CLS.SCOPE", "all"]
    ours, _, _ = run_losses(build(superloss_config("retinanet", *opts)), make_batch())
    stock, _, _ = run_losses(build(small_config("retinanet", superloss=False)), make_batch())
    torch.testing.assert_close(ours["loss_cls"], stock["loss_cls"], rtol=2e-5, atol=1e-6)


def test_retinanet_ignored_anchors_only():
    model = build(superloss_config("retinanet"))
    logits = [torch.randn(1, 6, NUM_CLASSES, requires_grad=True)]
    deltas = [torch.randn(1, 6, 4, requires_grad=True)]
    boxes = random_boxes(6, torch.Generator().manual_seed(0))
    with EventStorage():
        losses = model.losses(
            [Boxes(boxes)], logits, [torch.full((6,), -1)], deltas, [boxes.clone()]
        )
    sum(losses.values()).backward()
    assert all(v == 0 for v in losses.values())
    assert not logits[0].grad.any()
    assert not deltas[0].grad.any()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("CLS.TAU", "Median"), r"MODEL\.SUPERLOSS\.CLS\.TAU.*logC.*ExpAvg.*'Median'"),
        (("CLS.TAU", "'nan'"), r"MODEL\.SUPERLOSS\.CLS\.TAU.*nan"),
        (("CLS.LAMBDA", 0.0), r"MODEL\.SUPERLOSS\.CLS\.LAMBDA.*above 0; got 0\.0"),
        (("BOX_REG.LAMBDA", -1.0), r"MODEL\.SUPERLOSS\.BOX_REG\.LAMBDA.*-1\.0"),
        (("BOX_REG.TAU", "logC"), r"MODEL\.SUPERLOSS\.BOX_REG\.TAU.*softmax.*'logC'"),
        (("CLS.SCOPE", "most"), r"MODEL\.SUPERLOSS\.CLS\.SCOPE.*foreground.*all.*'most'"),
        (("CLS.NUM_OUTCOMES", "K+2"), r"MODEL\.SUPERLOSS\.CLS\.NUM_OUTCOMES.*K\+1.*K\+2"),
        (("CLS.GRANULARITY", "box"), r"MODEL\.SUPERLOSS\.CLS\.GRANULARITY.*sample.*'box'"),
        (("BOX_REG.GRANULARITY", "box"), r"MODEL\.SUPERLOSS\.BOX_REG\.GRANULARITY.*sample.*'box'"),
        (("CLS.FIXED_SIGMA", -1.0), r"MODEL\.SUPERLOSS\.CLS\.FIXED_SIGMA.*0\.0 for off.*-1\.0"),
        (("WARMUP_ITERS", -1), r"MODEL\.SUPERLOSS\.WARMUP_ITERS.*0 or above; got -1"),
        (("MOMENTUM", 1.0), r"MODEL\.SUPERLOSS\.MOMENTUM.*\[0, 1\).*1\.0"),
    ],
)
def test_bad_values_stop_the_build(opts, message):
    key, value = opts
    cfg = superloss_config("standard", f"MODEL.SUPERLOSS.{key}", value)
    with pytest.raises(ValueError, match=message):
        build(cfg)
    # Also where the term is off: what is written down should mean something.
    cfg.MODEL.SUPERLOSS.CLS.ENABLED = cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = False
    with pytest.raises(ValueError, match=message):
        build(cfg)


@pytest.mark.parametrize(
    ("detector", "opts", "message"),
    [
        ("standard_sigmoid", ("CLS.TAU", "logC"), r"CLS\.TAU.*softmax classification only"),
        ("retinanet", ("CLS.TAU", "logC"), r"CLS\.TAU.*softmax classification only"),
        ("standard", ("CLS.GRANULARITY", "class"), r"CLS\.GRANULARITY.*sample.*'class'"),
    ],
)
def test_a_term_that_does_not_fit_the_detector(detector, opts, message):
    """Refused; a term that is off touches nothing, so it may be one of another detector."""
    cfg = superloss_config(detector, f"MODEL.SUPERLOSS.{opts[0]}", opts[1])
    with pytest.raises(ValueError, match=rf"MODEL\.SUPERLOSS\.{message}"):
        build(cfg)
    cfg.MODEL.SUPERLOSS.CLS.ENABLED = False
    for names in (["box_reg"], []):
        cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = bool(names)
        terms = [m for m in build(cfg).modules() if isinstance(m, SuperLossTerm)]
        assert [term.name for term in terms] == names


@pytest.mark.parametrize(("num_outcomes", "count"), [("K+1", NUM_CLASSES + 1), ("K", NUM_CLASSES)])
def test_logc_counts_outcomes(num_outcomes, count):
    model = build(
        superloss_config(
            "standard",
            *("MODEL.SUPERLOSS.CLS.TAU", "logC", "MODEL.SUPERLOSS.CLS.NUM_OUTCOMES", num_outcomes),
        )
    )
    tau = model.roi_heads.box_predictor.superloss_cls.superloss.tau
    assert float(tau) == pytest.approx(math.log(count))


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_config_without_our_keys_is_explained(detector):
    cfg = superloss_config(detector)
    del cfg.MODEL["SUPERLOSS"]
    with pytest.raises(KeyError, match="add_superloss_config"):
        build(cfg)
