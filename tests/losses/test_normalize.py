"""A SuperLoss whose samples weigh 1 on average, as those of the plain loss."""

import math

import pytest
import torch

from sl_detectron.losses import SuperLoss


def weights(criterion, losses, mask=None):
    """The factor of each sample's gradient."""
    losses = losses.clone().requires_grad_()
    criterion(losses, mask).sum().backward()
    return losses.grad


@pytest.mark.parametrize("tau", ["Avg", "ExpAvg", "1.5", "logC"])
def test_the_first_batch_weighs_one(tau):
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)) * 3
    normalized = SuperLoss(tau, 0.25, num_outcomes=5, normalize=True)
    plain = SuperLoss(tau, 0.25, num_outcomes=5)
    ours, sigma = weights(normalized, losses), weights(plain, losses)
    assert ours.mean() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(ours, sigma / sigma.mean())


def test_later_batches_by_the_running_mean():
    """By hand: easy samples have sigma e, and a sample at tau has 1."""
    criterion = SuperLoss(2.0, 0.25, normalize=True)
    easy, at_tau = torch.zeros(4), torch.full((4,), 2.0)
    torch.testing.assert_close(weights(criterion, easy), torch.ones(4))
    torch.testing.assert_close(weights(criterion, at_tau), torch.full((4,), 1 / math.e))
    mean = 0.9 * math.e + 0.1
    torch.testing.assert_close(weights(criterion, at_tau), torch.full((4,), 1 / mean))


def test_values_outside_the_mask_are_plain():
    criterion = SuperLoss(1.0, 0.25, normalize=True)
    losses = torch.tensor([0.0, 0.0, 5.0])
    mask = torch.tensor([True, True, False])
    value, sigma = criterion.with_confidence(losses, mask)
    assert value[2] == 5.0
    torch.testing.assert_close(sigma, torch.tensor([math.e, math.e, 1.0]))
    assert criterion.mean_sigma.tau == pytest.approx(math.e)


def test_state_and_evaluation():
    criterion = SuperLoss("ExpAvg", 0.25, normalize=True)
    assert set(SuperLoss("ExpAvg", 0.25).state_dict()) == {"threshold.mean", "threshold.count"}
    weights(criterion, torch.tensor([0.5, 1.0, 4.0]))
    other = SuperLoss("ExpAvg", 0.25, normalize=True)
    other.load_state_dict(criterion.state_dict())
    losses = torch.tensor([0.2, 2.0])
    before = criterion.mean_sigma.tau.clone()
    with torch.no_grad():
        evaluated = criterion(losses)
    assert criterion.mean_sigma.tau == before
    assert torch.equal(evaluated, other(losses))


def test_losses_that_are_all_infinite_or_absent():
    criterion = SuperLoss(1.0, 0.25, normalize=True)
    assert criterion(torch.empty(0)).sum() == 0
    assert not criterion(torch.full((3,), math.inf)).isnan().any()
