"""Losses that are shared within groups, and the fixed confidence."""

import math

import pytest
import torch

from sl_detectron.losses import FixedConfidence, SuperLoss, superloss
from sl_detectron.losses.grouping import group_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mean_against_a_loop(dtype):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(200, generator=generator).to(dtype)
    groups = torch.randint(-5, 20, (200,), generator=generator) * 2**41
    pooled = group_mean(losses, groups)
    assert pooled.dtype == dtype
    for group in groups.unique():
        members = groups == group
        mean = losses[members].double().mean()
        torch.testing.assert_close(pooled[members], mean.to(dtype).expand(int(members.sum())))


def test_gradient_and_empty():
    losses = torch.rand(7, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([3, 3, -1, 0, 3, 0, 5])
    assert torch.autograd.gradcheck(lambda x: group_mean(x, groups), (losses,))
    empty = torch.zeros(0, requires_grad=True)
    group_mean(empty, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert empty.grad.shape == (0,)


def test_one_confidence_a_group():
    """sum_i SL(pooled_i) = sum_groups n * SL(mean), so the gradient is the group's sigma."""
    losses = torch.tensor([0.1, 3.0, 0.2, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 0, 1, 1, 2])
    value = superloss(group_mean(losses, groups), 1.0, 0.25).sum()
    value.backward()
    means = torch.tensor([1.55, 0.35, 4.0], dtype=torch.float64)
    expected = (torch.tensor([2, 2, 1]) * superloss(means, 1.0, 0.25)).sum()
    torch.testing.assert_close(value, expected)
    _, sigma = SuperLoss(1.0, 0.25).with_confidence(means)
    torch.testing.assert_close(losses.grad, sigma[groups])


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((2, 2), (2, 2))])
def test_shapes_are_checked(shapes):
    losses, groups = torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64)
    with pytest.raises(ValueError, match=r"1-d and of one length; got \("):
        group_mean(losses, groups)


def test_fixed_confidence_weighs_what_is_in_the_mask():
    losses = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    mask = torch.tensor([True, False, True])
    value, sigma = FixedConfidence(math.e).with_confidence(losses, mask)
    torch.testing.assert_close(sigma, torch.tensor([math.e, 1.0, math.e]))
    value.sum().backward()
    torch.testing.assert_close(losses.grad, sigma)
    assert not sigma.requires_grad
    torch.testing.assert_close(FixedConfidence(math.e)(losses, mask), value)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_fixed_confidence_is_checked(sigma):
    with pytest.raises(ValueError, match="sigma must be a finite number above 0"):
        FixedConfidence(sigma)
