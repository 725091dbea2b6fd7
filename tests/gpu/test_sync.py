"""No trip to the host in what this project adds to a step, but those that a comment explains."""

import contextlib
import subprocess
import sys

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers import REPO
from helpers.detectors import DETECTORS, build, small_config
from helpers.host_trips import HostTrips
from helpers.loss_cases import LAM
from helpers.loss_path import PARTS
from helpers.tracked_steps import tracked_step
from sl_detectron.losses import SuperLoss
from sl_detectron.modeling import SuperLossTerm

pytestmark = pytest.mark.gpu


@contextlib.contextmanager
def no_trip():
    """A trip is an error. What comes before it has reached the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    call = PARTS[name]("cuda")
    with no_trip():
        call()


def test_an_error_tells_of_a_trip():
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), no_trip():
        x.sum().item()


@pytest.mark.parametrize("granularity", ["sample", "instance"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_detectors(detector, granularity, measured):
    """A whole step with tracker and class targets; detectron2's trips are its own."""
    cfg = small_config(detector, superloss=False)
    cfg.MODEL.DEVICE = "cuda"
    step = tracked_step(build(cfg))
    with HostTrips(cuda=True) as stock:
        step()
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.DEVICE = "cuda"
    cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = granularity
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    if detector == "standard_sigmoid":
        cfg.MODEL.SUPERLOSS.CLS.TAU = "ExpAvg"
    step = tracked_step(build(cfg))
    with HostTrips(cuda=True) as ours:
        step()
    measured(f"{detector}, {granularity}: trips of the stock step", len(stock.trips), "")
    measured(f"{detector}, {granularity}: trips of the SuperLoss step", len(ours.trips), "")
    assert stock.trips, "torch names no trip of the stock detector: nothing was found out"
    assert not ours.unexplained


def test_one_trip_where_scalars_are_logged():
    """All scalars in one copy, once a period."""
    term = SuperLossTerm("cls", SuperLoss("ExpAvg", LAM)).cuda()
    losses = torch.rand(100, device="cuda", requires_grad=True)
    foreground = losses.detach() > 0.5
    with EventStorage(19), HostTrips(cuda=True) as found:
        term(losses, foreground, 100)
    assert len(found.trips) == 1
    assert not found.unexplained


BAD_CLASS = """
import torch
from detectron2.structures import Instances
from sl_detectron.modeling.matched_annotations import check_target_classes
target = Instances((9, 9), gt_classes=torch.tensor([4, 5], device="cuda"))
check_target_classes([target], int(input()))
torch.cuda.synchronize()
"""


@pytest.mark.parametrize(("num_classes", "fails"), [(6, False), (5, True)])
def test_a_class_that_the_detector_does_not_have(num_classes, fails):
    """Found without a trip; in a process of its own, as no later call of CUDA would succeed."""
    command = [sys.executable, "-c", BAD_CLASS]
    done = subprocess.run(
        command, input=str(num_classes), capture_output=True, text=True, cwd=REPO, timeout=120
    )
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, said
    assert ("device-side assert" in said or "a class above 4" in said) == fails, said
