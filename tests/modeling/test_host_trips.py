"""No trip to the host in the loss path but those that a comment explains; how much work it adds."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.detectors import DETECTORS, build, small_config
from helpers.host_trips import HostTrips, Trip
from helpers.loss_cases import LAM
from helpers.loss_path import PARTS
from helpers.tracked_steps import tracked_step
from sl_detectron import losses as sl
from sl_detectron.losses.classification import CLASSIFICATION_LOSSES
from sl_detectron.modeling import SuperLossTerm
from sl_detectron.modeling.superloss_term import GRANULARITIES

# What the guard has to see: each is a trip on a GPU.
READS = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0.5),
    "masked index": lambda x: x[x > 0.5],
    "masked_select": lambda x: x.masked_select(x > 0.5),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "repeat": lambda x: x.repeat_interleave(torch.arange(4)),
    "from the host": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "number from the host": lambda x: x + torch.as_tensor(2.0),
    "list from the host": lambda x: x + torch.asarray([2.0]),
    "of its kind, from the host": lambda x: x[:1] + x.new_tensor([2.0]),
}


def trips_of(call) -> list[str]:
    """What a call does that would be a trip, whoever makes it."""
    with HostTrips() as found:
        found.note = lambda what: found.trips.append(what)
        call()
    return found.trips


@pytest.mark.parametrize("name", READS)
def test_the_guard_sees(name):
    x = torch.arange(4.0)
    assert trips_of(lambda: READS[name](x))
    assert not trips_of(lambda: torch.where(x > 0.5, x, 0.0).sum().to(x.dtype))


def test_a_comment_explains_a_trip(tmp_path):
    path = tmp_path / "code.py"
    path.write_text("# Host trip: why.\nx.item()\n\n\n\n\ny.item()\n")
    assert Trip("item", path, 2).is_explained
    assert not Trip("item", path, 7).is_explained


@pytest.mark.parametrize("name", PARTS)
def test_parts(name):
    assert not trips_of(PARTS[name]("cpu"))


def test_one_trip_where_scalars_are_logged():
    term = SuperLossTerm("cls", sl.SuperLoss("ExpAvg", LAM))
    losses = torch.rand(100, requires_grad=True)
    with EventStorage(19):
        assert trips_of(lambda: term(losses, losses > 0.5, 100)) == ["torch.tolist"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", DETECTORS)
def test_detectors(detector, granularity):
    """A step with tracker and class targets: each trip of ours is explained where it is made."""
    if granularity == "class" and detector != "retinanet":
        pytest.skip("of dense detectors only")
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = granularity
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    step = tracked_step(build(cfg))
    with HostTrips() as found:
        step()
    assert any(trip.is_ours for trip in found.trips), "the guard saw nothing"
    assert not found.unexplained


@pytest.mark.parametrize("loss", sorted(CLASSIFICATION_LOSSES))
def test_losses_by_name(loss):
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.LOSS = loss
    step = tracked_step(build(cfg))
    with HostTrips() as found:
        step()
    assert not found.unexplained


# Operators beside those of the stock step, backward included; what is aimed at is 40.
MOST_OPS = {"standard": 50, "retinanet": 34}


def num_ops(cfg) -> int:
    model = build(cfg)
    step = tracked_step(model, listens=False)
    with HostTrips() as found:
        step()
    return found.ops.total()


@pytest.mark.parametrize("detector", MOST_OPS)
def test_number_of_added_operators(detector, capsys):
    """With the shipped tau of each: log C, and ExpAvg."""
    stock = num_ops(small_config(detector, superloss=False))
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.TAU = "logC" if detector == "standard" else "ExpAvg"
    added = num_ops(cfg) - stock
    with capsys.disabled():
        print(f"\n{detector}: the SuperLoss adds {added} operators to the {stock} of a step")
    assert 0 < added <= MOST_OPS[detector]


@pytest.mark.parametrize(("tau", "most"), [("logC", 34), ("ExpAvg", 56), ("Avg", 57)])
def test_number_of_operators_of_a_term(tau, most, capsys):
    """Beside the sum and the division of a plain mean."""
    term = SuperLossTerm("cls", sl.SuperLoss(tau, LAM, num_outcomes=5))
    losses, counts = torch.rand(100, requires_grad=True), []
    foreground = losses.detach() > 0.5
    for call in (lambda: losses.sum() / 100, lambda: term(losses, foreground, 100)):
        with HostTrips() as found:
            call().backward()
        counts.append(found.ops.total())
    added = counts[1] - counts[0]
    with capsys.disabled():
        print(f"\na term with tau {tau}: {added} operators")
    assert added <= most
