"""Terms under torch.compile and in CUDA graphs: the same losses, and the same tau."""

import pytest
import torch
from torch._dynamo.utils import counters

from sl_detectron.losses import SuperLoss
from sl_detectron.modeling import SuperLossTerm

pytestmark = pytest.mark.gpu
NUM = 1000


def make_term(tau, granularity="sample"):
    return SuperLossTerm("cls", SuperLoss(tau, num_outcomes=5), granularity=granularity).cuda()


def batches(num, size=NUM):
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.rand(size, generator=generator).cuda() for _ in range(num)]


@pytest.mark.parametrize("tau", ["ExpAvg", "Avg", "logC"])
@pytest.mark.parametrize("granularity", ["sample", "instance"])
def test_replays_of_a_graph_move_tau(tau, granularity):
    """Forward, backward and the update of tau, captured once; a new batch for each replay."""
    captured, eager = make_term(tau, granularity), make_term(tau, granularity)
    leaf = torch.zeros(NUM, device="cuda", requires_grad=True)
    foreground = torch.arange(NUM, device="cuda") % 3 == 0
    ids = torch.where(foreground, torch.arange(NUM, device="cuda") % 40, -1)
    state = {k: v.clone() for k, v in captured.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            captured(leaf, foreground, NUM, ids).backward()
    stream.synchronize()
    leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = captured(leaf, foreground, NUM, ids)
        value.backward()
    # In place: the graph has the addresses.
    for key, buffer in captured.state_dict().items():
        buffer.copy_(state[key])
    for losses in batches(4):
        with torch.no_grad():
            leaf.copy_(losses)
        graph.replay()
        expected_leaf = losses.clone().requires_grad_()
        expected = eager(expected_leaf, foreground, NUM, ids)
        expected.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(leaf.grad, expected_leaf.grad)
        torch.testing.assert_close(captured.superloss.tau, eager.superloss.tau)


@pytest.mark.parametrize("tau", ["ExpAvg", "logC"])
def test_compiled_with_dynamic_shapes(tau, measured):
    """Two graphs at most, the second for any size; losses, gradients and tau as eager."""
    torch.compiler.reset()
    try:
        torch.compile(torch.exp)(torch.ones(8, device="cuda"))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}: {error}"[:500])
    torch.compiler.reset()
    counters.clear()
    eager, module = SuperLoss(tau, num_outcomes=5).cuda(), SuperLoss(tau, num_outcomes=5).cuda()
    compiled = torch.compile(module)
    graphs = []
    for size in (512, 2048, 2000, 100, 4096, 31):
        (losses,) = batches(1, size)
        ours, expected = (losses.clone().requires_grad_() for _ in range(2))
        value, reference = compiled(ours), eager(expected)
        value.sum().backward()
        reference.sum().backward()
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.tau, eager.tau)
        graphs.append(counters["stats"]["unique_graphs"])
    measured(f"graphs of {tau} under torch.compile, six sizes", graphs[-1], "")
    assert graphs[-1] == graphs[1]
