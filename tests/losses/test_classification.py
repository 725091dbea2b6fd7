"""Noise-robust classification losses against their papers' equations, in plain numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sl_detectron.losses import (
    CLASSIFICATION_LOSSES,
    cross_entropy,
    focal_loss,
    generalized_cross_entropy,
    hard_bootstrapping,
    soft_bootstrapping,
    symmetric_cross_entropy,
)

NAMES = sorted(CLASSIFICATION_LOSSES)


def reference(name: str, p: np.ndarray, y: int) -> float:
    """One sample, by the sums of the paper, with the default parameters."""
    t = np.eye(len(p))[y]
    ce = -np.sum(t * np.log(p))
    if name == "generalized_cross_entropy":
        return (1 - p[y] ** 0.7) / 0.7
    if name == "symmetric_cross_entropy":
        reverse = -np.sum(p * np.where(t == 0, -4.0, np.log(np.where(t == 0, 1, t))))
        return 0.1 * ce + reverse
    if name == "hard_bootstrapping":
        z = np.eye(len(p))[p.argmax()]
        return -np.sum((0.8 * t + 0.2 * z) * np.log(p))
    if name == "soft_bootstrapping":
        return -np.sum((0.95 * t + 0.05 * p) * np.log(p))
    if name == "focal_loss":
        return (1 - p[y]) ** 2 * ce
    return ce


def samples(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 5, generator=generator, dtype=torch.float64) * 4
    return logits.to(dtype), torch.randint(5, (40,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_against_the_equation(name, dtype):
    logits, labels = samples(dtype)
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    expected = [reference(name, row, y) for row, y in zip(p, labels.tolist())]
    losses = CLASSIFICATION_LOSSES[name](logits, labels)
    assert losses.shape == (40,)
    assert losses.dtype == dtype
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_numerical_one(name):
    logits, labels = samples()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CLASSIFICATION_LOSSES[name](x, labels), logits)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e30])
@pytest.mark.parametrize("name", NAMES)
def test_certain_predictions_stay_finite(name, scale):
    logits = scale * torch.tensor([[1.0, 0.0, -1.0]]).repeat(3, 1)
    logits.requires_grad_()
    losses = CLASSIFICATION_LOSSES[name](logits, torch.arange(3))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()
    assert (losses.diff() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_16_bits_are_computed_in_float32(name, dtype):
    logits, labels = samples(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = CLASSIFICATION_LOSSES[name](logits, labels)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, CLASSIFICATION_LOSSES[name](logits.float(), labels))


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch_keeps_a_gradient(name):
    logits = torch.zeros(0, 4, requires_grad=True)
    losses = CLASSIFICATION_LOSSES[name](logits, torch.zeros(0, dtype=torch.int64))
    losses.sum().backward()
    assert losses.shape == (0,)
    assert logits.grad.shape == (0, 4)


def test_limits():
    logits, labels = samples()
    ce = F.cross_entropy(logits, labels, reduction="none")
    p_y = (-ce).exp()
    for limit in (
        cross_entropy(logits, labels),
        focal_loss(logits, labels, gamma=0),
        soft_bootstrapping(logits, labels, beta=1),
        hard_bootstrapping(logits, labels, beta=1),
        symmetric_cross_entropy(logits, labels, alpha=1, beta=0),
    ):
        torch.testing.assert_close(limit, ce)
    near = generalized_cross_entropy(logits, labels, q=1e-12)
    torch.testing.assert_close(near, ce)
    torch.testing.assert_close(generalized_cross_entropy(logits, labels, q=1), 1 - p_y)
    reverse = symmetric_cross_entropy(logits, labels, alpha=0, beta=0.5, log_zero=-6)
    torch.testing.assert_close(reverse, 3 * (1 - p_y))


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
def test_focal_gradient_where_p_rounds_to_one(gamma):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0]), gamma).sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("loss", "parameter", "values"),
    [
        (generalized_cross_entropy, "q", [0.0, -1.0, 1.1, np.nan]),
        (symmetric_cross_entropy, "alpha", [-0.1, np.nan]),
        (symmetric_cross_entropy, "beta", [-0.1]),
        (symmetric_cross_entropy, "log_zero", [0.1]),
        (hard_bootstrapping, "beta", [-0.1, 1.1]),
        (soft_bootstrapping, "beta", [-0.1, 1.1, np.nan]),
        (focal_loss, "gamma", [-0.5, np.nan]),
    ],
)
def test_parameter_out_of_range(loss, parameter, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{parameter} must be .*; got {value}$"):
            loss(*samples(), **{parameter: value})


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_and_dtypes(name):
    loss = CLASSIFICATION_LOSSES[name]
    logits, labels = samples()
    for bad in (logits[0], logits[None], logits.long()):
        with pytest.raises(ValueError, match="logits must be floating point of shape"):
            loss(bad, labels)
    for bad in (labels[:-1], labels[:, None], labels.double()):
        with pytest.raises(ValueError, match=r"labels must be int64 of shape \(40,\)"):
            loss(logits, bad)


def test_a_logit_of_minus_infinity_on_another_class():
    """As 16 bits make of -7e4: it says nothing about this label."""
    logits = torch.tensor([[4.0, 2.0, -torch.inf]], requires_grad=True)
    for loss in CLASSIFICATION_LOSSES.values():
        (gradient,) = torch.autograd.grad(loss(logits, torch.tensor([0])).sum(), logits)
        assert loss(logits, torch.tensor([0])).isfinite().all()
        assert gradient.isfinite().all()
