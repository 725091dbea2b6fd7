"""Methods of other papers on a GPU: their trips to the host, and steps with mixed precision."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.detectors import run_losses
from helpers.host_trips import HostTrips
from helpers.method_cases import CASES, detector_with, numbered_batch

pytestmark = pytest.mark.gpu
every_case = pytest.mark.parametrize(("name", "detector"), CASES)
ON_GPU = ("MODEL.DEVICE", "cuda")


@every_case
def test_no_trip_to_the_host_without_a_reason(name, detector):
    model, method = detector_with(name, detector, *ON_GPU)
    run_losses(model, numbered_batch())
    method.end_step()
    with HostTrips(cuda=True) as found:
        method.begin_step(1)
        run_losses(model, numbered_batch())
        method.end_step()
    assert found.trips, "torch names no trip of detectron2 either: nothing was found out"
    assert not found.unexplained


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=str)
@every_case
def test_losses_and_gradients_are_finite(name, detector, dtype):
    """Steps of the optimizer, the last of them on images without objects."""
    model, method = detector_with(name, detector, *ON_GPU)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda", init_scale=1.0, enabled=dtype == torch.float16)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for step, objects in enumerate(((3, 1), (2, 0), (0, 0))):
        method.begin_step(step)
        optimizer.zero_grad()
        autocast = torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None)
        with EventStorage(step), autocast:
            losses = model(numbered_batch(objects))
        scaler.scale(sum(losses.values())).backward()
        assert all(v.isfinite() for v in losses.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())
        scaler.step(optimizer)
        scaler.update()
        method.end_step()
    assert all(p.isfinite().all() for p in parameters.values())
    assert all(b.device.type == "cuda" for b in method.buffers())
