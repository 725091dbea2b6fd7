"""Noise-robust classification losses against their papers' equations, in plain numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sl_detectron import losses as sl
from sl_detectron.losses.classification import CLASSIFICATION_LOSSES, cross_entropy

NAMES = sorted(CLASSIFICATION_LOSSES)


def samples(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5, generator=generator, dtype=torch.float64) * 4
    return logits.to(dtype), torch.randint(5, (40,), generator=generator)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_certain_predictions_stay_finite(name, scale):
    logits = scale * torch.tensor([[1.0, 0.0, -1.0]]).repeat(3, 1)
    logits.requires_grad_()
    losses = CLASSIFICATION_LOSSES[name](logits, torch.arange(3))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()
    if name != "lncis":  # two losses of one sample each
        assert (losses.diff() >= 0).all()


def test_limits():
    logits, labels = samples()
    ce = F.cross_entropy(logits, labels, reduction="none")
    p_y = (-ce).exp()
    for limit in (
        cross_entropy(logits, labels),
        sl.focal_loss(logits, labels, gamma=0),
        sl.soft_bootstrapping(logits, labels, beta=1),
        sl.hard_bootstrapping(logits, labels, beta=1),
        sl.symmetric_cross_entropy(logits, labels, alpha=1, beta=0),
    ):
        torch.testing.assert_close(limit, ce)
    near = sl.generalized_cross_entropy(logits, labels, q=1e-12)
    torch.testing.assert_close(near, ce)
    torch.testing.assert_close(sl.generalized_cross_entropy(logits, labels, q=1), 1 - p_y)
    reverse = sl.symmetric_cross_entropy(logits, labels, alpha=0, beta=0.5, log_zero=-6)
    torch.testing.assert_close(reverse, 3 * (1 - p_y))


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
def test_focal_gradient_where_p_rounds_to_one(gamma):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    sl.focal_loss(logits, torch.tensor([0]), gamma).sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("loss", "parameter", "values"),
    [
        (sl.generalized_cross_entropy, "q", [0.0, -1.0, 1.1, np.nan]),
        (sl.symmetric_cross_entropy, "alpha", [-0.1, np.nan]),
        (sl.symmetric_cross_entropy, "beta", [-0.1]),
        (sl.symmetric_cross_entropy, "log_zero", [0.1]),
        (sl.hard_bootstrapping, "beta", [-0.1, 1.1]),
        (sl.soft_bootstrapping, "beta", [-0.1, 1.1, np.nan]),
        (sl.focal_loss, "gamma", [-0.5, np.nan]),
        (sl.lncis, "log_zero", [0.1]),
        (sl.truncated_generalized_cross_entropy, "q", [0.0]),
        (sl.truncated_generalized_cross_entropy, "k", [-0.1, 1.0]),
        (sl.self_paced, "threshold", [0.0, np.nan]),
    ],
)
def test_parameter_out_of_range(loss, parameter, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{parameter} must be .*; got {value}$"):
            loss(*samples(), **{parameter: value})


def test_a_logit_of_minus_infinity_on_another_class():
    """As 16 bits make of -7e4: it says nothing about this label."""
    logits = torch.tensor([[4.0, 2.0, -torch.inf]], requires_grad=True)
    for loss in CLASSIFICATION_LOSSES.values():
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor([0])).sum(), logits)
        assert loss(logits, torch.tensor([0])).isfinite().all()
        assert gradient.isfinite().all()
