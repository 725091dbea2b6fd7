"""The SuperLoss under torch.func and torch.compile."""

import shutil

import pytest
import torch

from sl_detectron.losses import SuperLoss, confidence, superloss
from sl_detectron.losses.superloss import superloss_with_confidence

LOSSES = torch.linspace(-1, 6, 12, dtype=torch.float64).reshape(4, 3)


def test_vmap_over_losses():
    batched = torch.vmap(lambda losses: superloss(losses, 1.0, 0.25))(LOSSES)
    assert torch.equal(batched, superloss(LOSSES, 1.0, 0.25))
    columns = torch.vmap(lambda losses: superloss(losses, 1.0, 0.25), in_dims=1, out_dims=1)
    assert torch.equal(columns(LOSSES), batched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("losses_dim", [None, 0])
def test_vmap_over_tau_lam_and_mask(dtype, losses_dim):
    taus, lams = torch.tensor([0.5, 1.0, 2.0, 3.0]), torch.tensor([0.25, 1.0, 0.1, 10.0])
    masks = torch.arange(12).reshape(4, 3) % 2 == 0
    losses = LOSSES.to(dtype)
    function = torch.vmap(superloss_with_confidence, in_dims=(losses_dim, 0, 0, 0))
    value, sigma = function(losses if losses_dim == 0 else losses[0], taus, lams, masks)
    for i in range(4):
        row = losses[i] if losses_dim == 0 else losses[0]
        expected = superloss_with_confidence(row, taus[i], lams[i], masks[i])
        torch.testing.assert_close(value[i], expected[0])
        torch.testing.assert_close(sigma[i], expected[1])
    assert value.dtype == sigma.dtype == dtype


def test_gradients_per_sample():
    gradient = torch.func.grad(lambda losses: superloss(losses, 1.0, 0.25).sum())
    assert torch.equal(gradient(LOSSES), confidence(LOSSES, 1.0, 0.25))
    assert torch.equal(torch.vmap(gradient)(LOSSES), confidence(LOSSES, 1.0, 0.25))


def test_second_derivative_by_torch_func():
    gradient = torch.func.grad(lambda losses: superloss(losses, 1.0, 0.5).sum())
    second = torch.func.jacrev(gradient)(LOSSES[2])
    step = 1e-6
    steps = confidence(LOSSES[2] + step, 1.0, 0.5) - confidence(LOSSES[2] - step, 1.0, 0.5)
    torch.testing.assert_close(second, torch.diag(steps / (2 * step)), rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_compiling"),
    reason="torch before 2.3 cannot compile an autograd function of this form",
)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("use_mask", [False, True])
def test_compiles_without_a_graph_break(dynamic, use_mask):
    torch._dynamo.reset()
    eager, traced = SuperLoss("ExpAvg", 0.25), SuperLoss("ExpAvg", 0.25)
    compiled = torch.compile(traced, fullgraph=True, dynamic=dynamic)
    for size in (64, 50):
        losses = torch.rand(size, generator=torch.Generator().manual_seed(size)) * 5
        mask = losses > 1 if use_mask else None
        results = []
        for criterion in (eager, compiled):
            leaf = losses.clone().requires_grad_()
            value = criterion(leaf, mask)
            value.sum().backward()
            results.append((value.detach(), leaf.grad))
        torch.testing.assert_close(results[1], results[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(traced.tau, eager.tau)
