#!/usr/bin/env python3
"""Time and error of the SuperLoss beside other ways to compute it, as Markdown tables.

Every round times every contender once, in turn, so that a busy machine slows all of them; the
tables show medians and their ratios. One thread on a CPU is timed by the CPU time of the process,
which leaves out the time that other processes take. Without --training-step, the loss on random
values; with it, training steps of R50-FPN detectors, stock and with the SuperLoss, and the time
that the loss alone takes.

Examples:
  tools/benchmark_superloss.py --sizes 3000000 --rounds 20
  tools/benchmark_superloss.py --training-step
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from scipy.special import lambertw
from torch import Tensor

from sl_detectron.losses import SuperLoss, superloss
from sl_detectron.model_zoo import get_config

LossFunction = Callable[[Tensor], Tensor]
Calls = dict[str, Callable[[], object]]

TAU, LAM = 1.3, 0.25
LARGEST_BETA = 20.0  # where the table of knots ends
DETECTORS = {
    "Faster R-CNN R50-FPN": "PascalVOC-Detection/faster_rcnn_R_50_FPN",
    "RetinaNet R50-FPN": "PascalVOC-Detection/retinanet_R_50_FPN",
}
HEADS = {"stock": ".yaml", "SuperLoss": "_superloss.yaml"}


def with_sigma(losses: Tensor, sigma: Tensor) -> Tensor:
    return sigma * (losses - TAU) + LAM * sigma.log() ** 2


def scipy_round_trip(losses: Tensor) -> Tensor:
    """sigma by scipy on the CPU, as in public copies of the SuperLoss."""
    beta = (losses.detach().cpu().double().numpy() - TAU) / LAM
    # Just above -2 / e, where scipy returns nan.
    w = lambertw(beta.clip(min=-2 / math.e + 1e-9) / 2).real
    sigma = torch.from_numpy(w).to(losses).neg_().exp_()
    return with_sigma(losses, sigma)


def table(num_knots: int, device: str) -> Tensor:
    beta = torch.linspace(-2 / math.e + 1e-9, LARGEST_BETA, num_knots, dtype=torch.float64)
    sigma = torch.from_numpy(lambertw((beta / 2).numpy()).real).neg().exp()
    return sigma.to(device, torch.float32).reshape(1, 1, 1, num_knots)


def grid_sample(losses: Tensor, knots: Tensor) -> Tensor:
    """sigma from a piece-wise linear table, as in the paper."""
    with torch.no_grad():
        beta = (losses - TAU) / LAM
        x = (beta + 2 / math.e) * (2 / (LARGEST_BETA + 2 / math.e)) - 1
        grid = torch.stack([x, torch.zeros_like(x)], dim=-1).reshape(1, 1, -1, 2)
        sigma = F.grid_sample(knots, grid, padding_mode="border", align_corners=True).reshape(-1)
    return with_sigma(losses, sigma)


def halley(losses: Tensor, num_steps: int = 4) -> Tensor:
    """W by Halley steps from a series at the cap and a logarithm, differentiated by autograd."""
    z = ((losses - TAU) / (2 * LAM)).clamp(min=-1 / math.e + 1e-6)
    p = (2 * (math.e * z + 1)).sqrt()
    w = torch.where(z < 0.3, -1 + p - p**2 / 3, torch.log1p(z.clamp(min=0)) * 0.8)
    for _ in range(num_steps):
        exp = w.exp()
        f = w * exp - z
        w = w - f / (exp * (w + 1) - (w + 2) * f / (2 * w + 2))
    return with_sigma(losses, (-w).exp())


def contenders(device: str, use_compile: bool) -> dict[str, LossFunction]:
    ours = partial(superloss, tau=TAU, lam=LAM)
    knots = {k: partial(grid_sample, knots=table(k, device)) for k in (31, 4096)}
    functions: dict[str, LossFunction] = {
        "torch.exp": torch.exp,
        "SuperLoss": ours,
        "scipy lambertw round trip": scipy_round_trip,
        "grid_sample, 31 knots": knots[31],
        "grid_sample, 4096 knots": knots[4096],
        "autograd through 4 Halley steps": halley,
    }
    if use_compile:
        for name, function in list(functions.items()):
            if name != "scipy lambertw round trip":
                functions[f"{name}, compiled"] = torch.compile(function, dynamic=False)
    return functions


def forward(function: LossFunction, losses: Tensor) -> None:
    with torch.no_grad():
        function(losses)


def forward_backward(function: LossFunction, losses: Tensor) -> None:
    leaf = losses.detach().requires_grad_()
    function(leaf).backward(torch.ones_like(leaf))


def seconds(call: Callable[[], object], device: str) -> float:
    if device == "cpu" and torch.get_num_threads() == 1:
        clock, synchronize = time.process_time, lambda: None
    else:
        clock = time.perf_counter
        synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = clock()
    call()
    synchronize()
    return clock() - start


def interleaved(
    calls: Calls, num_rounds: int, device: str, num_warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call in every round, after some rounds that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(num_warm_up + num_rounds):
        for name, call in calls.items():
            elapsed = seconds(call, device)
            if i >= num_warm_up:
                times[name].append(elapsed)
    return times


def spread(values: list[float]) -> float:
    """Interquartile range over median."""
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def largest_error(function: LossFunction, losses: Tensor) -> float:
    """Of SL, in units of max(|SL|, lambda)."""
    exact = superloss(losses.double(), TAU, LAM)
    error = (function(losses).double() - exact).abs() / exact.abs().clamp(min=LAM)
    return error.max().item()


def print_table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def benchmark_function(num_losses: int, args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (torch.rand(num_losses, generator=generator) * 6).to(args.device)
    functions = contenders(args.device, not args.no_compile)
    medians, spreads = [], []
    for run in (forward, forward_backward):
        calls: Calls = {k: partial(run, f, losses) for k, f in functions.items()}
        times = interleaved(calls, args.rounds, args.device)
        medians.append({k: statistics.median(v) for k, v in times.items()})
        spreads.append({k: spread(v) for k, v in times.items()})
    rows = []
    for name, function in functions.items():
        row = [name]
        for median, iqr in zip(medians, spreads, strict=True):
            row.append(f"{median[name] * 1e3:.3f} ± {iqr[name]:.0%}")
            row.append(f"{median[name] / median['SuperLoss']:.2f}")
            row.append(f"{median[name] / median['torch.exp']:.2f}")
        error = "" if name.startswith("torch.exp") else f"{largest_error(function, losses):.0e}"
        rows.append([*row, error])
    print(f"{num_losses:,} losses\n")
    header = ["", "forward, ms", "/ SuperLoss", "/ exp", "forward + backward, ms"]
    print_table([*header, "/ SuperLoss", "/ exp", "largest error"], rows)


def detector(name: str, head: str, device: str) -> Any:
    """A model with random weights in training mode; both heads of a detector have the same."""
    cfg = get_config(DETECTORS[name] + HEADS[head])
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = device
    cfg.MODEL.PIXEL_STD = [57.375, 57.12, 58.395]  # without, float16 overflows
    cfg.MODEL.RPN.NMS_THRESH = 1.0
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if hasattr(model, "proposal_generator"):
        # A trained RPN fills every image's quota of RoIs. Proposals of random weights are outside
        # of the image: here they are the anchors.
        torch.nn.init.zeros_(model.proposal_generator.rpn_head.anchor_deltas.weight)
    return model


def noise_batch(num_images: int, image_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Images of noise with two boxes each."""
    height, width = image_size
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9]])
    target = Instances((height, width), gt_classes=torch.tensor([0, 5]))
    target.gt_boxes = Boxes(boxes * torch.tensor([width, height, width, height]))
    image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
    return [{"image": image, "instances": target}] * num_images


