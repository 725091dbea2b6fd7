"""Values, gradients and errors of the SuperLoss functions, against mpmath and by hand."""

import math

import mpmath
import numpy as np
import pytest
import torch

from sl_detectron.losses import SuperLoss, confidence, superloss
from sl_detectron.losses.superloss import superloss_with_confidence

E = math.e
# Relative error of sigma, and of SL in units of max(|SL|, lam).
TOLERANCE = {torch.float32: (1e-6, 1e-6), torch.float64: (1e-14, 2e-14)}


def reference(loss: float, tau: float, lam: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """SL and sigma with 40 digits, by the formula of the paper (eq. 10)."""
    with mpmath.workdps(40):
        distance = mpmath.mpf(loss) - mpmath.mpf(tau)
        half_beta = distance / mpmath.mpf(lam) / 2
        capped = half_beta <= -mpmath.exp(-1)
        w = mpmath.mpf(-1) if capped else mpmath.lambertw(half_beta).real
        sigma = mpmath.exp(-w)
        return sigma * distance + lam * w**2, sigma


def sample_losses(tau: float, lam: float, dtype: torch.dtype) -> torch.Tensor:
    """Losses from below the cap to beta = 1e30, dense where sigma is hard: cap and tau."""
    rng = np.random.default_rng(0)
    low = tau - 2 * lam / E
    offsets = [
        low + lam * 10 ** rng.uniform(-12, 30, 700),
        low + lam * 10 ** rng.uniform(-7, 0, 300),
        low - lam * 10 ** rng.uniform(-12, 3, 100),
        tau + lam * 10 ** rng.uniform(-12, 0, 100),
        tau - lam * 10 ** rng.uniform(-12, -0.2, 100),
    ]
    return torch.tensor(np.concatenate(offsets), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("tau", "lam"), [(0.0, 1.0), (math.log(21), 0.25), (1.3, 10.0), (100.3, 0.01), (-3.0, 1000.0)]
)
def test_accuracy(dtype, as_tensor, tau, lam):
    losses = sample_losses(tau, lam, dtype)
    wrap = (lambda x: torch.tensor(x, dtype=torch.float64)) if as_tensor else float
    values, sigmas = superloss_with_confidence(losses, wrap(tau), wrap(lam))
    assert values.dtype == sigmas.dtype == dtype
    sigma_bar, value_bar = TOLERANCE[dtype]
    for loss, value, sigma in zip(losses.tolist(), values.tolist(), sigmas.tolist()):
        exact_value, exact_sigma = reference(loss, tau, lam)
        assert abs(sigma / exact_sigma - 1) <= sigma_bar, loss
        assert abs(value - exact_value) <= value_bar * max(abs(exact_value), lam), loss
    assert sigmas.max() <= E * (1 + 1e-6)


def test_values_by_hand():
    # beta / 2 = w * exp(w) for a chosen w gives sigma = exp(-w) and SL = lam * (w^2 + 2 * w).
    w = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 5.0], dtype=torch.float64)
    tau, lam = 1.5, 0.5
    losses = tau + 2 * lam * w * w.exp()
    value, sigma = superloss_with_confidence(losses, tau, lam)
    torch.testing.assert_close(sigma[1:], (-w[1:]).exp(), rtol=1e-13, atol=0)
    torch.testing.assert_close(value, lam * (w**2 + 2 * w), rtol=1e-13, atol=1e-15)
    # The square root at the cap makes half of the digits of the loss itself visible.
    torch.testing.assert_close(sigma[0].item(), E, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_16_bits_are_computed_in_float32(dtype, autocast):
    losses = torch.linspace(-1, 30, 200).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, sigma = superloss_with_confidence(losses, 1.25, 0.25)
        wide_value, wide_sigma = superloss_with_confidence(losses.float(), 1.25, 0.25)
    assert value.dtype == sigma.dtype == dtype
    assert wide_value.dtype == torch.float32
    assert torch.equal(value, wide_value.to(dtype))
    assert torch.equal(sigma, wide_sigma.to(dtype))
    (grad,) = torch.autograd.grad(value.sum(), losses)
    assert torch.equal(grad, sigma)
    assert torch.equal(wide_value, superloss(losses.detach().float(), 1.25, 0.25))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_non_finite_losses(dtype):
    losses = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=dtype, requires_grad=True)
    value, sigma = superloss_with_confidence(losses, 1.0, 0.25)
    (grad,) = torch.autograd.grad(value.sum(), losses)
    for weight in (sigma, grad):
        assert weight[0].isnan()
        assert weight[1] == 0
        torch.testing.assert_close(weight[2].item(), E, rtol=4e-3, atol=0)
        assert weight[3] == 1
    assert value[0].isnan()
    assert value[1] == math.inf
    assert value[2] == -math.inf
    assert value[3] == 0


