"""CLC, SD-LocNet's weighting and the EMA teacher by hand arithmetic."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from helpers.detectors import NUM_CLASSES, run_losses, small_config
from helpers.method_cases import NODE, detector_with, numbered_batch
from sl_detectron.audit.scorers import scorer_of
from sl_detectron.rivals import check_method
from sl_detectron.rivals.clc import CLC
from sl_detectron.rivals.sd_locnet import SDLocNet, consistency
from sl_detectron.rivals.soft_targets import SoftTargets

# Samples labelled 0, 0, 1 and background (class 2) of annotations 4, 4, 6 and none.
LABELS = torch.tensor([0, 0, 1, 2])
IDS = torch.tensor([4, 4, 6, -1])
TABLE = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]])
NUM = torch.arange(4)


def losses_of(classes):
    """A loss that tells which class it was asked for; background has 9."""
    return torch.where(classes < 2, TABLE[NUM, classes.clamp(max=1)], 9.0)


def expected(method, p):
    target = Instances((9, 9), gt_classes=torch.tensor([0, 1]))
    target.gt_annotation_ids = torch.tensor([4, 6])
    method.relabel([target])
    return method.expected_losses(losses_of, IDS, LABELS, lambda: torch.tensor(p))


SURE = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.5, 0.5]]
# The first looks like class 1.
WRONG = [[0.1, 0.9], [0.7, 0.3], [0.45, 0.55], [0.1, 0.9]]


def test_clc_thresholds_by_hand():
    method = CLC(num_classes=2)
    losses, weights = expected(method, SURE)
    assert losses.tolist() == [1.0, 2.0, 7.0, 9.0]
    assert weights.tolist() == [1.0] * 4
    # Of label 0: means 0.8 and 0.2, deviation 0.1; of label 1 one sample.
    torch.testing.assert_close(method.thresholds, torch.tensor([[0.9, 0.3], [0.4, 0.6]]))
    # Background did not count.
    assert method.counts[:, 0].tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("form", "losses", "weights"),
    [
        ("drop", [1.0, 2.0, 7.0, 9.0], [0.0, 1.0, 1.0, 1.0]),
        ("relabel", [5.0, 2.0, 7.0, 9.0], [1.0] * 4),
    ],
)
def test_clc_changes_what_passes_both_thresholds(form, losses, weights):
    method = CLC(num_classes=2, form=form)
    expected(method, SURE)
    # 0.9 > 0.1, above thr[0, 1] = 0.3 and thr[1, 1] = 0.6.
    values, counts = expected(method, WRONG)
    assert values.tolist() == losses
    assert counts.tolist() == weights


def test_clc_waits_and_learns_meanwhile():
    method = CLC(num_classes=2, start=5)
    expected(method, SURE)
    method.begin_step(4)
    before = method.sums.clone()
    assert expected(method, WRONG)[1].tolist() == [1.0] * 4
    torch.testing.assert_close(method.sums[0], 0.99 * before[0] + torch.tensor([0.8, 1.2]).double())
    with torch.no_grad():
        before = method.sums.clone()
        expected(method, WRONG)
    assert torch.equal(method.sums, before)
    # Of label 0 class 1 has 0.2 + 0.2 by now and then 0.6: 0.9 is above mean + deviation.
    method.begin_step(5)
    assert expected(method, WRONG)[1].tolist() == [0.0, 1.0, 1.0, 1.0]
    # A hardly likely class has 0.1 to reach.
    low = CLC(num_classes=2)
    expected(low, [[1.0, 0.0], [1.0, 0.0], [0.95, 0.05], [0.5, 0.5]])
    torch.testing.assert_close(low.thresholds[0], torch.tensor([1.0, 0.1]))


def test_consistency_by_hand():
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    half = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    js = (half + math.log(1 / 0.75)) / 2
    torch.testing.assert_close(consistency(p, q), torch.tensor([1 - js / math.log(2)]))
    assert consistency(p, p) == 1


def test_sd_locnet_by_hand():
    method = SDLocNet(num_annotations=9, num_classes=2)
    losses, weights = expected(method, SURE)
    assert losses.tolist() == [1.0, 2.0, 7.0, 9.0]
    # At first sight c = 1; mean losses are 1.5 and 7.
    easy, hard = math.exp(-1.5), math.exp(-7)
    mean = (easy + hard) / 2
    torch.testing.assert_close(weights, torch.tensor([easy, easy, hard, mean]) / mean)
    torch.testing.assert_close(method.sums[4], torch.tensor([0.8, 0.2]))
    _, weights = expected(method, WRONG)
    # The mean of annotation 4 is now (0.4, 0.6), which (0.8, 0.2) is not.
    c = consistency(
        torch.tensor([[0.4, 0.6], [0.45, 0.55]]), torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    )
    raw = c * torch.tensor([easy, hard])
    torch.testing.assert_close(weights[1:3], raw / raw.mean())
    assert method.counts[:, 0].tolist() == [0, 0, 0, 0, 2, 0, 2, 0, 0, 0]
    method.start = 1
    assert expected(method, WRONG)[1].tolist() == [1.0] * 4


def test_teacher_is_the_average_and_its_answer_the_target():
    model, method = detector_with("EMATeacher")
    with torch.no_grad():
        teacher = {n: p.clone() for n, p in method.teacher.named_parameters()}
        for parameter in model.parameters():
            parameter += 1.0
    method.begin_step(0)
    method.end_step()  # the first step's weights: 1 - 1 / (t + 1) = 0
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter, teacher[name] + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1.0
    method.begin_step(7)
    method.end_step()  # DECAY 0.5
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter, teacher[name] + 1.5)
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert not method.train().teacher.training


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_targets_are_half_the_label_and_half_the_teacher(detector):
    model, method = detector_with("EMATeacher", detector)
    batch = numbered_batch()
    run_losses(model, batch)
    assert method.table.shape == (4, NUM_CLASSES)
    labels = torch.cat([image["instances"].gt_classes for image in batch])
    with torch.no_grad():
        scores = [scorer_of(model)(method.teacher, x, x["instances"]) for x in batch]
    ids, p = (torch.cat([score[i] for score in scores]) for i in (0, 2))
    for row, (i, label) in enumerate(zip([5, 0, 3, 4], labels)):
        mean = p[ids == i].sum(dim=0)
        target = 0.5 * F.one_hot(label, NUM_CLASSES) + 0.5 * mean / mean.sum()
        torch.testing.assert_close(method.table[row], target)


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_targets_sum_to_1_in_16_bits(detector):
    model, method = detector_with("EMATeacher", detector)
    with torch.autocast("cpu", torch.bfloat16):
        run_losses(model, numbered_batch())
    torch.testing.assert_close(method.table.sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("num", [0, 2])
def test_soft_targets_ask_as_often_without_an_annotation(num):
    """By a loss that waits for other processes, which have some, a process would wait forever."""
    method, asked = SoftTargets(), []
    target = Instances((9, 9), gt_classes=torch.tensor([0, 1])[:num])
    target.gt_annotation_ids = torch.tensor([4, 6])[:num]
    method.table = torch.tensor([[0.75, 0.25], [0.5, 0.5]])[:num]
    method.relabel([target])

    def loss_of(classes):
        asked.append(classes)
        return losses_of(classes)

    losses, weights = method.expected_losses(loss_of, IDS if num else IDS * 0 - 1, LABELS)
    expected = [0.75 + 0.25 * 5, 0.75 * 2 + 0.25 * 6, 5.0, 9.0] if num else [1.0, 2.0, 7.0, 9.0]
    assert losses.tolist() == expected
    assert weights.tolist() == [1.0] * 4
    assert len(asked) == 2


def test_a_loss_with_a_count_counts_a_step_once():
    """Soft targets ask for the losses of every class."""
    node = "MODEL.SUPERLOSS.CLS."
    opts = node + "LOSS", "forward_correction", node + "LOSS_START", 0.25
    model, _ = detector_with("EMATeacher", "standard", *opts)
    custom = model.roi_heads.box_predictor.classification_loss
    _, _, storage = run_losses(model, numbered_batch())
    assert custom.num_steps == 1
    assert custom.training
    num_foreground = 2 * storage.latest()["roi_head/num_fg_samples"][0]
    assert custom.loss.counts.sum() == NUM_CLASSES + num_foreground
    with torch.no_grad(), EventStorage():
        model(numbered_batch())
    assert custom.num_steps == 1


def test_bad_values():
    cfg = small_config("standard", superloss=True)
    for name, key, value in (
        ("CLC", "CLC.FORM", "both"),
        ("EMATeacher", "TEACHER.DECAY", 1.0),
        ("EMATeacher", "TEACHER.SHARE", -0.1),
    ):
        bad = cfg.clone()
        bad.merge_from_list([NODE + "NAME", name, NODE + key, value])
        with pytest.raises(ValueError, match=rf"METHOD\.{key} must be .*; got {value!r}"):
            check_method(bad)
