"""What the paper proves about the SuperLoss, for losses, tau and lambda at random."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from sl_detectron.losses import confidence, superloss
from sl_detectron.losses.superloss import superloss_with_confidence

EXAMPLES = settings(max_examples=60, deadline=None)
# Of the order of real losses and of the lambdas of the paper, and far beyond.
TAUS = st.floats(-20, 20)
LAMS = st.floats(1e-3, 1e3)
BETAS = st.lists(st.floats(-5, 1e4), min_size=1, max_size=30)


def as_losses(betas: list[float], tau: float, lam: float) -> torch.Tensor:
    return tau + lam * torch.tensor(betas, dtype=torch.float64)


@EXAMPLES
@given(st.floats(-0.73, 1e4), TAUS, LAMS)
def test_minimises_equation_6(beta, tau, lam):
    loss = tau + lam * beta
    # In x = log(sigma); the local minimum of a beta below 0 lies in [0, 1].
    bounds = (-12.0, 1.0) if beta >= 0 else (0.0, 1.0)
    result = minimize_scalar(
        lambda x: math.exp(x) * beta + x * x,
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-9},
    )
    value, sigma = superloss_with_confidence(torch.tensor([loss], dtype=torch.float64), tau, lam)
    # A flat minimum fixes its place to half of the digits, and its value to all.
    assert math.isclose(math.log(sigma.item()), result.x, abs_tol=2e-3 if beta < -0.7 else 1e-5)
    assert math.isclose(value.item() / lam, result.fun, rel_tol=1e-7, abs_tol=1e-7)


@EXAMPLES
@given(BETAS, TAUS, LAMS)
def test_value_is_equation_6_at_sigma(betas, tau, lam):
    losses = as_losses(betas, tau, lam)
    value, sigma = superloss_with_confidence(losses, tau, lam)
    expected = sigma * (losses - tau) + lam * sigma.log() ** 2
    torch.testing.assert_close(value / lam, expected / lam, rtol=1e-12, atol=1e-12)


@EXAMPLES
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0, 5), st.floats(1e4, 1e30))
def test_lemma_1_large_lambda_gives_the_loss_minus_tau(losses, tau, lam):
    for dtype, rounding in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        tensor = torch.tensor(losses, dtype=dtype)
        distance = tensor.double() - tau
        value, sigma = superloss_with_confidence(tensor, tau, lam)
        # The next term of the series: sigma = 1 - beta / 2, SL = distance - distance^2 / (4 * lam).
        assert ((sigma.double() - 1).abs() <= distance.abs() / lam + rounding).all()
        bound = distance**2 / lam + rounding * distance.abs()
        assert ((value.double() - distance).abs() <= bound + 1e-30).all()


@EXAMPLES
@given(BETAS, TAUS, LAMS, st.integers(-20, 20))
def test_lemma_2_homogeneous(betas, tau, lam, exponent):
    losses, gamma = as_losses(betas, tau, lam), 2.0**exponent
    value, sigma = superloss_with_confidence(losses, tau, lam)
    scaled_value, scaled_sigma = superloss_with_confidence(gamma * losses, gamma * tau, gamma * lam)
    torch.testing.assert_close(scaled_sigma, sigma, rtol=1e-13, atol=0)
    torch.testing.assert_close(scaled_value / gamma / lam, value / lam, rtol=1e-13, atol=1e-13)


@EXAMPLES
@given(st.floats(-5, 100), TAUS, LAMS)
def test_envelope_theorem(beta, tau, lam):
    loss, step = tau + lam * beta, lam * 1e-4
    losses = torch.tensor([loss - step, loss, loss + step], dtype=torch.float64)
    value, sigma = superloss_with_confidence(losses, tau, lam)
    difference = (value[2] - value[0]) / (losses[2] - losses[0])
    # SL is concave, so its secant lies between the slopes at its ends.
    slack = 1e-8 * (1 + abs(tau) / lam)
    assert sigma[2] - slack <= difference <= sigma[0] + slack


@EXAMPLES
@given(BETAS, TAUS, LAMS)
def test_sigma_falls_and_the_value_grows(betas, tau, lam):
    losses = as_losses(sorted(betas), tau, lam)
    value, sigma = superloss_with_confidence(losses, tau, lam)
    assert (sigma.diff() <= 1e-14 * sigma[:-1]).all()
    assert (value.diff() >= -1e-13 * value[:-1].abs().clamp(min=lam)).all()
    assert (sigma > 0).all()
    assert (sigma <= math.e * (1 + 1e-14)).all()


@EXAMPLES
@given(st.floats(0, 1e6), TAUS, LAMS)
def test_cap_below_the_lower_end(distance, tau, lam):
    lower_end = tau - 2 * lam / math.e
    losses = torch.tensor([lower_end - distance * lam - 1e-9 * lam], dtype=torch.float64)
    value, sigma = superloss_with_confidence(losses, tau, lam)
    assert math.isclose(sigma.item(), math.e, rel_tol=1e-7)
    expected = math.e * (losses.item() - tau) + lam
    assert math.isclose(value.item(), expected, rel_tol=1e-9, abs_tol=1e-9 * lam)


@EXAMPLES
@given(st.floats(-0.999999, 1), TAUS, LAMS)
def test_equation_6_is_convex_at_sigma(position, tau, lam):
    # In x = log(sigma) the second derivative over lam, beta * exp(x) + 2, is 0 at the cap only.
    beta = position * 2 / math.e
    loss = torch.tensor([tau + lam * beta], dtype=torch.float64)
    sigma = confidence(loss, tau, lam).item()
    assert beta * sigma + 2 > 0
    assert abs(beta * sigma + 2 * math.log(sigma)) < 1e-5


@EXAMPLES
@given(TAUS, LAMS)
def test_sigma_is_1_at_tau(tau, lam):
    for dtype in (torch.float32, torch.float64):
        losses = torch.tensor([tau], dtype=dtype)
        value, sigma = superloss_with_confidence(losses, losses.double()[0], lam)
        assert abs(sigma.item() - 1) <= 4 * torch.finfo(dtype).eps
        assert abs(value.item()) <= 4 * torch.finfo(dtype).eps * lam


@EXAMPLES
@given(BETAS, TAUS, LAMS, st.randoms(use_true_random=False))
def test_order_does_not_matter(betas, tau, lam, random):
    losses = as_losses(betas, tau, lam)
    order = torch.tensor(random.sample(range(len(betas)), len(betas)))
    torch.testing.assert_close(
        superloss(losses[order], tau, lam), superloss(losses, tau, lam)[order], rtol=1e-14, atol=0
    )
