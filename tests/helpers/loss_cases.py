"""Tables of what the battery of tests/losses covers: losses, their inputs and slow references.

An entry of CLASSIFICATION_LOSSES or TAU_STRATEGIES is covered from the moment it is there. A slow
reference of it, where one is known, stands in EQUATIONS or AVERAGES under its name.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sl_detectron import losses as sl
from sl_detectron.losses.classification import CLASSIFICATION_LOSSES
from sl_detectron.losses.tau import TAU_STRATEGIES, AverageTau, build_tau

NUM_CLASSES, NUM_IDS, NUM_TASKS = 4, 5, 3
TAU, LAM, RATE = 1.0, 0.25, 0.3


class Case(NamedTuple):
    """A loss and what it is called with.

    Attributes:
        build: makes the function or module
        names: of its inputs, as in `make_inputs`
        function: what a module equals, of the module and its inputs
        keeps_dtype: whether losses of 16 bits come out in 16 bits
        per_sample: whether the loss of a sample is a function of that sample alone
    """

    build: Callable
    names: tuple[str, ...]
    function: Callable | None = None
    keeps_dtype: bool = False
    per_sample: bool = True


def data_params_of(**sizes: int) -> Callable:
    return lambda: with_random_parameters(sl.DataParams(**sizes, lam=0.2))


def with_random_parameters(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module


LABELLED = ("logits", "labels")
CASES = {
    **{name: Case(lambda f=f: f, LABELLED) for name, f in CLASSIFICATION_LOSSES.items()},
    "ForwardCorrection": Case(
        lambda: sl.ForwardCorrection(NUM_CLASSES - 1).eval(),
        LABELLED,
        # Until it has counted, no class is confused with another.
        lambda module, x, y: CLASSIFICATION_LOSSES["cross_entropy"](x, y),
    ),
    "forward_correction": Case(lambda: sl.ForwardCorrection(NUM_CLASSES - 1, RATE), LABELLED),
    "CurriculumLoss": Case(lambda: sl.CurriculumLoss(RATE), LABELLED, per_sample=False),
    "AfterStart": Case(
        lambda: sl.AfterStart(sl.focal_loss, 0),
        LABELLED,
        lambda module, x, y: sl.focal_loss(x, y),
    ),
    "introspection": Case(lambda: sl.introspection, ("score", "signs", "sigma")),
    "r2d2_reliability": Case(lambda: sl.r2d2_reliability, ("score", "reliability")),
    "data_params": Case(lambda: lambda *x: sl.data_params(*x, lam=0.2), (*LABELLED, "sigma")),
    "multitask": Case(lambda: sl.multitask, ("tasks", "task_sigma")),
    "superloss": Case(
        lambda: lambda losses: sl.superloss(losses, TAU, LAM), ("losses",), keeps_dtype=True
    ),
    "DataParams": Case(
        data_params_of(num_samples=NUM_IDS),
        (*LABELLED, "ids"),
        lambda module, x, y, ids: sl.data_params(x, y, module.sigma(y, ids), lam=0.2),
    ),
    "DataParams of classes": Case(
        data_params_of(num_classes=NUM_CLASSES),
        LABELLED,
        lambda module, x, y: sl.data_params(x, y, module.sigma(y), lam=0.2),
    ),
    # The sum of its two temperatures is not what is regularised: no function equals it.
    "DataParams of both": Case(
        data_params_of(num_samples=NUM_IDS, num_classes=NUM_CLASSES), (*LABELLED, "ids")
    ),
    "MultitaskLoss": Case(
        lambda: with_random_parameters(sl.MultitaskLoss(NUM_TASKS)),
        ("tasks",),
        lambda module, tasks: sl.multitask(tasks, module.sigma()),
    ),
    "SuperLoss": Case(
        lambda: sl.SuperLoss(TAU, LAM),
        ("losses",),
        lambda module, losses: sl.superloss(losses, module.tau, module.lam),
        keeps_dtype=True,
    ),
    "FixedConfidence": Case(
        lambda: sl.FixedConfidence(math.e),
        ("losses",),
        lambda module, losses: module.sigma * losses,
        keeps_dtype=True,
    ),
}


def symmetric(p: np.ndarray, t: np.ndarray) -> float:
    log_t = np.where(t == 0, -4.0, np.log(np.where(t == 0, 1, t)))
    return -0.1 * t @ np.log(p) - p @ log_t


def lncis(p: np.ndarray, t: np.ndarray) -> float:
    if t[-1] or p.argmax() == len(p) - 1:
        return -t @ np.log(p)
    return -p @ np.log(t.clip(1e-4))


def corrected(p: np.ndarray, t: np.ndarray) -> float:
    objects = len(p) - 1
    confusion = np.full((objects, objects), RATE / (objects - 1))
    np.fill_diagonal(confusion, 1 - RATE)
    return -t @ np.log(np.append(p[:-1] @ confusion, p[-1]))


def smallest(loss: float) -> float:
    """The SuperLoss by trying every sigma in (0, e]."""
    log_sigma = np.linspace(-6, 1, 200_001)
    return np.min(np.exp(log_sigma) * (loss - TAU) + LAM * log_sigma**2)


def tempered(logits: np.ndarray, label: int, sigma: float) -> float:
    powers = np.exp(sigma * logits)
    return -np.log(powers[label] / powers.sum()) + 0.2 * np.log(sigma) ** 2


# Of one sample, by the sums of the papers. Classification: of the probabilities p and the one-hot
# label t, with the default parameters.
CLASSIFICATION_EQUATIONS: dict[str, Callable] = {
    "cross_entropy": lambda p, t: -t @ np.log(p),
    "generalized_cross_entropy": lambda p, t: (1 - (t @ p) ** 0.7) / 0.7,
    "symmetric_cross_entropy": symmetric,
    "hard_bootstrapping": lambda p, t: -(0.8 * t + 0.2 * np.eye(len(p))[p.argmax()]) @ np.log(p),
    "soft_bootstrapping": lambda p, t: -(0.95 * t + 0.05 * p) @ np.log(p),
    "focal_loss": lambda p, t: -((1 - t @ p) ** 2) * t @ np.log(p),
    "lncis": lncis,
    "truncated_generalized_cross_entropy": lambda p, t: (1 - max(t @ p, 0.5) ** 0.7) / 0.7,
    "self_paced": lambda p, t: min(-t @ np.log(p), np.log(len(p))),
    "forward_correction": corrected,
}
EQUATIONS: dict[str, Callable] = {
    **{
        name: lambda z, y, f=f: f(np.exp(z) / np.exp(z).sum(), np.eye(len(z))[y])
        for name, f in CLASSIFICATION_EQUATIONS.items()
    },
    "introspection": lambda s, y, sigma: np.log(np.expm1(sigma) / sigma) - sigma * y * s,
    "r2d2_reliability": lambda ap, sigma: sigma * (1 - ap) + (1 - sigma) / 2,
    "data_params": tempered,
    "multitask": lambda losses, sigma: np.sum(losses / (2 * sigma**2) + np.log(sigma)),
    "superloss": smallest,
}


def make_inputs(
    name: str, num: int = 12, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> list[Tensor]:
    """Inputs of a case for as many samples; those of floating point with a gradient."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "logits": 16 * rand(num, NUM_CLASSES) - 8,
        "labels": torch.randint(NUM_CLASSES, (num,), generator=generator),
        "ids": torch.randint(-1, NUM_IDS, (num,), generator=generator),
        "score": 0.1 + 0.8 * rand(num),
        "reliability": 0.1 + 0.8 * rand(num),
        "sigma": 0.1 + 3 * rand(num),
        "signs": 2 * torch.randint(2, (num,), generator=generator) - 1,
        "losses": 0.05 + 4 * rand(num),
        "tasks": 0.1 + 9 * rand(num, NUM_TASKS),
        "task_sigma": 0.2 + 2 * rand(num, NUM_TASKS),
    }
    chosen = (inputs[key].to(device) for key in CASES[name].names)
    return [x.to(dtype).requires_grad_() if x.is_floating_point() else x for x in chosen]


