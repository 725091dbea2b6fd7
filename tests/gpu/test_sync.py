"""No trip to the host in what this project adds to a step, but those that a comment explains."""

import contextlib

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.detectors import DETECTORS, build, small_config
from helpers.host_trips import HostTrips
from helpers.loss_cases import CASES, LAM, TAUS, make_inputs
from helpers.tracked_steps import tracked_step
from sl_detectron import losses as sl
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.losses import SuperLoss
from sl_detectron.modeling import SuperLossTerm
from sl_detectron.modeling.class_targets import ClassTargets
from sl_detectron.modeling.superloss_term import GRANULARITIES, SCOPES

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


@pytest.mark.parametrize("name", CASES)
def test_losses(name):
    loss, inputs = CASES[name].build(), make_inputs(name, 100, torch.float32)
    inputs = [x.detach().cuda().requires_grad_(x.requires_grad) for x in inputs]
    loss = loss.cuda() if isinstance(loss, nn.Module) else loss
    with no_trip():
        loss(*inputs).sum().backward()


def test_numbers_as_arguments():
    """They are filled in on the device."""
    scores = torch.rand(10, device="cuda", requires_grad=True)
    labels = torch.ones(10, dtype=torch.int64, device="cuda")
    logits = torch.rand(10, 3, device="cuda", requires_grad=True)
    with no_trip():
        sl.introspection(scores, 1, 2.0).sum().backward()
        sl.r2d2_reliability(scores, 0.5).sum().backward()
        sl.data_params(logits, labels, 0.5, lam=0.1).sum().backward()
        sl.superloss(scores, 1.0, 0.25).sum().backward()
        sl.superloss(scores, scores.detach().mean(), scores.detach().sum()).sum().backward()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", TAUS)
def test_tau(name, normalize):
    criterion = SuperLoss(TAUS[name](), LAM, normalize=normalize).cuda()
    losses = torch.rand(100, device="cuda", requires_grad=True)
    with no_trip():
        for _ in range(3):
            criterion(losses, losses > 0.2).sum().backward()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_terms(scope, granularity, weighted):
    term = SuperLossTerm("cls", SuperLoss("ExpAvg", LAM), scope, granularity, 2).cuda()
    shape = (100, 4) if granularity == "class" else (100,)
    losses = torch.rand(shape, device="cuda", requires_grad=True)
    foreground = torch.rand(shape, device="cuda") < 0.3
    ids = torch.randint(-1, 20, (100,), device="cuda")
    weights = torch.rand(100, device="cuda") if weighted else None
    with EventStorage(0), no_trip():
        for _ in range(3):
            term(losses, foreground, 100, ids, None, weights).backward()


def test_tracker():
    tracker = AnnotationTracker(num_annotations=50, num_classes=5).cuda()
    ids = torch.randint(-2, 60, (200,), device="cuda")
    losses, sigma = torch.rand(2, 200, device="cuda")
    probabilities = torch.rand(200, 5, device="cuda").softmax(dim=1)
    with no_trip():
        tracker(ids, losses, sigma, probabilities)
        tracker(ids, losses, sigma, probabilities, begins_step=False)
    assert tracker.sums[:-1, 0].sum() == 2 * ((ids >= 0) & (ids < 50)).sum()


def test_class_targets():
    given = torch.randint(5, (50,), device="cuda")
    targets = ClassTargets(given)
    probabilities = torch.rand(50, 5, device="cuda").softmax(dim=1)
    where = torch.rand(50, device="cuda") < 0.5
    ids = torch.randint(-2, 60, (200,), device="cuda")
    labels = torch.randint(5, (200,), device="cuda")
    logits = torch.rand(200, 5, device="cuda", requires_grad=True)
    instances = Instances((10, 10), gt_boxes=Boxes(torch.rand(200, 4, device="cuda")))
    instances.gt_classes, instances.gt_annotation_ids = labels, ids
    with no_trip():
        targets.set_distributions(probabilities, where, hard=True, min_probability=0.3)
        targets.set_distributions(probabilities)
        targets.relabel([instances])
        losses, weights = targets.expected_losses(
            lambda classes: nn.functional.cross_entropy(logits, classes, reduction="none"),
            *(ids, labels),
        )
        (losses * weights).sum().backward()


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
