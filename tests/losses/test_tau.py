"""The strategies for tau and the module that holds one: updates, state and arguments."""

import math

import pytest
import torch

from sl_detectron.losses import SuperLoss
from sl_detectron.losses.superloss import superloss_with_confidence
from sl_detectron.losses.tau import (
    TAU_STRATEGIES,
    AverageTau,
    ConstantTau,
    ExpAverageTau,
    build_tau,
)

RUNNING = ["Avg", "ExpAvg"]


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


@pytest.mark.parametrize("tau", ["Avg", "ExpAvg"])
def test_only_training_with_gradients_moves_tau(tau):
    """Not an evaluation, and not a forward in training mode under no_grad, as of PreciseBN."""
    criterion = SuperLoss(tau)
    criterion(torch.tensor([1.0, 3.0]))
    state = {key: value.clone() for key, value in criterion.state_dict().items()}
    with torch.no_grad():
        criterion(torch.tensor([50.0]))
    criterion.eval()(torch.tensor([50.0]))
    assert all(torch.equal(value, state[key]) for key, value in criterion.state_dict().items())
    criterion.train()(torch.tensor([50.0]))
    assert criterion.tau > 2


@pytest.mark.parametrize("tau", ["Avg", "ExpAvg"])
def test_only_finite_losses_in_the_mask_count(tau):
    criterion = SuperLoss(tau)
    losses = torch.tensor([1.0, 3.0, math.inf, math.nan, 100.0])
    criterion(losses, mask=torch.tensor([True, True, True, True, False]))
    assert criterion.tau == 2
    # A batch without any leaves tau where it is.
    criterion(losses, mask=torch.zeros(5, dtype=torch.bool))
    assert criterion.tau == 2
    criterion(torch.tensor([8.0, 8.0, 8.0, 8.0]))
    assert float(criterion.tau) == pytest.approx({"Avg": 6.0, "ExpAvg": 0.9 * 2 + 0.1 * 8}[tau])


def test_average_of_a_billion_losses_still_moves():
    strategy = AverageTau()
    strategy.mean.fill_(1.0)
    strategy.count.fill_(10**9)
    for _ in range(1000):
        strategy(torch.full((10,), 2.0))
    assert strategy.count == 10**9 + 10**4
    assert math.isclose(strategy.tau.item(), 1 + 1e4 / (1e9 + 1e4), rel_tol=1e-14)


def test_the_config_decides_a_constant_tau_at_resume():
    assert SuperLoss(1.5).state_dict() == {}
    criterion = SuperLoss(2.5)
    criterion.load_state_dict(SuperLoss(1.5).state_dict())
    assert criterion.tau == 2.5


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


def test_strategies_take_the_same_arguments_under_their_names():
    for name, strategy in TAU_STRATEGIES.items():
        assert strategy.__name__ == name
        by_name = build_tau(name, num_outcomes=7, momentum=0.5)
        assert repr(by_name) == repr(strategy(num_outcomes=7, momentum=0.5))
    assert build_tau("logC", num_outcomes=7).tau == math.log(7)
    assert build_tau("ExpAvg", momentum=0.5).momentum == 0.5


def test_a_custom_module_is_taken_as_it_is():
    module = AverageTau()
    criterion, twin = SuperLoss(module), SuperLoss(module)
    assert criterion.threshold is module
    criterion(torch.tensor([1.0, 3.0]))
    assert twin.tau == 2
    assert set(criterion.state_dict()) == {"threshold.mean", "threshold.count"}
    with pytest.raises(ValueError, match=r"tau must be a module with an attribute `tau`.*Linear"):
        SuperLoss(torch.nn.Linear(1, 1))


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