class AboveAverage(nn.Module):
    """A custom strategy for tau: the mean of all losses so far, and a margin of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.average = AverageTau()

    @property
    @torch.jit.unused
    def tau(self) -> Tensor:
        return self.average.tau + 1

    def forward(self, losses: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.average(losses, mask) + 1


MOMENTUM = 0.8
TAUS: dict[str, Callable[[], nn.Module]] = {
    **{
        name: lambda name=name: build_tau(name, num_outcomes=NUM_CLASSES, momentum=MOMENTUM)
        for name in TAU_STRATEGIES
    },
    "number": lambda: build_tau("1.1"),
    "custom": AboveAverage,
}


def running_average(batches: list[np.ndarray]) -> float:
    average = batches[0].mean()
    for batch in batches[1:]:
        average = MOMENTUM * average + (1 - MOMENTUM) * batch.mean()
    return average


# Of the batches in training up to now; for the first one that batch alone.
AVERAGES: dict[str, Callable[[list[np.ndarray]], float]] = {
    "logC": lambda _: math.log(NUM_CLASSES),
    "Avg": lambda batches: np.concatenate(batches).mean(),
    "ExpAvg": running_average,
    "number": lambda _: 1.1,
    "custom": lambda batches: np.concatenate(batches).mean() + 1,
}
