"""torch.compile with batches of any size: one graph for the first, one more for all others."""

import pytest
import torch
from torch._dynamo.utils import counters

from helpers.loss_cases import CASES, LAM, TAUS, make_inputs
from sl_detectron.losses import SuperLoss
from sl_detectron.losses import tau as tau_module

pytestmark = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_compiling"), reason="this torch cannot compile the SuperLoss"
)
SIZES = (512, 2048, 2000, 100, 4096, 31)


@pytest.fixture
def num_graphs():
    """Counts the graphs that torch has compiled since the start of the test."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.parametrize(("masked", "old_torch"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("tau", TAUS)
def test_superloss(tau, masked, old_torch, num_graphs, monkeypatch):
    """Values, gradients and tau as eager; also in the way that older versions of torch need."""
    monkeypatch.setattr(tau_module, "_LOSES_UPDATES", old_torch or tau_module._LOSES_UPDATES)
    eager, module = SuperLoss(TAUS[tau](), LAM), SuperLoss(TAUS[tau](), LAM)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    graphs = []
    for size in SIZES:
        losses = 3 * torch.rand(size)
        mask = losses > 0.5 if masked else None
        ours, expected = (losses.clone().requires_grad_() for _ in range(2))
        value, reference = compiled(ours, mask), eager(expected, mask)
        value.sum().backward()
        reference.sum().backward()
        torch.testing.assert_close(value, reference)
        torch.testing.assert_close(ours.grad, expected.grad)
        torch.testing.assert_close(module.tau, eager.tau)
        graphs.append(num_graphs())
    assert graphs[1:] == [graphs[1]] * (len(SIZES) - 1)
    assert graphs[1] <= 2


@pytest.mark.parametrize("name", [name for name in CASES if name.lower() != "superloss"])
def test_losses(name, num_graphs):
    loss = CASES[name].build()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    graphs = []
    for size in SIZES:
        inputs = make_inputs(name, size, torch.float32)
        torch.testing.assert_close(compiled(*inputs), loss(*inputs))
        graphs.append(num_graphs())
    assert graphs[1:] == [graphs[1]] * (len(SIZES) - 1)
    assert graphs[1] <= 2
