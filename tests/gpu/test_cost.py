"""What the SuperLoss costs on a GPU: time, memory, and its share of a training step."""

import statistics
from functools import partial

import pytest
import torch

from helpers import load_tool

pytestmark = pytest.mark.gpu
NUM_LOSSES, ROUNDS = 3_000_000, 15
SCIPY = "scipy lambertw round trip"
IMAGES, IMAGE_SIZE = 4, (800, 1088)


@pytest.fixture(scope="module")
def bench():
    return load_tool("benchmark_superloss")


@pytest.fixture(scope="module")
def can_compile() -> bool:
    """Whether torch.compile works here at all; Triton needs a C compiler, for one."""
    torch.compiler.reset()
    try:
        torch.compile(torch.exp)(torch.ones(8, device="cuda"))
    except Exception as error:
        print(f"torch.compile does not work here: {type(error).__name__}: {str(error)[:500]}")
        return False
    return True


@pytest.fixture(scope="module")
def contenders(bench, can_compile):
    """{name: function}; what is compiled once is used by all tests."""
    return bench.contenders("cuda", can_compile)


def device_milliseconds(call, num_calls=50) -> float:
    """Of one call, without the time that the host takes to launch it: replays of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(num_calls):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / num_calls


@pytest.mark.parametrize("run", ["forward", "forward_backward"])
def test_three_million_losses(run, bench, contenders, measured):
    """Wall time of a call and the wait for it; every contender in turn."""
    losses = (torch.rand(NUM_LOSSES, generator=torch.Generator().manual_seed(0)) * 6).cuda()
    times: dict[str, list[float]] = {}
    for num_rounds, names in ((3, [SCIPY]), (ROUNDS, [n for n in contenders if n != SCIPY])):
        calls = {n: partial(getattr(bench, run), contenders[n], losses) for n in names}
        times |= bench.interleaved(calls, num_rounds, "cuda", num_warm_up=3)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        measured(f"3 M losses, {run}, {name}", value, "ms")
    for name in [n for n in contenders if not n.startswith("torch.exp")]:
        error = bench.largest_error(contenders[name], losses)
        measured(f"3 M losses, {name}: largest error", error, "max(|SL|, lambda)")
        if name.startswith("SuperLoss"):
            assert error < 2e-6
    assert medians["SuperLoss"] < medians[SCIPY] / 10
    if "SuperLoss, compiled" in medians:
        assert medians["SuperLoss, compiled"] < medians[SCIPY] / 10


def test_device_time_of_three_million_losses(bench, contenders, measured):
    losses = torch.rand(NUM_LOSSES, device="cuda") * 6
    times = {}
    for name, function in contenders.items():
        if name == SCIPY:
            continue
        times[name] = device_milliseconds(partial(bench.forward, function, losses))
        measured(f"3 M losses, forward, {name}: device time", times[name], "ms")
    if "SuperLoss, compiled" not in times:
        pytest.skip("torch.compile does not work here: only eager calls were timed")
    assert times["SuperLoss, compiled"] < 3 * times["torch.exp"]
    assert times["SuperLoss, compiled"] < times["grid_sample, 31 knots"]


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "AMP"])
@pytest.mark.parametrize("name", ["Faster R-CNN R50-FPN", "RetinaNet R50-FPN"])
def test_share_of_a_training_step(name, amp, bench, measured):
    """Stock and SuperLoss in turn, in one process, of the same weights: time and peak memory."""
    where = f"{name}, {'AMP' if amp else 'float32'}"
    batch = bench.noise_batch(IMAGES, IMAGE_SIZE)
    models = {head: bench.detector(name, head, "cuda") for head in bench.HEADS}
    steps = {h: partial(bench.train_step, m, batch, amp) for h, m in models.items()}
    foreground = bench.samples_of(models["SuperLoss"], steps["SuperLoss"])
    measured(f"{where}: samples a step", len(foreground), "")
    measured(f"{where}: foreground samples a step", int(foreground.sum()), "")
    times = bench.interleaved(steps, 30, "cuda", num_warm_up=10)
    medians = {head: 1e3 * statistics.median(values) for head, values in times.items()}
    peaks = {}
    for head, step in steps.items():
        models[head].zero_grad()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[head] = (torch.cuda.max_memory_allocated() - before) / 2**20
        models[head].zero_grad()
        measured(f"{where}, {head}: step", medians[head], "ms")
        measured(f"{where}, {head}: spread of the steps", bench.spread(times[head]), "")
        measured(f"{where}, {head}: peak memory", peaks[head], "MiB")
    share = medians["SuperLoss"] / medians["stock"] - 1
    measured(f"{where}: time that the SuperLoss adds", 100 * share, "% of the stock step")
    if name.startswith("Faster"):
        assert len(foreground) == 512 * IMAGES
    assert share < 0.05
    assert peaks["SuperLoss"] < 1.05 * peaks["stock"]
