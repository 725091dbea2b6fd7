"""No shape and no choice in the SuperLoss's part of a step depends on values, but as in stock's.

Fake tensors have shapes and no values: what asks for one raises an error. detectron2's part of a
step asks for many; it is compared operator by operator.
"""

from collections import Counter

import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from helpers.detectors import DETECTORS, NUM_CLASSES, build, small_config
from helpers.host_trips import HostTrips
from helpers.loss_cases import LAM, TAUS
from helpers.loss_path import PARTS
from helpers.tracked_steps import tracked_step
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.losses import SuperLoss
from sl_detectron.losses.classification import CLASSIFICATION_LOSSES
from sl_detectron.modeling import SuperLossTerm
from sl_detectron.modeling.superloss_term import GRANULARITIES


def test_fake_tensors_have_no_values():
    with FakeTensorMode():
        x = torch.rand(4)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(DynamicOutputShapeException):
            x[x > 0.5]


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        PARTS[name]("cpu")()


def test_other_devices_do_not_mix():
    """What the next test builds on."""
    x = torch.rand(4, device="meta")
    for mixed in (lambda: x + torch.rand(4), lambda: torch.where(x > 0, torch.rand(4), x)):
        with pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
            mixed()


@pytest.mark.parametrize("name", PARTS)
def test_parts_stay_on_their_device(name):
    """Forward and backward beside the CPU, as on a GPU: a tensor of the CPU is refused."""
    PARTS[name]("meta")()


@pytest.mark.parametrize("granularity", ["sample", "instance"])
@pytest.mark.parametrize("loss", sorted(CLASSIFICATION_LOSSES))
def test_box_head(loss, granularity, monkeypatch):
    """Without the stock losses, which look at values for the log."""
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.LOSS, cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = loss, granularity
    model = build(cfg)
    monkeypatch.setattr(
        *(FastRCNNOutputLayers, "losses"), lambda *_: {"loss_cls": 0, "loss_box_reg": 0}
    )
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        predictor = model.roi_heads.box_predictor
        for term in predictor.modules():
            for name, buffer in term.named_buffers(recurse=False):
                setattr(term, name, mode.from_tensor(buffer))
        scores = torch.rand(30, NUM_CLASSES + 1, requires_grad=True)
        proposal = Instances((9, 9), gt_classes=torch.randint(NUM_CLASSES + 1, (30,)))
        proposal.gt_annotation_ids = torch.randint(9, (30,))
        proposal.proposal_boxes = proposal.gt_boxes = Boxes(torch.rand(30, 4))
        losses = predictor.losses((scores, torch.rand(30, 4 * NUM_CLASSES)), [proposal])
        losses["loss_cls"].backward()
    assert scores.grad.shape == scores.shape


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_step_asks_for_no_more_than_stocks(detector, granularity):
    """Of the same kind as often: values that are read, and shapes that depend on values."""
    if granularity == "class" and detector != "retinanet":
        pytest.skip("of dense detectors only")
    if granularity == "instance" and detector in ("cascade", "retinanet"):
        pytest.skip("finds the annotations again that a matching dropped: host trips are explained")
    found = {}
    for superloss in (False, True):
        cfg = small_config(detector, superloss)
        cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = granularity
        step = tracked_step(build(cfg), listens=False)
        with HostTrips() as trips:
            step()
        found[superloss] = Counter(trip.what for trip in trips.trips)
    assert found[False]
    more = found[True] - found[False]
    if detector == "retinanet":
        # Stock indexes the valid and the foreground anchors by masks; here a mask makes one index
        # for all that it chooses from, which is what an index by a mask does.
        assert found[True].total() < found[False].total()
        assert set(more) <= {"aten.nonzero"}
    else:
        assert not more


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("tau", TAUS)
def test_running_state_stays_at_its_address(tau, normalize):
    """A CUDA graph holds addresses: a buffer that was replaced would no longer be read."""
    criterion = SuperLoss(TAUS[tau](), LAM, normalize=normalize)
    term, tracker = SuperLossTerm("cls", criterion, warmup_iters=1), AnnotationTracker(50, 5)
    term.observers.append(tracker)
    modules = nn.ModuleList([term, tracker])
    losses, ids = torch.rand(100, requires_grad=True), torch.arange(100)
    before = {name: (b.data_ptr(), b.clone()) for name, b in modules.named_buffers()}
    for _ in range(2):
        term(losses, losses > 0.2, 100, ids, lambda: torch.rand(100, 5)).backward()
    for name, buffer in modules.named_buffers():
        assert buffer.data_ptr() == before[name][0], name
    moved = {name for name, b in modules.named_buffers() if not torch.equal(b, before[name][1])}
    assert {"0.num_steps", "1.sums", "1.step"} <= moved
    assert any("mean" in name for name in moved) == (normalize or tau not in ("logC", "number"))
