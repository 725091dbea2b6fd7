"""How long the runs of a grid take on a GPU, and the memory they need: counted, not measured."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate
from torch import Tensor, nn

from ..rivals.pair import PairMixin
from .plan import PlannedRun

__all__ = ["GPUS", "Cost", "cost_of", "estimate"]

GIB = 2**30
# {name: (peak TFLOP/s in float32 as PyTorch's convolutions take it, with AMP; GiB)}. TF32 and
# float16 on the tensor cores of H100 SXM and A100, dense; the 2080 Ti has no TF32.
GPUS = {"H100": (495.0, 989.0, 80), "A100": (156.0, 312.0, 40), "2080 Ti": (13.4, 53.8, 11)}
# Share of the peak that a training reaches. On CUDA cores it is what detectron2's model zoo has
# for Faster R-CNN R50-FPN on V100 (0.21 s, 2 images a GPU, 15.7 TFLOP/s); on tensor cores a guess.
OF_CUDA_CORES, OF_TENSOR_CORES = 0.55, 0.15
NOTES = (
    "Estimates from counts, not measured. FLOPs: two for each multiply-add of convolutions and "
    "linear layers at the test size, with images of 4:3; three times a forward, once for frozen "
    f"layers; / (peak x {OF_TENSOR_CORES:g} on tensor cores, {OF_CUDA_CORES:g} without). Memory: "
    "weights, gradients and momentum, outputs of these layers twice, and 1 GiB. Left out: data "
    "loading, evaluation, estimates of label correction, masks, launch of kernels, which bounds "
    "small detectors."
)
# RoIs that are counted; the rest is as much again.
ROIS = 8


@dataclass(frozen=True)
class Cost:
    """Of one training step on one image, and of the weights.

    Args:
        forward: FLOPs of a forward
        step: FLOPs of forward and backward
        outputs: bytes in float32 of what layers that train return
        trained, frozen: numbers of parameters
    """

    forward: float
    step: float
    outputs: float
    trained: int
    frozen: int

    def hours(self, cfg: CfgNode, gpu: str) -> float:
        """Of a whole run of a config on one GPU."""
        peak = GPUS[gpu][cfg.SOLVER.AMP.ENABLED]
        uses_tensor_cores = cfg.SOLVER.AMP.ENABLED or gpu != "2080 Ti"
        share = OF_TENSOR_CORES if uses_tensor_cores else OF_CUDA_CORES
        rounds = cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS
        images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH * rounds
        return images * self.step / (peak * 1e12 * share) / 3600

    def gib(self, cfg: CfgNode, num_gpus: int) -> float:
        """Memory of a GPU, of which there are some for a run."""
        images = max(cfg.SOLVER.IMS_PER_BATCH // num_gpus, 1)
        outputs = 2 * self.outputs / (2 if cfg.SOLVER.AMP.ENABLED else 1)
        weights = 4 * (3 * self.trained + self.frozen)
        return 1 + (images * outputs + weights) / GIB


def cost_of(cfg: CfgNode) -> Cost:
    """Count the operations of a config's detector on a small image; needs neither data nor GPU.

    Raises:
        ValueError: a detector of other parts than a Faster R-CNN with box heads or a RetinaNet
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = cfg.MODEL.FROZEN_TRUNK.STORE = ""
    with torch.random.fork_rng(devices=[]):
        model: Any = build_model(cfg).eval()
    height = cfg.INPUT.MIN_SIZE_TEST or 800
    width = min(round(height * 4 / 3), cfg.INPUT.MAX_SIZE_TEST)
    small = max(round(height / 4 / 32), 2) * 32, max(round(width / 4 / 32), 2) * 32
    pixels = height * width / (small[0] * small[1])
    with torch.no_grad():
        with _counting() as trunk:
            features = model.backbone(torch.zeros(1, 3, *small))
        with _counting() as dense, _counting() as rois:
            _run_heads(model, features, dense, rois)
    heads = dense.times(pixels)
    per_image = rois.times(cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE / ROIS)
    total = trunk.times(pixels) + heads + per_image
    if isinstance(model, PairMixin):
        is_shared = cfg.MODEL.METHOD.SHARED_TRUNK
        of_boxes = per_image if hasattr(model, "roi_heads") else heads
        total = total + (of_boxes if is_shared else total)
    parameters = Counter({True: 0, False: 0})
    for parameter in model.parameters():
        parameters[parameter.requires_grad] += parameter.numel()
    is_teacher = cfg.MODEL.METHOD.NAME == "EMATeacher"
    copies = sum(parameters.values()) if is_teacher else 0
    return Cost(
        2 * total.multiplied,
        2 * (total.with_backward + (total.multiplied if is_teacher else 0)),
        4 * total.outputs,
        parameters[True],
        parameters[False] + copies,
    )


