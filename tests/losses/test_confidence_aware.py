"""Introspection, R2D2 reliability, DataParams and multi-task loss: seed eq. 1 to 5."""

import math

import mpmath
import pytest
import torch

from sl_detectron.losses import (
    DataParams,
    MultitaskLoss,
    data_params,
    introspection,
    multitask,
    r2d2_reliability,
)

DOUBLE = torch.float64
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def tensor(*values: float, dtype: torch.dtype = DOUBLE) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


# Around 0.5 the introspection loss changes its formula.
SIGMAS = [10.0**k for k in range(-12, 5)] + [0.3, 0.499999, 0.5, 0.500001, 0.7, 3.0, 88.0, 710.0]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("label", [-1, 1])
@pytest.mark.parametrize("similarity", [0.0, 0.25, 0.5, 1.0])
def test_introspection_is_equation_1(similarity, label, dtype):
    sigma = tensor(*SIGMAS, dtype=dtype)
    losses = introspection(similarity, label, sigma)
    assert losses.dtype == dtype
    with mpmath.workdps(60):
        for s, loss in zip(sigma.tolist(), losses.tolist()):
            exact = mpmath.log((mpmath.exp(s) - 1) / s) - mpmath.mpf(s) * label * similarity
            # What the terms of the sum round to.
            scale = max(abs(exact), min(s, 1))
            assert abs(loss - exact) <= TOLERANCE[dtype] * scale, s


@pytest.mark.parametrize("sigma", [1e-8, 1e-3, 0.3, 0.49, 0.51, 2.0, 60.0])
def test_introspection_gradient(sigma):
    similarity = tensor(0.1, 0.5, 0.9).requires_grad_()
    labels = tensor(1, -1, 1)
    s = torch.full((3,), sigma, dtype=DOUBLE, requires_grad=True)
    losses = introspection(similarity, labels, s)
    by_similarity, by_sigma = torch.autograd.grad(losses.sum(), (similarity, s))
    torch.testing.assert_close(by_similarity, -sigma * labels, rtol=1e-12, atol=0)
    with mpmath.workdps(40):
        exact = 1 / (1 - mpmath.exp(-sigma)) - 1 / mpmath.mpf(sigma)
    expected = float(exact) - (labels * similarity).detach()
    torch.testing.assert_close(by_sigma, expected, rtol=1e-12, atol=1e-13)
    if sigma > 1e-3:  # a numerical gradient would leave the domain
        assert torch.autograd.gradcheck(lambda a, b: introspection(a, labels, b), (similarity, s))


def test_introspection_limits():
    assert introspection(0.3, 1, tensor(1e-300)).abs() < 1e-299
    assert introspection(0.3, 1, 1e30) == pytest.approx(0.7e30)
    huge = torch.tensor(1e38, requires_grad=True)
    loss = introspection(1.0, 1, huge)
    loss.backward()
    assert loss.item() == pytest.approx(-38 * math.log(10))
    assert huge.grad.isfinite()


def test_r2d2_is_equation_2():
    ap = torch.linspace(0, 1, 5, dtype=DOUBLE).requires_grad_()
    sigma = tensor(0, 0.3, 1)[:, None].requires_grad_()
    losses = r2d2_reliability(ap, sigma)
    for i, s in enumerate([0, 0.3, 1]):
        for j, a in enumerate([0, 0.25, 0.5, 0.75, 1]):
            assert losses[i, j].item() == pytest.approx(s * (1 - a) + (1 - s) / 2, abs=1e-15)
    assert torch.equal(losses[:, 2], torch.full((3,), 0.5, dtype=DOUBLE))
    inside = (ap.detach() * 0.8 + 0.1).requires_grad_(), tensor(0.2, 0.5)[:, None].requires_grad_()
    assert torch.autograd.gradcheck(r2d2_reliability, inside)


def logits_and_labels(num: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num, 4, generator=generator, dtype=DOUBLE) * 3
    return logits, torch.randint(4, (num,), generator=generator)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("sigma", [1e-6, 0.5, 1.0, 20.0])
def test_data_params_is_equation_3(sigma, dtype):
    logits, labels = logits_and_labels()
    logits = logits.to(dtype)
    losses = data_params(logits, labels, sigma, lam=0.3)
    assert losses.dtype == dtype
    for z, y, loss in zip(logits.tolist(), labels.tolist(), losses.tolist()):
        powers = [mpmath.exp(mpmath.mpf(sigma) * value) for value in z]
        exact = -mpmath.log(powers[y] / sum(powers)) + 0.3 * mpmath.log(sigma) ** 2
        assert abs(loss - exact) <= TOLERANCE[dtype] * max(1, abs(exact)) * max(1, sigma)


