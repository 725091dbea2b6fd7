"""Losses that are told the noise rate or estimate it, by hand arithmetic, and over ranks."""

import math

import pytest
import torch
import torch.distributed as dist

from helpers.detectors import NUM_CLASSES, build, make_batch, run_losses, run_ranks, small_config
from sl_detectron import losses as sl
from sl_detectron.losses import ranks

# Background is class 2.
LOGITS = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0], [6.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
LABELS = torch.tensor([0, 0, 1, 2])


def test_transition_counts_what_is_given_where_a_class_is_predicted():
    loss = sl.ForwardCorrection(num_classes=2)
    first = loss(LOGITS, LABELS)
    assert torch.equal(first, torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none"))
    # Class 0 is predicted thrice among objects; given are 0, 0 and 1. Plus 1 on the diagonal.
    assert loss.counts.tolist() == [[3.0, 1.0], [0.0, 1.0]]
    p = LOGITS.softmax(dim=1)
    expected = -(p[2, 0] * 0.25 + p[2, 1]).log()
    torch.testing.assert_close(loss(LOGITS, LABELS)[2], expected)
    torch.testing.assert_close(loss.counts[0], torch.tensor([1 + 2 * 1.99, 1.99]))
    with torch.no_grad():
        loss(LOGITS, LABELS)
    torch.testing.assert_close(loss.counts[0], torch.tensor([1 + 2 * 1.99, 1.99]))


def test_a_transition_of_no_noise_is_the_cross_entropy():
    loss = sl.ForwardCorrection(num_classes=2, rate=0.0)
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.equal(loss(LOGITS, LABELS), expected)
    assert not loss.state_dict()


def test_curriculum_by_hand():
    """Losses / log 2 are 0.05, 0.80 and 8.66, one error: T = 0.5625 * 3 + 0.75 = 2.4375."""
    losses = sl.CurriculumLoss(rate=0.25)(LOGITS, LABELS)
    plain = torch.nn.functional.cross_entropy(LOGITS, LABELS, reduction="none")
    # 0.05 <= 2.44, 0.85 <= 1.44, 9.5 > 0.44; background stays.
    assert losses.tolist() == [*plain[:2].tolist(), 0.0, plain[3].item()]
    # T = 0.04 * 3 + 0.2 = 0.32: 0.05 <= 0.32, 0.85 > -0.68.
    assert sl.CurriculumLoss(rate=0.8)(LOGITS, LABELS)[:3].tolist() == [plain[0].item(), 0.0, 0.0]
    right = LOGITS[:1].repeat(3, 1)
    assert (sl.CurriculumLoss()(right, torch.zeros(3).long()) > 0).all()


def test_start_counts_steps_that_learn():
    loss = sl.AfterStart(sl.CurriculumLoss(rate=0.8), start=2)
    seen = []
    for learns in (True, False, True, True):
        with torch.set_grad_enabled(learns):
            seen.append(bool((loss(LOGITS, LABELS) == 0).any()))
    assert seen == [False, False, False, True]
    other = sl.AfterStart(sl.CurriculumLoss(rate=0.8), start=2)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(LOGITS, LABELS), loss(LOGITS, LABELS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sl.ForwardCorrection(3, 1.0), r"rate must be in \[0, 1\) or None; got 1.0"),
        (lambda: sl.CurriculumLoss(-0.1), r"rate must be in \[0, 1\); got -0.1"),
        (lambda: sl.AfterStart(sl.focal_loss, -1), "start must be 0 or above; got -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def config(**keys):
    cfg = small_config("standard", superloss=True)
    for key, value in keys.items():
        cfg.MODEL.SUPERLOSS.CLS[key] = value
    return cfg


def test_by_config():
    def loss_of(**keys):
        return build(config(**keys)).roi_heads.box_predictor.classification_loss

    assert loss_of(LOSS="forward_correction").counts.shape == (NUM_CLASSES, NUM_CLASSES)
    assert loss_of(LOSS="forward_correction", NOISE_RATE=0.4).rate == 0.4
    assert loss_of(LOSS="curriculum_loss", NOISE_RATE=0.4).rate == 0.4
    late = loss_of(LOSS="self_paced", LOSS_START=0.25)
    assert late.start == config().SOLVER.MAX_ITER // 4
    for key, value in (("NOISE_RATE", 1.0), ("LOSS_START", 1.1)):
        with pytest.raises(ValueError, match=rf"CLS\.{key} must be .*; got {value}"):
            loss_of(LOSS="self_paced", **{key: value})


def test_neutral_settings_are_the_plain_head_bit_for_bit():
    plain, gradients, _ = run_losses(build(config(FIXED_SIGMA=1.0)), make_batch())
    for keys in (
        {"LOSS": "forward_correction", "NOISE_RATE": 0.0},
        {"LOSS": "truncated_generalized_cross_entropy", "LOSS_START": 1.0},
    ):
        losses, same, _ = run_losses(build(config(FIXED_SIGMA=1.0, **keys)), make_batch())
        assert losses == plain
        torch.testing.assert_close(same, gradients, rtol=1e-6, atol=1e-9)


def test_a_curriculum_without_gradients_is_that_of_a_process(monkeypatch):
    """As of a validation loss, for which the others do not wait: a collective is an error here."""
    loss = sl.CurriculumLoss(rate=0.25)
    expected = loss(LOGITS, LABELS)
    monkeypatch.setattr(ranks, "num_processes", lambda: 2)
    with torch.no_grad():
        assert torch.equal(loss(LOGITS, LABELS), expected)


def on_rank(folder):
    part = slice(0, 3) if dist.get_rank() == 0 else slice(3, 4)
    order = torch.tensor([0, 2, 3, 1])
    logits, labels = LOGITS[order][part], LABELS[order][part]
    forward = sl.ForwardCorrection(num_classes=2)
    forward(logits, labels)
    losses = sl.CurriculumLoss(rate=0.25)(logits, labels)
    torch.save((losses, forward.counts), folder / f"{dist.get_rank()}.pt")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_agree_with_one_process(tmp_path):
    run_ranks(on_rank, 2, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    order = torch.tensor([0, 2, 3, 1])
    whole = sl.CurriculumLoss(rate=0.25)(LOGITS[order], LABELS[order])
    assert torch.equal(torch.cat([losses for losses, _ in parts]), whole)
    forward = sl.ForwardCorrection(num_classes=2)
    forward(LOGITS, LABELS)
    assert all(torch.equal(counts, forward.counts) for _, counts in parts)
    assert math.isclose(forward.counts.sum().item(), 5.0)