def test_largest_finite_losses_stay_finite():
    losses = torch.tensor([1e30, 1e36, 3e38])
    value, sigma = superloss_with_confidence(losses, 0.0, 1.0)
    assert value.isfinite().all()
    assert (value.diff() >= 0).all()
    assert (sigma >= 0).all()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_empty_losses_keep_a_gradient(shape):
    losses = torch.zeros(shape, requires_grad=True)
    total = superloss(losses, 1.0, 0.25).sum()
    total.backward()
    assert total == 0
    assert losses.grad.shape == shape


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
def test_shape_and_strides(shape):
    losses = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4
    value = superloss(losses, 1.0, 0.25)
    assert value.shape == losses.shape
    transposed = superloss(losses.mT if losses.dim() > 1 else losses, 1.0, 0.25)
    assert torch.equal(transposed.mT if losses.dim() > 1 else transposed, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_inputs_equal_their_parts(dtype):
    generator = torch.Generator().manual_seed(2)
    losses = torch.rand(3, 70_001, generator=generator, dtype=dtype) * 6
    whole = superloss_with_confidence(losses, 1.0, 0.25)
    strided = superloss_with_confidence(losses.t().contiguous().t(), 1.0, 0.25)
    parts = [superloss_with_confidence(p, 1.0, 0.25) for p in losses.split(1000, dim=1)]
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    for i in range(2):
        torch.testing.assert_close(whole[i], torch.cat([p[i] for p in parts], 1), **tolerance)
        torch.testing.assert_close(whole[i], strided[i], **tolerance)


def test_arguments_stay_as_they_are():
    losses, tau, lam = torch.rand(5), torch.tensor(0.5), torch.tensor(0.25)
    before = losses.clone()
    superloss(losses, tau, lam)
    assert torch.equal(losses, before)
    assert tau == 0.5
    assert lam == 0.25


def test_gradient_is_sigma_times_upstream():
    losses = (torch.rand(50, dtype=torch.float64) * 5).requires_grad_()
    upstream = torch.randn(50, dtype=torch.float64)
    value, sigma = superloss_with_confidence(losses, 1.0, 0.25)
    value.backward(upstream)
    assert torch.equal(losses.grad, upstream * sigma)
    assert not sigma.requires_grad
    assert not confidence(losses, 1.0, 0.25).requires_grad


def test_backward_keeps_one_tensor():
    kept = []
    losses = torch.rand(10, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, sigma = superloss_with_confidence(losses, 0.5, 0.25)
    assert len(kept) == 1
    assert torch.equal(kept[0], sigma)


@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("lam", [0.5, torch.tensor(0.5)])
def test_gradcheck(use_mask, lam):
    # From the flat part below the cap at 0.73 upwards, but not across its kink in sigma.
    losses = torch.cat([torch.linspace(-1, 0.7, 10), torch.linspace(0.8, 4, 20)]).double()
    losses.requires_grad_()
    mask = torch.arange(30) % 3 == 0 if use_mask else None

    def function(losses: torch.Tensor) -> torch.Tensor:
        return superloss_with_confidence(losses, 1.1, lam, mask)[0]

    assert torch.autograd.gradcheck(function, losses)
    assert torch.autograd.gradgradcheck(function, losses)


@pytest.mark.parametrize("mask_shape", [(4, 3), (4, 1), (3,), ()])
def test_mask_leaves_the_other_losses_plain(mask_shape):
    generator = torch.Generator().manual_seed(1)
    losses = (torch.rand(4, 3, generator=generator) * 4).requires_grad_()
    mask = torch.rand(mask_shape, generator=generator) > 0.5
    value, sigma = superloss_with_confidence(losses, 1.0, 0.25, mask)
    inside = mask.expand(4, 3)
    expected = superloss(losses, 1.0, 0.25)
    assert torch.equal(value[inside], expected[inside])
    assert torch.equal(value[~inside], losses[~inside])
    assert torch.equal(sigma[inside], confidence(losses, 1.0, 0.25)[inside])
    assert (sigma[~inside] == 1).all()
    (grad,) = torch.autograd.grad(value.sum(), losses)
    assert torch.equal(grad, sigma)


@pytest.mark.parametrize("lam", [0, -1.0, math.nan, math.inf, "large", None, torch.ones(2)])
def test_lam_out_of_range(lam):
    with pytest.raises(ValueError, match="lam must be"):
        superloss(torch.rand(3), 1.0, lam)


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf])
def test_lam_tensor_out_of_range(lam):
    with pytest.raises(RuntimeError, match="lam must be above 0"):
        superloss(torch.rand(3), 1.0, torch.tensor(lam))
    with pytest.raises(ValueError, match="lam must be a finite number above 0"):
        SuperLoss(1.0, torch.tensor(lam))


def test_lam_of_the_module_may_be_a_tensor():
    assert SuperLoss(1.0, torch.tensor(0.25)).lam == 0.25


def test_large_batches_stay_on_their_device():
    losses = torch.rand(3 * 2**16)
    with torch.device("meta"):
        value, sigma = superloss_with_confidence(losses, 0.5, 0.25)
    assert value.device == sigma.device == losses.device
    assert torch.equal(value[:10], superloss(losses[:10], 0.5, 0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_second_derivative_in_16_bits(dtype):
    tau, lam = 1.0, 0.25
    losses = torch.tensor([-3.0, 0.9, 1.0, 1.5, 4.0])
    second = []
    for x in (losses.to(dtype), losses.double()):
        x.requires_grad_()
        (first,) = torch.autograd.grad(superloss(x, tau, lam).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.sum(), x)[0].double())
    torch.testing.assert_close(*second, rtol=0.05, atol=0)


@pytest.mark.parametrize("tau", [math.nan, math.inf, "high", None, torch.ones(2)])
def test_tau_out_of_range(tau):
    with pytest.raises(ValueError, match="tau must be"):
        superloss(torch.rand(3), tau, 1.0)


def test_losses_and_mask_out_of_range():
    with pytest.raises(ValueError, match="floating point"):
        superloss(torch.arange(3), 1.0, 1.0)
    with pytest.raises(ValueError, match="mask must be bool"):
        superloss_with_confidence(torch.rand(3), 1.0, 1.0, torch.ones(3))
    for shape in [(4,), (2, 3), (1, 3)]:
        with pytest.raises(ValueError, match="does not broadcast"):
            superloss_with_confidence(torch.rand(3), 1.0, 1.0, torch.ones(shape) > 0)
