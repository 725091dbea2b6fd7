"""What every per-sample loss and every strategy for tau does; helpers/loss_cases.py lists them."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.detectors import run_ranks
from helpers.loss_cases import AVERAGES, CASES, EQUATIONS, LAM, TAUS, make_inputs
from sl_detectron import losses as sl
from sl_detectron.losses.superloss import superloss_with_confidence

every_loss = pytest.mark.parametrize("name", CASES)
every_width = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
# Before torch 2.3 an autograd function of the SuperLoss's form, and a call of torch.promote_types,
# did not compile; torch.jit.script did not read `Tensor | None` in 2.1.
can_compile = hasattr(torch.compiler, "is_compiling")
every_tau = pytest.mark.parametrize("name", TAUS)


def floats(inputs: list[Tensor]) -> list[Tensor]:
    return [x for x in inputs if x.is_floating_point()]


def test_every_public_loss_is_here():
    forms = {"confidence", "superloss_with_confidence"}  # of the superloss: test_superloss.py
    assert {name for name in sl.__all__ if not name.endswith("Tau")} - forms <= set(CASES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", EQUATIONS)
def test_loss_is_its_equation(name, dtype):
    inputs = make_inputs(name, 40, dtype)
    losses = CASES[name].build()(*inputs)
    assert losses.shape == (40,)
    assert losses.dtype == dtype
    samples = zip(*(x.detach().double() if x.is_floating_point() else x for x in inputs))
    expected = [EQUATIONS[name](*(x.numpy() for x in sample)) for sample in samples]
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.per_sample])
def test_a_sample_does_not_see_the_others(name):
    loss, inputs = CASES[name].build(), make_inputs(name)
    alone = [loss(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))]
    torch.testing.assert_close(loss(*inputs), torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.function])
def test_module_is_its_function(name):
    module, inputs = CASES[name].build().double(), make_inputs(name)
    torch.testing.assert_close(module(*inputs), CASES[name].function(module, *inputs))


@every_loss
def test_gradient_is_the_numerical_one(name):
    loss, inputs = CASES[name].build(), make_inputs(name)
    parameters = list(loss.double().parameters()) if isinstance(loss, nn.Module) else []
    leaves = [*floats(inputs), *parameters]
    # gradcheck moves the leaves where they are, so what it passes on is not needed.
    assert torch.autograd.gradcheck(lambda *_: loss(*inputs), leaves)


@pytest.mark.parametrize("autocast", [False, True])
@every_width
@every_loss
def test_16_bits_are_computed_in_float32(name, dtype, autocast):
    loss, inputs = CASES[name].build(), make_inputs(name, dtype=dtype)
    wide_inputs = [x.float() if x.is_floating_point() else x for x in inputs]
    wide = loss(*wide_inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = loss(*inputs)
    assert wide.dtype == torch.float32
    assert losses.dtype == (dtype if CASES[name].keeps_dtype else torch.float32)
    assert torch.equal(losses, wide.to(losses.dtype))


@every_loss
def test_empty_batch_keeps_a_gradient(name):
    loss, inputs = CASES[name].build(), make_inputs(name, 0)
    losses = loss(*inputs)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert all(x.grad.shape == x.shape for x in floats(inputs))
    parameters = loss.parameters() if isinstance(loss, nn.Module) else []
    assert all((p.grad == 0).all() for p in parameters)


@every_loss
def test_nan_stays_nan_and_with_its_sample(name):
    loss = CASES[name].build()
    for i, given in enumerate(make_inputs(name)):
        if given.is_floating_point():
            inputs = make_inputs(name)
            with torch.no_grad():
                inputs[i][3] = math.nan
            assert loss(*inputs).isnan().nonzero().tolist() == [[3]]


@every_loss
def test_no_value_is_read_back(name):
    """On "meta" there is none to read."""
    loss, inputs = CASES[name].build(), make_inputs(name, device="meta")
    losses = (loss.to("meta") if isinstance(loss, nn.Module) else loss)(*inputs)
    losses.sum().backward()
    assert losses.is_meta


@pytest.mark.skipif(not can_compile, reason="this torch cannot compile the losses")
@every_loss
def test_one_graph_under_compile(name):
    torch._dynamo.reset()
    loss, inputs = CASES[name].build(), make_inputs(name, dtype=torch.float32)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), loss(*inputs))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "labels" in case.names])
def test_wrong_shapes_and_dtypes_of_labelled_losses(name):
    loss = CASES[name].build()
    logits, labels, *rest = make_inputs(name)
    for bad in (logits[0], logits[None], logits.long()):
        with pytest.raises(ValueError, match="logits must be floating point of shape"):
            loss(bad, labels, *rest)
    for bad in (labels[:-1], labels[:, None], labels.double()):
        with pytest.raises(ValueError, match=r"labels must be int64 of shape \(12,\)"):
            loss(logits, bad, *rest)


def make_superloss(name: str) -> tuple[sl.SuperLoss, list[Tensor]]:
    """A SuperLoss, and the list to which each of its calls adds the tau that it used."""
    criterion, used = sl.SuperLoss(TAUS[name](), LAM), []
    criterion.threshold.register_forward_hook(lambda *call: used.append(call[-1]))
    return criterion, used


def make_batches(num: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n + 1, generator=generator) * 4 for n in range(num)]


def assert_same_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0, equal_nan=True)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


@every_tau
def test_tau_is_what_it_says_and_finite(name):
    criterion, used = make_superloss(name)
    for losses in make_batches():
        said, mask = criterion.tau.clone(), losses > 0.1
        value, sigma = criterion.with_confidence(losses, mask)
        tau = used[-1]
        assert tau.shape == said.shape == ()
        assert tau.isfinite()
        if len(used) > 1:
            assert torch.equal(tau, said)
        expected = superloss_with_confidence(losses, tau, LAM, mask)
        assert torch.equal(value, expected[0])
        assert torch.equal(sigma, expected[1])
        assert torch.equal(value[~mask], losses[~mask])
        assert value.isfinite().all()
        assert criterion.tau.isfinite()


@pytest.mark.parametrize("name", AVERAGES)
def test_tau_is_its_average(name):
    criterion, used = make_superloss(name)
    seen: list[np.ndarray] = []
    for losses in make_batches():
        expected = AVERAGES[name](seen or [losses.double().numpy()])
        state = state_of(criterion)
        criterion.eval()(losses)  # reads tau, but does not learn
        with torch.no_grad():  # in training mode: a validation loss, statistics of batch norm
            criterion.train()(losses)
        assert_same_state(criterion, state)
        torch.testing.assert_close(criterion(losses), sl.superloss(losses, expected, LAM))
        assert [tau.item() for tau in used[-3:]] == pytest.approx([expected] * 3, 1e-14, 0)
        seen.append(losses.double().numpy())
        assert criterion.tau.item() == pytest.approx(AVERAGES[name](seen), 1e-14, 0)


@every_tau
def test_tau_is_a_constant_for_autograd(name):
    criterion, _ = make_superloss(name)
    losses = make_batches()[-1].requires_grad_()
    value, sigma = criterion.with_confidence(losses)
    value.sum().backward()
    assert torch.equal(losses.grad, sigma)
    assert not criterion.tau.requires_grad


@every_tau
def test_only_finite_losses_in_the_mask_count(name):
    (criterion, _), (plain, _) = make_superloss(name), make_superloss(name)
    for losses in make_batches():
        noisy = torch.cat([losses, torch.tensor([math.nan, math.inf, -math.inf, 100.0])])
        mask = noisy != 100
        value, sigma = criterion.with_confidence(noisy, mask)
        torch.testing.assert_close(value[: len(losses)], plain(losses))
        assert value[-1] == 100
        assert sigma[-1] == 1
        assert torch.equal(criterion.tau, plain.tau)
        assert_same_state(criterion, plain.state_dict())


@pytest.mark.parametrize(
    "empty", [torch.zeros(0), torch.tensor([math.nan, math.inf]), torch.zeros(0, 3)]
)
@every_tau
def test_batches_without_a_loss_change_nothing(name, empty):
    criterion, used = make_superloss(name)
    for losses in (None, *make_batches()):
        if losses is not None:
            criterion(losses)
        state, leaf = state_of(criterion), empty.clone().requires_grad_()
        criterion(leaf).sum().backward()
        assert leaf.grad.shape == empty.shape
        assert_same_state(criterion, state)
        assert used[-1].isfinite()


@pytest.mark.parametrize(
    ("losses", "mask"),
    [
        (torch.ones(3), torch.ones(4, 3, dtype=torch.bool)),
        (torch.ones(3), torch.ones(3, dtype=torch.int64)),
        (torch.ones(3, dtype=torch.int64), None),
    ],
)
@every_tau
def test_a_refused_call_leaves_no_trace(name, losses, mask):
    criterion, used = make_superloss(name)
    state = state_of(criterion)
    with pytest.raises(ValueError, match=r"mask|floating point"):
        criterion(losses, mask)
    assert_same_state(criterion, state)
    assert used == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@every_tau
def test_losses_of_any_dtype_count_in_float64(name, dtype):
    taus = []
    for losses in (torch.full((3000,), 100.0, dtype=dtype), torch.full((3000,), 100.0).double()):
        criterion, used = make_superloss(name)
        criterion(losses)
        assert criterion.tau.dtype == torch.float64
        taus.append((used[0], criterion.tau))
    assert taus[0] == taus[1]
    if name in AVERAGES:
        assert used[0] == AVERAGES[name]([np.full(3000, 100.0)])


@every_tau
def test_resume_goes_on_where_training_stopped(name):
    (straight, _), (first, _), (resumed, _) = (make_superloss(name) for _ in range(3))
    for losses in make_batches()[:3]:
        straight(losses)
        first(losses)
    resumed.load_state_dict(first.state_dict())
    for losses in make_batches()[3:]:
        assert torch.equal(resumed(losses), straight(losses))
    assert torch.equal(resumed.tau, straight.tau)


@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, lambda m: m.to(torch.float16)]
)
@every_tau
def test_a_cast_of_the_model_leaves_tau_alone(name, cast):
    criterion, _ = make_superloss(name)
    criterion(torch.tensor([0.1, 0.2], dtype=torch.float64))
    before, keys = criterion.tau.clone(), list(criterion.state_dict())
    cast(criterion)
    assert criterion.tau.dtype == torch.float64
    assert torch.equal(criterion.tau, before)
    assert list(criterion.state_dict()) == keys


@every_tau
def test_meta_device_and_copies(name):
    criterion, used = make_superloss(name)
    criterion(torch.tensor([1.0, 2.0]))
    before = criterion.tau.clone()
    used[-1].add_(5)  # a reader's copy
    copy.deepcopy(criterion)(torch.tensor([30.0]))
    assert torch.equal(criterion.tau, before)
    with torch.device("meta"):
        empty, _ = make_superloss(name)
    empty.half()
    assert all(buffer.is_meta for buffer in empty.buffers())
    empty.to_empty(device="cpu")
    empty.load_state_dict(criterion.state_dict())
    assert empty.tau.dtype == torch.float64
    assert torch.equal(empty.tau, before)
    on_meta = criterion.to("meta")
    assert all(buffer.is_meta for buffer in on_meta.buffers())
    losses = torch.ones(3, device="meta", requires_grad=True)
    on_meta(losses).sum().backward()
    assert losses.grad.is_meta


class Scripted(nn.Module):
    """A model that trains with a criterion, and predicts without it."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.criterion(x, None) if self.training else 2 * x


