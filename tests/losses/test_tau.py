"""The strategies for tau and the module that holds one: updates, state and arguments."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from sl_detectron.losses import (
    AverageTau,
    ConstantTau,
    ExpAverageTau,
    SuperLoss,
    superloss,
    superloss_with_confidence,
)

RUNNING = ["Avg", "ExpAvg"]


def batches(num: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n + 1, generator=generator) * 4 for n in range(num)]


@pytest.mark.parametrize("tau", RUNNING)
def test_running_tau_against_numpy(tau):
    criterion = SuperLoss(tau, momentum=0.8)
    seen, expected = [], None
    for losses in batches():
        values = losses.double().numpy()
        used = values.mean() if expected is None else expected
        torch.testing.assert_close(criterion(losses), superloss(losses, float(used), 0.25))
        seen.append(values)
        expected = np.concatenate(seen).mean() if tau == "Avg" else 0.8 * used + 0.2 * values.mean()
        assert math.isclose(criterion.tau.item(), expected, rel_tol=1e-14)


@pytest.mark.parametrize("tau", RUNNING)
def test_the_first_batch_uses_its_own_mean_even_if_that_is_zero(tau):
    criterion = SuperLoss(tau, momentum=0.5)
    assert criterion.tau.isnan()
    assert (criterion(torch.tensor([-1.0, 1.0])) < torch.tensor([0.0, 1.0])).all()
    assert criterion.tau == 0
    _, sigma = criterion.with_confidence(torch.tensor([0.0]))
    assert sigma == 1
    criterion(torch.tensor([4.0]))
    # A tau of 0 is a tau: the third batch does not start over.
    assert criterion.tau == (1.0 if tau == "Avg" else 2.0)


@pytest.mark.parametrize("tau", RUNNING)
def test_only_finite_losses_in_the_mask_count(tau):
    criterion, plain = SuperLoss(tau), SuperLoss(tau)
    for losses in batches():
        noisy = torch.cat([losses, torch.tensor([math.nan, math.inf, -math.inf, 100.0])])
        mask = noisy != 100
        value, sigma = criterion.with_confidence(noisy, mask)
        torch.testing.assert_close(value[: len(losses)], plain(losses))
        assert value[-1] == 100
        assert sigma[-1] == 1
        assert torch.equal(criterion.tau, plain.tau)
        assert torch.equal(criterion.threshold.count, plain.threshold.count)


@pytest.mark.parametrize("tau", RUNNING)
@pytest.mark.parametrize(
    "empty", [torch.zeros(0), torch.tensor([math.nan, math.inf]), torch.zeros(0, 3)]
)
def test_batches_without_a_loss_change_nothing(tau, empty):
    criterion = SuperLoss(tau)
    leaf = empty.clone().requires_grad_()
    criterion(leaf).sum().backward()
    assert leaf.grad.shape == empty.shape
    assert criterion.tau.isnan()
    criterion(torch.tensor([1.0, 3.0]))
    assert criterion.tau == 2
    criterion(empty)
    assert criterion.tau == 2


@pytest.mark.parametrize("tau", RUNNING)
def test_evaluation_reads_but_does_not_learn(tau):
    criterion = SuperLoss(tau).eval()
    losses = torch.tensor([1.0, 3.0])
    assert torch.equal(criterion(losses), superloss(losses, 2.0, 0.25))
    assert criterion.tau.isnan()
    criterion.train()(losses)
    with torch.no_grad():  # in training mode: a validation loss, statistics of batch norm
        assert torch.equal(criterion(losses + 5), superloss(losses + 5, 2.0, 0.25))
    criterion.eval()
    assert torch.equal(criterion(losses + 5), superloss(losses + 5, 2.0, 0.25))
    assert criterion.tau == 2


@pytest.mark.parametrize(
    ("losses", "mask"),
    [
        (torch.ones(3), torch.ones(4, 3, dtype=torch.bool)),
        (torch.ones(3), torch.ones(3, dtype=torch.int64)),
        (torch.ones(3, dtype=torch.int64), None),
    ],
)
def test_a_refused_call_leaves_no_trace(losses, mask):
    criterion = SuperLoss("Avg")
    with pytest.raises(ValueError, match=r"mask|floating point"):
        criterion(losses, mask)
    assert criterion.tau.isnan()


def test_constant_survives_the_meta_device_and_its_readers():
    with torch.device("meta"):
        criterion = SuperLoss(1.5)
    criterion.to_empty(device="cpu")
    criterion.threshold(torch.ones(1)).add_(5)
    assert criterion.tau == 1.5


def test_average_of_a_billion_losses_still_moves():
    strategy = AverageTau()
    strategy.mean.fill_(1.0)
    strategy.count.fill_(10**9)
    for _ in range(1000):
        strategy(torch.full((10,), 2.0))
    assert strategy.count == 10**9 + 10**4
    assert math.isclose(strategy.tau.item(), 1 + 1e4 / (1e9 + 1e4), rel_tol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_loss_dtype_counts_in_float64(dtype):
    strategy = AverageTau()
    losses = torch.full((3000,), 100.0, dtype=dtype)
    assert strategy(losses) == 100
    assert strategy.tau.dtype == torch.float64


@pytest.mark.parametrize("tau", RUNNING)
def test_resume_goes_on_where_training_stopped(tau):
    straight, first = SuperLoss(tau), SuperLoss(tau)
    for losses in batches()[:3]:
        straight(losses)
        first(losses)
    resumed = SuperLoss(tau)
    resumed.load_state_dict(first.state_dict())
    for losses in batches()[3:]:
        assert torch.equal(resumed(losses), straight(losses))
    assert torch.equal(resumed.tau, straight.tau)


def test_the_config_decides_a_constant_tau_at_resume():
    assert SuperLoss(1.5).state_dict() == {}
    criterion = SuperLoss(2.5)
    criterion.load_state_dict(SuperLoss(1.5).state_dict())
    assert criterion.tau == 2.5


@pytest.mark.parametrize("tau", [*RUNNING, "0.1"])
@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, lambda m: m.to(torch.float16)]
)
def test_a_cast_of_the_model_leaves_tau_alone(tau, cast):
    criterion = SuperLoss(tau)
    criterion(torch.tensor([0.1, 0.2], dtype=torch.float64))
    before, keys = criterion.tau.clone(), list(criterion.state_dict())
    cast(criterion)
    assert criterion.tau.dtype == torch.float64
    assert torch.equal(criterion.tau, before)
    assert list(criterion.state_dict()) == keys


def test_meta_device_and_copies():
    criterion = SuperLoss("Avg")
    criterion(torch.tensor([1.0, 2.0]))
    twin = copy.deepcopy(criterion)
    twin(torch.tensor([30.0]))
    assert criterion.tau == 1.5
    with torch.device("meta"):
        empty = SuperLoss("Avg")
    empty.half()
    assert empty.threshold.mean.is_meta
    empty.to_empty(device="cpu")
    empty.load_state_dict(criterion.state_dict())
    assert empty.tau.dtype == torch.float64
    assert empty.tau == 1.5
    assert criterion.to("meta").threshold.mean.is_meta


def test_tau_is_a_constant_for_autograd():
    losses = torch.tensor([1.0, 3.0], requires_grad=True)
    criterion = SuperLoss("ExpAvg")
    value, sigma = criterion.with_confidence(losses)
    value.sum().backward()
    assert torch.equal(losses.grad, sigma)
    assert not criterion.tau.requires_grad


def test_a_kept_tau_is_not_changed_by_later_batches():
    strategy = ExpAverageTau()
    used = strategy(torch.tensor([1.0]))
    kept = strategy.tau
    strategy(torch.tensor([9.0]))
    assert used == kept == 1


@pytest.mark.parametrize(
    ("tau", "kwargs", "expected"),
    [
        ("logC", {"num_outcomes": 21}, math.log(21)),
        ("1.5", {}, 1.5),
        (0, {}, 0.0),
        (-2.5, {}, -2.5),
    ],
)
def test_constant_tau(tau, kwargs, expected):
    criterion = SuperLoss(tau, 1.0, **kwargs)
    assert isinstance(criterion.threshold, ConstantTau)
    assert criterion.tau.shape == ()
    losses = torch.tensor([0.5, 4.0])
    for _ in range(2):
        value, sigma = criterion.with_confidence(losses)
        expected_value, expected_sigma = superloss_with_confidence(losses, expected, 1.0)
        torch.testing.assert_close(value, expected_value)
        torch.testing.assert_close(sigma, expected_sigma)
    assert criterion.tau == expected


@pytest.mark.parametrize("tau", ["expavg", "", "nan", "inf", math.nan, None, True, [1.0]])
def test_unknown_tau(tau):
    with pytest.raises(ValueError, match="'logC', 'Avg', 'ExpAvg' or a finite number"):
        SuperLoss(tau)


@pytest.mark.parametrize("num_outcomes", [None, 1, 0])
def test_log_c_needs_the_number_of_outcomes(num_outcomes):
    with pytest.raises(ValueError, match="'logC' needs num_outcomes"):
        SuperLoss("logC", num_outcomes=num_outcomes)


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf, "0.25", None, True])
def test_module_lam_out_of_range(lam):
    with pytest.raises(ValueError, match="lam must be a finite number above 0"):
        SuperLoss(1.0, lam)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_momentum_out_of_range(momentum):
    with pytest.raises(ValueError, match="momentum must be"):
        SuperLoss("ExpAvg", momentum=momentum)


def test_the_printed_module_names_its_settings():
    text = repr(SuperLoss("ExpAvg", 0.25, momentum=0.95))
    assert "lam=0.25" in text
    assert "momentum=0.95" in text
    assert "value=1.5" in repr(SuperLoss("1.5"))