def test_data_params_limits_are_equation_4():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 1.0]], requires_grad=True)
    labels = torch.zeros(3, dtype=torch.int64)
    sigma = torch.full((3,), 3e38, requires_grad=True)
    losses = data_params(logits, labels, sigma)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0, math.inf, math.log(2)])
    assert logits.grad.isfinite().all()
    assert sigma.grad.isfinite().all()
    small = data_params(logits, labels, 1e-30)
    torch.testing.assert_close(small, torch.full((3,), math.log(2)))


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_multitask_is_equation_5(lead):
    generator = torch.Generator().manual_seed(2)
    losses = torch.rand(*lead, 3, generator=generator, dtype=DOUBLE) * 9
    sigma = tensor(0.2, 1, 7)
    expected = sum(losses[..., i] / (2 * sigma[i] ** 2) + math.log(sigma[i]) for i in range(3))
    torch.testing.assert_close(multitask(losses, sigma), expected, rtol=1e-14, atol=1e-14)
    leaves = losses.requires_grad_(), sigma.requires_grad_()
    assert torch.autograd.gradcheck(multitask, leaves)


def test_multitask_module_equals_function():
    criterion = MultitaskLoss(3, init_sigma=0.5).double()
    losses = tensor(0.1, 2, 30)
    assert criterion.sigma().tolist() == pytest.approx([0.5] * 3)
    torch.testing.assert_close(criterion(losses), multitask(losses, criterion.sigma()))
    optimizer = torch.optim.LBFGS(criterion.parameters(), line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(losses)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    # The minimum that the docstring gives.
    torch.testing.assert_close(criterion.sigma(), losses.sqrt(), rtol=1e-5, atol=0)
    least = ((1 + losses.log()) / 2).sum()
    torch.testing.assert_close(criterion(losses).detach(), least)


def test_multitask_extremes_stay_finite():
    criterion = MultitaskLoss(2)
    with torch.no_grad():
        criterion.log_variance.copy_(torch.tensor([180.0, 80.0]))
    loss = criterion(torch.tensor([1.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(130)
    assert criterion.log_variance.grad.isfinite().all()
    assert multitask(torch.tensor([1e-20]), torch.tensor([1e-25])).isfinite()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: introspection(w(1.1), 1, 1.0), r"similarity must be in \[0, 1\]"),
        (lambda w: introspection(w(-0.1), 1, 1.0), r"similarity must be in \[0, 1\]"),
        (lambda w: introspection(0.5, w(0.0), 1.0), "labels must be -1 or 1"),
        (lambda w: introspection(0.5, 1, w(0.0)), "sigma must be above 0"),
        (lambda w: r2d2_reliability(w(1.5), 0.5), r"average_precision must be in \[0, 1\]"),
        (lambda w: r2d2_reliability(0.5, w(-0.5)), r"sigma must be in \[0, 1\]"),
        (lambda w: data_params(*logits_and_labels(), w(-1.0)), "sigma must be above 0"),
    ],
)
def test_outside_the_domain(call, message):
    with pytest.raises(ValueError, match=message + "; got"):
        call(float)
    with pytest.raises(RuntimeError, match=message):
        call(lambda value: tensor(0.5 if "sigma" in message else 1.0, value)[1])


def test_outside_the_domain_of_arrays():
    with pytest.raises(RuntimeError, match="losses must be at least 0"):
        multitask(tensor(1, -1), tensor(1, 1))
    with pytest.raises(RuntimeError, match="losses must be at least 0"):
        MultitaskLoss(2)(tensor(1, -1))
    with pytest.raises(RuntimeError, match="sigma must be above 0"):
        multitask(tensor(1, 1), tensor(1, 0))
    with pytest.raises(ValueError, match=r"one entry for each of the 3 sigmas.*got shape \(2,\)"):
        multitask(tensor(1, 1), tensor(1, 1, 1))
    with pytest.raises(ValueError, match="lam must be finite and at least 0; got -1"):
        data_params(*logits_and_labels(), 1.0, lam=-1)
    with pytest.raises(ValueError, match=r"sigma must be a number or of shape \(12,\)"):
        data_params(*logits_and_labels(), torch.ones(3))
    for bad in ({}, {"num_samples": 0}, {"num_classes": 2, "lam": math.nan}):
        with pytest.raises(ValueError, match="must be"):
            DataParams(**bad)
    for bad in (0, 21, math.nan):
        with pytest.raises(ValueError, match=r"init_temperature must be in \[1/20, 20\]"):
            DataParams(3, init_temperature=bad)
    for bad in (0, math.inf, math.nan):
        with pytest.raises(ValueError, match="init_sigma must be"):
            MultitaskLoss(2, init_sigma=bad)


class TestDataParamsModule:
    ids = torch.tensor([0, 3, -1, 3])
    labels = torch.tensor([1, 2, 0, 1])

    def logits(self) -> torch.Tensor:
        return logits_and_labels(4)[0]

    def module(self, **kwargs) -> DataParams:
        module = DataParams(lam=0.2, **kwargs).double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return module

    def test_samples_equal_the_function(self):
        module = self.module(num_samples=5)
        log = module.log_sample_temperature.detach()
        sigma = torch.stack([(-log[0]).exp(), (-log[3]).exp(), tensor(1)[0], (-log[3]).exp()])
        expected = data_params(self.logits(), self.labels, sigma, 0.2)
        torch.testing.assert_close(module(self.logits(), self.labels, self.ids), expected)
        torch.testing.assert_close(module.sigma(self.labels, self.ids), sigma)

    def test_classes_equal_the_function(self):
        module = self.module(num_classes=4)
        sigma = (-module.log_class_temperature.detach()).exp()[self.labels]
        expected = data_params(self.logits(), self.labels, sigma, 0.2)
        torch.testing.assert_close(module(self.logits(), self.labels), expected)
        sigma[2] = 1
        expected = data_params(self.logits(), self.labels, sigma, 0.2)
        torch.testing.assert_close(module(self.logits(), self.labels, self.ids), expected)

    def test_both_add_their_temperatures(self):
        module = self.module(num_samples=5, num_classes=4)
        by_sample = module.log_sample_temperature.detach()[self.ids]
        by_class = module.log_class_temperature.detach()[self.labels]
        sigma = 1 / (by_sample.exp() + by_class.exp())
        sigma[2] = 1
        penalty = 0.2 * (by_sample**2 + by_class**2)
        penalty[2] = 0
        expected = data_params(self.logits(), self.labels, sigma) + penalty
        torch.testing.assert_close(module(self.logits(), self.labels, self.ids), expected)

    def test_fresh_module_is_cross_entropy(self):
        losses = DataParams(5)(self.logits(), self.labels, self.ids)
        plain = torch.nn.functional.cross_entropy(self.logits(), self.labels, reduction="none")
        torch.testing.assert_close(losses, plain)

    def test_only_samples_of_the_batch_learn(self):
        module = self.module(num_samples=5)
        module(self.logits(), self.labels, self.ids).sum().backward()
        assert (module.log_sample_temperature.grad != 0).tolist() == [
            True,
            False,
            False,
            True,
            False,
        ]
        before = module.log_sample_temperature.detach().clone()
        optimizer = torch.optim.SGD([module.param_group()], lr=0.1, momentum=0.9)
        optimizer.step()
        moved = before != module.log_sample_temperature
        optimizer.zero_grad()
        module(self.logits()[:1], self.labels[:1], self.ids[:1]).sum().backward()
        after_one = module.log_sample_temperature.detach().clone()
        optimizer.step()
        assert moved.tolist() == [True, False, False, True, False]
        # Sample 3 is not in the second batch, so no momentum moves it.
        assert after_one[3] == module.log_sample_temperature[3]
        assert after_one[0] != module.log_sample_temperature[0]

    def test_wrong_labels_get_low_confidence(self):
        logits = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
        labels, ids = torch.tensor([0, 1]), torch.tensor([0, 1])
        module = DataParams(2)
        optimizer = torch.optim.SGD([module.param_group(lr=0.5)])
        for _ in range(200):
            optimizer.zero_grad()
            module(logits, labels, ids).mean().backward()
            optimizer.step()
        assert module.training
        module(logits, labels, ids)  # brings the last step back into the range
        right, wrong = module.sigma(labels, ids)
        assert right > 1.5
        assert wrong == pytest.approx(1 / 20)

    def test_range_only_in_training(self):
        module = DataParams(2).eval()
        with torch.no_grad():
            module.log_sample_temperature.fill_(9.0)
        arguments = torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0])
        module(*arguments)
        assert (module.log_sample_temperature == 9).all()
        module.train()
        module(*arguments)
        torch.testing.assert_close(
            module.log_sample_temperature.detach(), torch.full((2,), math.log(20))
        )

    def test_state_dict_and_errors(self):
        module = self.module(num_samples=5, num_classes=4)
        assert set(module.state_dict()) == {"log_sample_temperature", "log_class_temperature"}
        assert set(DataParams(num_classes=3).state_dict()) == {"log_class_temperature"}
        with pytest.raises(ValueError, match="ids must be given"):
            module(self.logits(), self.labels)
        with pytest.raises(ValueError, match="ids must be int64"):
            module(self.logits(), self.labels, self.ids.double())
        for bad in (-2, 5):
            with pytest.raises(RuntimeError, match=r"ids must be in \[-1, 5\)"):
                module(self.logits(), self.labels, torch.tensor([0, 1, 2, bad]))


def test_a_task_without_loss_does_not_make_nan():
    criterion = MultitaskLoss(num_tasks=2)
    with torch.no_grad():
        criterion.log_variance[0] = -200.0
    value = criterion(torch.tensor([0.0, 1.0]))
    value.backward()
    assert value.isfinite()
    assert criterion.log_variance.grad.isfinite().all()
