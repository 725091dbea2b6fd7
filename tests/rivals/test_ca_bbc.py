"""CA-BBC: labels by hand arithmetic, boxes by their gradient, and what it refuses."""

import pytest
import torch
from torch import nn

from helpers.detectors import build, run_losses, small_config
from helpers.method_cases import NODE, detector_with, numbered_batch, options
from sl_detectron.modeling import SuperLossRROIHeads
from sl_detectron.rivals import build_method, check_method
from sl_detectron.rivals.ca_bbc import CABBC, _fits, _inside, soft_labels

ALPHA = NODE + "CA_BBC.ALPHA"


def generator():
    return torch.Generator().manual_seed(0)


def test_soft_labels_by_hand():
    """Means (1 + .2 + .1) / 3, (.6 + .7) / 3: equal; at T = 0.5 their squares count."""
    given = torch.tensor([0])
    first, second = torch.tensor([[0.2, 0.6, 0.2]]), torch.tensor([[0.1, 0.7, 0.2]])
    torch.testing.assert_close(soft_labels(given, first, second, 0.4, 2)[0], torch.full((2,), 0.5))
    labels = soft_labels(given, first, first, 0.5, 2)[0]
    torch.testing.assert_close(labels, torch.tensor([1.4**2, 1.2**2]) / (1.4**2 + 1.2**2))
    assert soft_labels(given, first, first, 1e-3, 2).tolist() == [[1.0, 0.0]]


def boxes_after(*opts):
    """The boxes that the heads of a step are trained on, and the method."""
    model, method = detector_with("CABBC", "standard", *opts)
    run_losses(model, numbered_batch())
    return torch.cat([t.gt_boxes.tensor for t in method._targets]), method


def test_boxes_move_against_the_gradient_and_stay_without_alpha():
    given = torch.cat([image["instances"].gt_boxes.tensor for image in numbered_batch()])
    assert torch.equal(boxes_after(ALPHA, 0.0)[0], given)
    refinement = NODE + "CA_BBC.REFINEMENT"
    once = boxes_after(ALPHA, 100.0, refinement, 0.0)[0] - given
    twice = boxes_after(ALPHA, 200.0, refinement, 0.0)[0] - given
    assert once.abs().max() > 1e-3
    torch.testing.assert_close(twice, 2 * once, rtol=1e-3, atol=1e-4)
    refined, method = boxes_after(ALPHA, 100.0)
    assert not torch.equal(refined - given, once)
    assert method.table.shape == (4, 5)
    torch.testing.assert_close(method.table.sum(dim=1), torch.ones(4))


def test_a_step_lowers_what_the_heads_are_unsure_of():
    """|p1 - p2|^2 + lambda (p1_bg + p2_bg) of the boxes before and after a small step."""
    from sl_detectron.rivals import ca_bbc

    model, method = detector_with("CABBC", "standard", ALPHA, 20.0, NODE + "CA_BBC.REFINEMENT", 0.0)
    seen = []

    def keep(_, args):
        before = [image["instances"].gt_boxes.tensor for image in numbered_batch()]
        for boxes in (before, [t.gt_boxes.tensor for t in method._targets]):
            heads = model.roi_heads, model.second.roi_heads
            p1, p2 = (ca_bbc._predict(h, args[1], boxes)[0].softmax(dim=1) for h in heads)
            unsure = (p1 - p2).square().sum() + 0.1 * (p1 + p2)[:, -1].sum()
            seen.append(unsure.item())

    model.roi_heads.register_forward_pre_hook(keep)
    run_losses(model, numbered_batch())
    assert seen[1] < seen[0]


def test_gradients_of_boxes_are_not_of_16_bits():
    model, _ = detector_with("CABBC", "standard", ALPHA, 20.0)
    seen = []
    model.roi_heads.box_head.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        run_losses(model, numbered_batch())
    # The prediction, the gradient, the deltas at the new place, and the training.
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]


def test_boxes_stay_boxes():
    boxes = torch.tensor(
        [[50.0, 9.0, 40.0, 12.0], [-3.0, -3.0, 200.0, 0.2], [99.9, 0.0, 120.0, 9.0]]
    )
    expected = [[50, 9, 51, 12], [0, 0, 100, 1], [99, 0, 100, 9]]
    assert _inside(boxes, (80, 100)).tolist() == expected


def test_what_it_needs():
    cfg = small_config("standard", superloss=True)
    cfg.merge_from_list(options("CABBC", "standard", NODE + "SHARED_TRUNK", False))
    with pytest.raises(ValueError, match="SHARED_TRUNK must be True for CABBC"):
        check_method(cfg)
    cfg.merge_from_list([NODE + "SHARED_TRUNK", True, NODE + "CA_BBC.TEMPERATURE", 0.0])
    with pytest.raises(ValueError, match=r"CA_BBC\.TEMPERATURE must be > 0; got 0\.0"):
        check_method(cfg)
    cfg.merge_from_list([NODE + "CA_BBC.TEMPERATURE", 0.4, ALPHA, -1.0])
    with pytest.raises(ValueError, match=r"CA_BBC\.ALPHA must be 0\.0 or above; got -1\.0"):
        check_method(cfg)
    with pytest.raises(ValueError, match=r"one box head each.*got Linear"):
        CABBC().attach(nn.Linear(1, 1))
    cascade = small_config("cascade", superloss=True)
    cascade.merge_from_list(options("CABBC", "cascade"))
    with pytest.raises(ValueError, match="SuperLossCascadeROIHeads"):
        build_method(cascade, build(cascade), 1)
    pool = small_config("standard", superloss=True)
    pool.merge_from_list(options("CABBC", "standard", ALPHA, 20.0))
    pool.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    with pytest.raises(ValueError, match=r"CA_BBC\.ALPHA above 0.*POOLER_TYPE.*are RoIPool"):
        build_method(pool, build(pool), 1)
    # As a LazyConfig may have it: the second head would score features of another trunk.
    apart, _ = detector_with("CoTeaching")
    with pytest.raises(ValueError, match="SHARED_TRUNK True, or shared_trunk"):
        CABBC().attach(apart)
    assert not _fits(SuperLossRROIHeads.__new__(SuperLossRROIHeads))
    sigmoid = small_config("standard_sigmoid", superloss=True)
    sigmoid.merge_from_list(options("CABBC", "standard"))
    with pytest.raises(ValueError, match=r"without MODEL\.ROI_BOX_HEAD\.USE_SIGMOID_CE"):
        build_method(sigmoid, build(sigmoid), 1)
    retinanet = small_config("retinanet", superloss=True)
    retinanet.merge_from_list([NODE + "NAME", "CABBC"])
    with pytest.raises(ValueError, match=r"\('PairedRCNN',\); got the RetinaNet"):
        check_method(retinanet)