def train_step(model: Any, batch: list[dict[str, Any]], amp: bool = False) -> None:
    model.zero_grad()
    with EventStorage(), torch.autocast(model.device.type, enabled=amp):
        losses = sum(model(batch).values())
    losses.backward()


def samples_of(model: Any, step: Callable[[], object]) -> Tensor:
    """(S,) bool: which samples of a step's classification term are foreground."""
    seen = []
    term = next(m for m in model.modules() if getattr(m, "name", "") == "cls")
    with term.register_forward_pre_hook(lambda _, args: seen.append(args[1].reshape(-1))):
        step()
    return seen[0]


def benchmark_detector(name: str, args: argparse.Namespace) -> list[str]:
    batch = noise_batch(args.images, tuple(args.image_size))
    models = {head: detector(name, head, args.device) for head in HEADS}
    steps: Calls = {h: partial(train_step, m, batch) for h, m in models.items()}
    foreground = samples_of(models["SuperLoss"], steps["SuperLoss"])
    losses = torch.rand(len(foreground), device=args.device) * 4
    criterion = SuperLoss("ExpAvg", LAM).to(args.device)
    functions: dict[str, LossFunction] = {
        "plain": torch.clone,
        "all": criterion,
        "foreground": partial(criterion, mask=foreground),
    }
    calls = dict(steps)
    # Several short calls to each long step, for a median as steady as that of the steps.
    for i in range(10):
        calls |= {f"{k} {i}": partial(forward_backward, f, losses) for k, f in functions.items()}
    times = interleaved(calls, args.steps, args.device)
    medians = {head: statistics.median(times[head]) for head in HEADS}
    calls_of = {k: [t for i in range(10) for t in times[f"{k} {i}"]] for k in functions}
    row = [name, f"{len(losses):,}"]
    row += [f"{medians[head]:.2f} ± {spread(times[head]):.0%}" for head in HEADS]
    for key in ("all", "foreground"):
        added = statistics.median(calls_of[key]) - statistics.median(calls_of["plain"])
        row += [f"{added * 1e3:.3f}", f"{added / medians['stock']:.3%}"]
    return row


def benchmark_training_step(args: argparse.Namespace) -> None:
    rows = [benchmark_detector(name, args) for name in DETECTORS]
    height, width = args.image_size
    print(f"Training steps of {args.images} image(s) of {width} x {height} pixels\n")
    header = ["", "samples", "stock step, s", "SuperLoss step, s"]
    header += ["SuperLoss on all, ms", "of the step", "on foreground, ms", "of the step"]
    print_table(header, rows)


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 200_000, 3_000_000])
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, at least 2")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--training-step", action="store_true", help="share of a training step")
    parser.add_argument("--images", type=int, default=1, help="images per training step")
    parser.add_argument("--image-size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=5, help="timed training steps, at least 2")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} thread(s)\n")
    if args.training_step:
        benchmark_training_step(args)
        return
    for num_losses in args.sizes:
        torch.compiler.reset()
        benchmark_function(num_losses, args)


def cli() -> int:
    return run_tool(main, parse_args())


if __name__ == "__main__":
    sys.exit(cli())
