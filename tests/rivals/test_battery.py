"""What every method does; helpers/method_cases.py lists them."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from helpers.detectors import run_losses, run_ranks
from helpers.host_trips import HostTrips
from helpers.method_cases import (
    CASES,
    METHODS,
    NEUTRAL,
    NODE,
    SHARED,
    detector_with,
    numbered_batch,
    options,
    plain_detector,
)
from helpers.trainings import FASTER_RCNN, RETINANET, assert_equal, run, toy_split
from sl_detectron.losses import ranks as process_ranks

every_case = pytest.mark.parametrize(("name", "detector"), CASES)


def of_first(values):
    """Losses or gradients without those of a second detector."""
    return {k: v for k, v in values.items() if not k.startswith("second")}


@every_case
def test_neutral_is_the_plain_head_bit_for_bit(name, detector):
    plain, gradients, _ = run_losses(plain_detector(detector), numbered_batch())
    model, _ = detector_with(name, detector, *NEUTRAL[name])
    losses, ours, _ = run_losses(model, numbered_batch())
    assert of_first(losses) == plain
    if name not in SHARED:  # which learns from both heads
        assert gradients.keys() == of_first(ours).keys()
        assert all(torch.equal(ours[key], value) for key, value in gradients.items())


@every_case
def test_before_its_start_it_changes_nothing(name, detector):
    plain, _, _ = run_losses(plain_detector(detector), numbered_batch())
    model, _ = detector_with(name, detector, NODE + "START", 0.5)
    assert of_first(run_losses(model, numbered_batch())[0]) == plain


@every_case
def test_narrow_numbers_and_images_without_objects(name, detector):
    model, method = detector_with(name, detector)
    for step, objects in enumerate(((3, 1), (0, 0), (2, 0))):
        for dtype in (torch.bfloat16, torch.float32):
            method.begin_step(step)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                losses, gradients, _ = run_losses(model, numbered_batch(objects))
            method.end_step()
            assert all(v.isfinite() for v in losses.values())
            assert all(g.isfinite().all() for g in gradients.values())
            trained = {n for n, p in model.named_parameters() if p.requires_grad}
            assert trained <= set(gradients)


@pytest.mark.parametrize(
    ("name", "detector"),
    [
        ("CoTeaching, one trunk", "c4_masks"),
        ("CABBC", "standard_masks"),
        ("NoteRCNN", "standard_keypoints"),
        ("EMATeacher", "standard_sigmoid"),
        ("SDLocNet", "standard_sigmoid"),
    ],
)
def test_other_heads(name, detector):
    """Masks, keypoints, C4 heads and sigmoids: trained and predicted by."""
    model, method = detector_with(name, detector)
    for step, objects in enumerate(((3, 1), (0, 2))):
        method.begin_step(step)
        losses, gradients, _ = run_losses(model, numbered_batch(objects))
        method.end_step()
        assert all(v.isfinite() for v in losses.values())
        assert {n for n, p in model.named_parameters() if p.requires_grad} <= set(gradients)
    with torch.no_grad():
        assert len(model.eval()(numbered_batch())) == 2


@every_case
def test_no_trip_to_the_host_without_a_reason(name, detector):
    model, method = detector_with(name, detector)
    run_losses(model, numbered_batch())
    method.end_step()
    with HostTrips() as found:
        method.begin_step(1)
        run_losses(model, numbered_batch())
        method.end_step()
    assert not found.unexplained


def step_of(model, method, step):
    method.begin_step(step)
    losses, _, _ = run_losses(model, numbered_batch(seed=step), seed=step)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.grad is not None):
            parameter -= 1e-3 * parameter.grad
    method.end_step()
    return losses


@every_case
def test_its_state_is_what_a_checkpoint_holds(name, detector):
    model, method = detector_with(name, detector)
    for step in range(3):
        step_of(model, method, step)
    other, resumed = detector_with(name, detector)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    for module, copied in zip(model.modules(), other.modules()):
        if hasattr(module, "loss_normalizer"):  # a plain attribute, which the trainer keeps
            copied.loss_normalizer = module.loss_normalizer
    for step in (3, 4):
        assert step_of(model, method, step) == step_of(other, resumed, step)
    assert_equal(dict(method.state_dict()), dict(resumed.state_dict()))
    assert not any("method" in key for key in model.state_dict())


NUM_ITERS = 6


# The others have their state in buffers that are tested above.
SHORT = ("CoTeaching, one trunk", "EMATeacher")


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in METHODS]
)
def test_a_killed_training_goes_on_bit_for_bit(toy_env, tmp_path, name):
    detector = "retinanet" if name == "CoTeaching" else "standard"
    config = {"retinanet": RETINANET, "standard": FASTER_RCNN}[detector]
    dozen = toy_split(toy_env, "dozen", "train", 12)
    opts = ["DATASETS.CUSTOM_VOC", [dozen], "DATASETS.TRAIN", "('dozen',)"]
    opts += ["SOLVER.MAX_ITER", NUM_ITERS, "SOLVER.CHECKPOINT_PERIOD", 3]
    opts += [*options(name, detector), NODE + "START", 0.34]
    if name == "CoTeaching, one trunk":
        opts += [NODE + "NOISE_RATE", -1.0]  # estimated at iterations 2, 4 and 6
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, printed = run(toy_env, config, whole, *opts)
    assert code == 0, printed
    run(toy_env, config, parts, *opts, kill_at=4)
    code, printed = run(toy_env, config, parts, *opts, resume=True)
    assert code == 0, printed
    assert "Starting training from iteration 3" in printed
    final = [torch.load(p / "model_final.pth", weights_only=True) for p in (whole, parts)]
    assert_equal(*final)


def with_all_rois(model, method):
    """Which RoIs are trained on is not by chance; few of them, as the forwards take the time."""
    for module in model.modules():
        for key, value in (("batch_size_per_image", 8192), ("positive_fraction", 1.0)):
            if hasattr(module, key):
                setattr(module, key, value)
        if hasattr(module, "post_nms_topk"):
            module.post_nms_topk = {True: 40, False: 40}
        # Statistics of batch norm are of a rank.
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    return model, method


def two_steps(name, detector, rank=None):
    """(losses of the second step, times their divisor for a RetinaNet; state after it).

    Args:
        name, detector: of a case
        rank: takes the image of that number; None for a process that takes both
    """
    part = slice(None) if rank is None else slice(rank, rank + 1)
    model, method = with_all_rois(*detector_with(name, detector))
    parallel = model if rank is None else DistributedDataParallel(model)
    method.begin_step(0)
    # The second image has no object. A forward with gradients learns; what follows it does not.
    with EventStorage(), nullcontext() if rank is None else parallel.no_sync():
        parallel(numbered_batch((3, 0))[part])
    method.end_step()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1.01
    method.begin_step(1)
    # As many RoIs of each image, so that the mean of means is the mean of all.
    losses, _, _ = run_losses(parallel, numbered_batch((2, 2), seed=1)[part])
    method.end_step()
    scale = getattr(model, "loss_normalizer", 1.0)
    return {key: scale * value for key, value in losses.items()}, dict(method.state_dict())


def on_rank(folder):
    rank = dist.get_rank()
    torch.save({case: two_steps(*case, rank) for case in CASES}, folder / f"{rank}.pt")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_are_one(tmp_path):
    """Losses and state of two processes with an image each, of which one has no foreground."""
    run_ranks(on_rank, 2, tmp_path, timeout=300)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, detector in CASES:
        (first, state), (second, same) = (record[name, detector] for record in ranks)
        losses, whole = two_steps(name, detector)
        num = 1 if detector == "retinanet" else 2  # a sum, as by its one divisor, or a mean
        mean = {key: (value + second[key]) / num for key, value in first.items()}
        torch.testing.assert_close(mean, losses, rtol=1e-4, atol=1e-6)
        assert_equal(state, same)
        for key, value in whole.items():
            if isinstance(value, torch.Tensor):
                # Sums of what float32 forwards of other batches say.
                torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-5, equal_nan=True)


@every_case
def test_a_forward_that_does_not_learn_waits_for_no_process(name, detector, monkeypatch):
    """One for batch statistics or a validation loss may be that of a single process.

    There is no process group here: a collective would be an error.
    """
    model, _ = detector_with(name, detector)
    monkeypatch.setattr(process_ranks, "num_processes", lambda: 2)
    with torch.no_grad(), EventStorage():
        assert all(value.isfinite() for value in model(numbered_batch()).values())