def estimate(runs: Sequence[PlannedRun], num_gpus: int = 1) -> str:
    """A table of the time and memory of each method of a grid, for a log.

    Args:
        runs: of a grid; a method's first one stands for all
        num_gpus: of each run
    """
    methods: dict[Any, list[PlannedRun]] = {}
    for run in runs:
        methods.setdefault(run.run.method, []).append(run)
    counted: dict[str, Cost | str] = {}
    rows = []
    for method, of_method in methods.items():
        cfg = of_method[0].cfg
        key = f"{cfg.MODEL} {cfg.INPUT}"
        if key not in counted:
            counted[key] = _cost_or_reason(cfg)
        cost = counted[key]
        if isinstance(cost, str):
            rows.append([str(method), len(of_method), cost])
            continue
        hours = [cost.hours(cfg, gpu) for gpu in GPUS]
        row = [f"{h:.2g} h" for h in hours]
        memory = f"{cost.gib(cfg, num_gpus):.1f} GiB"
        rows.append([str(method), len(of_method), f"{cost.forward / 1e9:.0f}", *row, memory])
    head = ["method", "runs", "GFLOP a forward", *(f"run on one {gpu}" for gpu in GPUS)]
    table = tabulate(rows, [*head, f"memory on {num_gpus} GPU{'s' * (num_gpus > 1)}"])
    sizes = ", ".join(f"{gpu} has {values[2]} GiB" for gpu, values in GPUS.items())
    return f"{table}\n{NOTES} {sizes}."


def _cost_or_reason(cfg: CfgNode) -> Cost | str:
    try:
        return cost_of(cfg)
    except (ValueError, OSError) as error:
        return f"no estimate: {error}"


@dataclass
class _Counts:
    multiplied: float = 0.0
    with_backward: float = 0.0
    outputs: float = 0.0
    paused: bool = False

    def times(self, factor: float) -> "_Counts":
        return _Counts(factor * self.multiplied, factor * self.with_backward, factor * self.outputs)

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(
            self.multiplied + other.multiplied,
            self.with_backward + other.with_backward,
            self.outputs + other.outputs,
        )


@contextlib.contextmanager
def _counting() -> Iterator[_Counts]:
    """Count what convolutions and linear layers multiply inside."""
    counts = _Counts()

    def count(layer: nn.Module, _: Any, output: Any) -> None:
        is_counted = isinstance(layer, (nn.Conv2d, nn.Linear))
        if not is_counted or counts.paused or not isinstance(output, Tensor):
            return
        weight: Any = layer.weight
        # Weights are (out, in / groups, ...).
        multiplied = output.numel() * weight[0].numel()
        counts.multiplied += multiplied
        counts.with_backward += (3 if weight.requires_grad else 1) * multiplied
        counts.outputs += output.numel() if weight.requires_grad else 0

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def _run_heads(model: Any, features: dict[str, Tensor], dense: _Counts, rois: _Counts) -> None:
    """Run what scores all places into ``dense``, and what scores RoIs into ``rois``."""
    rois.paused = True
    if hasattr(model, "head_in_features"):
        model.head([features[name] for name in model.head_in_features])
        return
    heads: Any = getattr(model, "roi_heads", None)
    generator = getattr(model, "proposal_generator", None)
    if generator is None or not (hasattr(heads, "box_head") or hasattr(heads, "res5")):
        raise ValueError(f"{type(model).__name__} of {type(heads).__name__}")
    generator.rpn_head([features[name] for name in generator.in_features])
    dense.paused, rois.paused = True, False
    if hasattr(heads, "res5"):
        channels = features[heads.in_features[0]].shape[1]
        size = heads.pooler.output_size
        pooled = heads.res5(torch.zeros(ROIS, channels, *size))
        heads.box_predictor(pooled.mean(dim=[2, 3]))
        return
    channels = features[heads.box_in_features[0]].shape[1]
    pooled = torch.zeros(ROIS, channels, *heads.box_pooler.output_size)
    stages = [heads.box_head], [heads.box_predictor]
    if isinstance(heads.box_head, nn.ModuleList):  # a cascade
        stages = [*heads.box_head], [*heads.box_predictor]
    for head, predictor in zip(*stages):
        predictor(head(pooled))