@pytest.mark.skipif(not can_compile, reason="this torch cannot script `Tensor | None`")
@every_tau
def test_a_model_that_holds_it_is_scripted(name):
    scripted = torch.jit.script(Scripted(sl.SuperLoss(TAUS[name](), LAM)).eval())
    assert torch.equal(scripted(torch.ones(3)), torch.full((3,), 2.0))


@pytest.mark.skipif(not can_compile, reason="this torch cannot compile the SuperLoss")
@every_tau
def test_tau_is_in_one_graph_under_compile(name):
    torch._dynamo.reset()
    eager, traced = (sl.SuperLoss(TAUS[name](), LAM) for _ in range(2))
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    for losses in make_batches(3):
        torch.testing.assert_close(compiled(losses), eager(losses))
        torch.testing.assert_close(traced.tau, eager.tau)


NUM_STEPS = 5


def step_losses(step: int, rank: int) -> Tensor:
    """Batches of uneven size with a nan; in the first step, and in another, some rank is empty."""
    if (step, rank) in {(0, 1), (2, 0)}:
        return torch.zeros(0)
    losses = torch.rand(3 + 2 * rank + step, generator=torch.Generator().manual_seed(step)) + rank
    losses[0] = torch.nan
    return losses


def train_on_rank(folder: Path) -> None:
    rank, record = dist.get_rank(), {}
    for name in TAUS:
        criterion, record[name] = sl.SuperLoss(TAUS[name](), LAM), []
        for step in range(NUM_STEPS):
            losses = step_losses(step, rank).requires_grad_()
            value, sigma = criterion.with_confidence(losses)
            value.sum().backward()
            record[name].append((criterion.tau.clone(), sigma, losses.grad))
        if rank == 0:
            # Evaluation on one rank alone would hang if it joined a collective.
            criterion.eval()(torch.rand(3))
    torch.save(record, folder / f"{rank}.pt")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_agree_with_one_process(world_size, tmp_path):
    run_ranks(train_on_rank, world_size, tmp_path)
    records = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    for name in TAUS:
        criterion, _ = make_superloss(name)
        for step in range(NUM_STEPS):
            parts = [step_losses(step, rank) for rank in range(world_size)]
            _, sigma = criterion.with_confidence(torch.cat(parts))
            ranks = [record[name][step] for record in records]
            for rank_tau, _, _ in ranks:
                assert torch.equal(rank_tau, ranks[0][0])
                torch.testing.assert_close(rank_tau, criterion.tau, rtol=1e-14, atol=0)
            rank_sigma = torch.cat([s for _, s, _ in ranks])
            torch.testing.assert_close(rank_sigma, sigma, equal_nan=True)
            gradient = torch.cat([g for _, _, g in ranks])
            torch.testing.assert_close(gradient, rank_sigma, rtol=0, atol=0, equal_nan=True)
