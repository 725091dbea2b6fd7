"""NOTE-RCNN by hand arithmetic: masks, box weights, the heads of the ensemble, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import nn

from helpers.detectors import NUM_CLASSES, build, run_losses, small_config
from helpers.method_cases import NODE, detector_with, numbered_batch, options, plain_detector
from sl_detectron.config import IS_SEED
from sl_detectron.rivals import check_method
from sl_detectron.rivals.note_rcnn import NoteRCNN

NOTE = NODE + "NOTE_RCNN."
# RoIs of a seed (class 0, background), and of a mined image (class 1, background).
LABELS = torch.tensor([0, 2, 1, 2])
IDS = torch.tensor([4, -1, 6, -1])
LOSSES = torch.tensor([1.0, 2.0, 3.0, 4.0])


def seen(method, is_seed=(True, False)):
    """The method after it saw two RoIs of each of two images."""
    proposals = [Instances((9, 9), gt_classes=part) for part in LABELS.split(2)]
    method._is_seed = list(is_seed)
    method.see(proposals)
    return method


@pytest.mark.parametrize(
    ("background", "is_seed", "weights"),
    [
        (0.0, (True, False), [1, 1, 1, 0]),
        (0.25, (True, False), [1, 1, 1, 0.25]),
        (0.0, (True, True), [1, 1, 1, 1]),
        (0.0, (False, False), [1, 0, 1, 0]),
    ],
)
def test_background_of_mined_images_is_masked(background, is_seed, weights):
    method = seen(NoteRCNN(background=background), is_seed)
    losses, counts = method.expected_losses(lambda _: LOSSES, IDS, LABELS)
    assert losses.tolist() == LOSSES.tolist()
    assert counts.tolist() == weights


def test_before_the_start_nothing_is_masked_or_distilled():
    method = seen(NoteRCNN(start=3))
    assert method.expected_losses(lambda _: LOSSES, IDS, LABELS)[1].tolist() == [1.0] * 4
    assert method.box_weight() == 1.0
    scores = [torch.zeros(4, 3), torch.zeros(4, 3)]
    assert method.losses_of_others(scores, LABELS)["second_loss_distillation"] == 0.0
    method.begin_step(3)
    assert method.box_weight() == 0.0
    assert method.losses_of_others(scores, LABELS)["second_loss_distillation"] > 0.0


def test_losses_of_the_other_heads_by_hand():
    """Seed head: RoIs 0 and 1 with p = 1/2 and 1/4. The third: against (1/2, 1/4, 1/4)."""
    method = seen(NoteRCNN(seed_head=2.0, distillation=0.5))
    half = torch.tensor([0.5, 0.25, 0.25]).log()
    seeds, distilled = half.repeat(4, 1), torch.zeros(4, 3)
    losses = method.losses_of_others([seeds, distilled], LABELS)
    assert losses["second_loss_cls"].item() == pytest.approx(2 * (math.log(2) + math.log(4)) / 2)
    # Uniform predictions: log 3, whatever the target.
    assert losses["second_loss_distillation"].item() == pytest.approx(0.5 * math.log(3))
    exact = method.losses_of_others([seeds, half.repeat(4, 1)], LABELS)
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert exact["second_loss_distillation"].item() == pytest.approx(0.5 * entropy)
    without = seen(NoteRCNN(), (False, False)).losses_of_others([seeds, distilled], LABELS)
    assert without["second_loss_cls"] == 0.0
    assert NoteRCNN(seed_head=0.0, distillation=0.0).losses_of_others([], LABELS) == {}


def test_the_teacher_gets_no_gradient_of_its_student():
    method = seen(NoteRCNN(), (False, False))
    seeds, distilled = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    sum(method.losses_of_others([seeds, distilled], LABELS).values()).backward()
    assert not seeds.grad.any()
    assert distilled.grad.any()


def box_loss(*opts, is_seed=(True, False)):
    model, method = detector_with("NoteRCNN", "standard", *opts)
    predictor = model.roi_heads.box_predictor
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20], [0, 0, 30, 30], [1, 1, 9, 9]])
    labels = torch.tensor([0, NUM_CLASSES, 1, NUM_CLASSES])
    deltas = torch.randn(4, 4 * NUM_CLASSES, generator=generator)
    method._is_seed = list(is_seed)
    method.see([Instances((99, 99), gt_classes=part) for part in labels.split(2)])
    args = boxes, boxes + 1, deltas
    alone = [
        predictor.foreground_box_losses(*args, torch.where(labels == c, c, NUM_CLASSES)).sum() / 4
        for c in (0, 1)
    ]
    return predictor.box_reg_loss(*args, labels), alone


def test_boxes_are_regressed_on_seeds_with_the_stock_divisor():
    loss, (of_seed, of_mined) = box_loss()
    torch.testing.assert_close(loss, of_seed)
    loss, _ = box_loss(NOTE + "BOXES", 0.25)
    torch.testing.assert_close(loss, of_seed + 0.25 * of_mined)
    loss, _ = box_loss(is_seed=(False, False))
    assert loss == 0.0


def test_what_a_step_trains():
    """With a mined image alone boxes and seed head stay; the first head learns from objects."""
    model, _ = detector_with("NoteRCNN")
    batch = numbered_batch()
    for image in batch:
        image[IS_SEED] = False
    losses, gradients, _ = run_losses(model, batch)
    assert losses["loss_box_reg"] == losses["second_loss_cls"] == 0.0
    assert losses["second_loss_distillation"] > 0.0
    head = "roi_heads.box_predictor."
    assert not gradients[head + "bbox_pred.weight"].any()
    assert not gradients[head + "seed_score.weight"].any()
    assert gradients[head + "distilled_score.weight"].any()
    plain, plain_gradients, _ = run_losses(plain_detector(), numbered_batch())
    assert 0.0 < losses["loss_cls"] < plain["loss_cls"]
    assert losses["loss_rpn_loc"] == plain["loss_rpn_loc"]
    for image in batch:
        image[IS_SEED] = True
    losses, gradients, _ = run_losses(model, batch)
    assert {k: v for k, v in losses.items() if not k.startswith("second")} == plain
    assert torch.equal(
        gradients[head + "bbox_pred.weight"], plain_gradients[head + "bbox_pred.weight"]
    )


def test_predictions_are_the_mean_of_two_heads():
    model, _ = detector_with("NoteRCNN")
    predictor = model.roi_heads.box_predictor
    features = torch.randn(3, predictor.cls_score.in_features)
    with torch.no_grad():
        first, deltas = predictor(features)
        scores, same = predictor.eval()(features)
        second = predictor.seed_score(features)
    assert torch.equal(deltas, same)
    expected = (first.softmax(dim=1) + second.softmax(dim=1)) / 2
    torch.testing.assert_close(scores.softmax(dim=1), expected)
    assert not torch.equal(predictor.cls_score.weight, predictor.seed_score.weight)
    with torch.no_grad():
        detections = model.eval()(numbered_batch())
    assert len(detections) == 2
    assert F.softmax(scores, dim=1).max() <= 1.0


def test_what_it_needs():
    cfg = small_config("standard", superloss=True)
    cfg.merge_from_list([NODE + "NAME", "NoteRCNN"])
    with pytest.raises(ValueError, match=r"set DATASETS\.LABEL_NOISE\.CLEAN_SHARE"):
        check_method(cfg)
    cfg.DATASETS.LABEL_NOISE.CLEAN_SHARE = 0.1
    with pytest.raises(ValueError, match="NoteRCNNROIHeads'; got 'SuperLossStandardROIHeads'"):
        check_method(cfg)
    cfg.merge_from_list(options("NoteRCNN", "standard"))
    check_method(cfg)
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    with pytest.raises(ValueError, match=r"BOX_REG\.ENABLED False"):
        check_method(cfg)
    with pytest.raises(ValueError, match="NoteRCNN needs NoteRCNNROIHeads; got Linear"):
        NoteRCNN().attach(nn.Linear(1, 1))
    model = build(cfg)
    with pytest.raises(ValueError, match="or leave superloss_box_reg out of a LazyConfig"):
        NoteRCNN().attach(model)
    for key, value in (("BACKGROUND", 1.5), ("BOXES", -0.1), ("SEED_HEAD", -1.0)):
        bad = cfg.clone()
        bad.MODEL.METHOD.NOTE_RCNN[key] = value
        with pytest.raises(ValueError, match=rf"NOTE_RCNN\.{key} must be .*; got {value!r}"):
            check_method(bad)
    with pytest.raises(ValueError, match=r"DISTILLATION must be 0\.0 without a SEED_HEAD"):
        NoteRCNN(seed_head=0.0)


def test_images_that_do_not_say_whether_they_are_seeds():
    model, _ = detector_with("NoteRCNN")
    batch = numbered_batch()
    del batch[1][IS_SEED]
    batch[1]["image_id"] = "b"
    with pytest.raises(ValueError, match="image 'b' comes without 'is_clean_seed'"):
        run_losses(model, batch)


def test_heads_without_the_method_do_not_train():
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.ROI_HEADS.NAME = "NoteRCNNROIHeads"
    with pytest.raises(ValueError, match=r"are trained by MODEL\.METHOD\.NAME 'NoteRCNN'"):
        run_losses(build(cfg), numbered_batch())
    predictor = build(cfg).roi_heads.box_predictor
    proposals = [Instances((9, 9), gt_classes=LABELS, proposal_boxes=Boxes(torch.zeros(4, 4)))]
    with pytest.raises(ValueError, match="NoteRCNN"):
        predictor.losses((torch.zeros(4, 6), torch.zeros(4, 20)), proposals)
