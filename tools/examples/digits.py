"""What the digit examples share: the data, wrong labels, one training and its scores.

scikit-learn ships 1,797 handwritten digits of 8 x 8 pixels. They are split once, at random:
validation and test digits are never trained on. Training and validation labels get the same share
of wrong labels, as one has no clean ones to choose parameters with; test labels stay clean.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sl_detectron.losses import SuperLoss

__all__ = ["NUM_CLASSES", "Data", "Run", "Scores", "Task", "digit_splits", "mlp", "train"]

NUM_CLASSES = 10
SPLITS = {"train": 900, "val": 400, "test": 497}
BATCH_SIZE = 90


class Data(NamedTuple):
    """Inputs and targets of one split; the first dimension is that of samples."""

    inputs: Tensor
    targets: Tensor


class Task(NamedTuple):
    """What to learn. Scores of a split: higher is better for "val", where labels are noisy.

    Attributes:
        build_model: a new model; its weights come from torch's generator
        losses: (outputs, targets) to one loss for each sample
        splits: clean data by the name of the split
        corrupt: (targets, rate, generator) to noisy targets
        val_score: (outputs, noisy targets) to what is maximised in choosing parameters
        test_score: (outputs, clean targets) to what is reported
        num_outcomes: of a softmax, for tau "logC"; None where there is none
    """

    build_model: Callable[[], nn.Module]
    losses: Callable[[Tensor, Tensor], Tensor]
    splits: dict[str, Data]
    corrupt: Callable[[Tensor, float, np.random.Generator], Tensor]
    val_score: Callable[[Tensor, Tensor], float]
    test_score: Callable[[Tensor, Tensor], float]
    num_outcomes: int | None = None


class Run(NamedTuple):
    """One training: all that its result depends on."""

    task: str
    tau: str | None  # None: the plain loss
    rate: float
    lr: float
    lam: float
    seed: int


class Scores(NamedTuple):
    """Scores after the last epoch, and after the epoch with the best validation score."""

    last_val: float
    last_test: float
    best_val: float
    best_test: float
    mean_sigma: float  # of the last epoch


@functools.cache
def digit_splits() -> dict[str, Data]:
    """Pixels (R, 64) in [0, 1] and digits (R,) int64 of "train", "val" and "test"."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    parts = order.split(list(SPLITS.values()))
    return {name: Data(pixels[part], labels[part]) for name, part in zip(SPLITS, parts)}


def mlp(num_outputs: int, num_hidden: int = 128) -> nn.Module:
    """64 pixels to the outputs, over two hidden layers: large enough to memorise labels."""
    return nn.Sequential(
        nn.Linear(64, num_hidden),
        nn.ReLU(),
        nn.Linear(num_hidden, num_hidden),
        nn.ReLU(),
        nn.Linear(num_hidden, num_outputs),
    )


def train(task: Task, run: Run, num_epochs: int) -> Scores:
    """Train one model with Adam, on the plain loss or on the SuperLoss, and score it.

    Runs of one seed and rate share their first weights, the order of the samples and the noise.
    Adam divides the gradient by its own size: a loss that is larger as a whole gains nothing.
    """
    # The noise of a seed is nested: what is wrong at 20 % is wrong at 40 %.
    generators = {split: np.random.default_rng([run.seed, i]) for i, split in enumerate(SPLITS)}
    data = {
        split: Data(clean.inputs, task.corrupt(clean.targets, run.rate, generators[split]))
        for split, clean in task.splits.items()
        if split != "test"
    } | {"test": task.splits["test"]}
    torch.manual_seed(run.seed)
    model = task.build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    superloss = None if run.tau is None else SuperLoss(run.tau, run.lam, task.num_outcomes)
    best = (-math.inf, math.nan)
    for _ in range(num_epochs):
        mean_sigma = _train_epoch(model, optimizer, superloss, task.losses, data["train"])
        val = _score(model, task.val_score, data["val"])
        if val > best[0]:
            best = val, _score(model, task.test_score, data["test"])
    return Scores(val, _score(model, task.test_score, data["test"]), *best, mean_sigma)


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    superloss: SuperLoss | None,
    losses_of: Callable[[Tensor, Tensor], Tensor],
    data: Data,
) -> float:
    """One pass over the data; returns the mean confidence."""
    sum_sigma = 0.0
    for batch in torch.randperm(len(data.targets)).split(BATCH_SIZE):
        losses = losses_of(model(data.inputs[batch]), data.targets[batch])
        if superloss is None:
            sum_sigma += len(batch)
        else:
            losses, sigma = superloss.with_confidence(losses)
            sum_sigma += sigma.sum().item()
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return sum_sigma / len(data.targets)


@torch.no_grad()
def _score(model: nn.Module, score: Callable[[Tensor, Tensor], float], data: Data) -> float:
    return score(model(data.inputs), data.targets)
