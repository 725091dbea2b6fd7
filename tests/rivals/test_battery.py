"""What every method does; helpers/method_cases.py lists them."""

import copy

import pytest
import torch
import torch.distributed as dist
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


def on_rank(folder):
    """Three steps, an image for each rank; which RoIs are sampled is not by chance."""
    rank, record = dist.get_rank(), {}
    for name, detector in CASES:
        model, method = whole_sample(*detector_with(name, detector))
        parallel = DistributedDataParallel(model)
        for step in range(3):
            method.begin_step(step)
            run_losses(parallel, numbered_batch(seed=step)[rank : rank + 1], seed=step)
            method.end_step()
        record[name, detector] = dict(method.state_dict())
    torch.save(record, folder / f"{rank}.pt")


def whole_sample(model, method):
    for module in model.modules():
        for key in ("batch_size_per_image", "positive_fraction"):
            if hasattr(module, key):
                setattr(module, key, {"batch_size_per_image": 1024, "positive_fraction": 1.0}[key])
    model.eval()  # batch norm, whose statistics are of a rank
    return in_training(model), method


def in_training(model):
    for module in model.modules():
        if not isinstance(module, torch.nn.BatchNorm2d):
            module.training = True
    return model


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_have_the_state_of_one(tmp_path):
    run_ranks(on_rank, 2, tmp_path, timeout=300)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, detector in CASES:
        model, method = whole_sample(*detector_with(name, detector))
        for step in range(3):
            method.begin_step(step)
            run_losses(model, numbered_batch(seed=step), seed=step)
            method.end_step()
        states = [record[name, detector] for record in ranks]
        assert_equal(*states)
        for key, value in method.state_dict().items():
            if isinstance(value, torch.Tensor):
                # Sums of what float32 forwards of other batches say.
                torch.testing.assert_close(
                    states[0][key], value, rtol=1e-5, atol=1e-5, equal_nan=True
                )
