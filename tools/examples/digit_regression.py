#!/usr/bin/env python3
"""Digit regression with wrong labels: squared and smooth-L1 loss with and without the SuperLoss.

After Table 1 of the SuperLoss paper's supplementary, on scikit-learn's digits: predict the digit as
a number; a share of the labels is replaced by digits drawn uniformly. Parameters are chosen by a
truncated error, min(2, |y - prediction|), as there: wrong labels would rule any other. The paper
truncates at 1, but with far more data for smaller errors. Writes regression.json, regression.md
(mean absolute error in digits, mean and standard deviation over seeds) and regression.png.

Examples:
  tools/examples/digit_regression.py --output docs/results/digits
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from digits import NUM_CLASSES, Data, Task, digit_splits, mlp
from study import Study, example_main
from torch import Tensor

TRUNCATION = 2.0


def replace_digits(digits: Tensor, rate: float, rng: np.random.Generator) -> Tensor:
    hit = torch.from_numpy(rng.random(len(digits)) < rate)
    drawn = torch.from_numpy(rng.integers(0, NUM_CLASSES, len(digits)))
    return torch.where(hit, drawn.to(digits), digits)


def per_sample(loss: Callable[..., Tensor], outputs: Tensor, digits: Tensor) -> Tensor:
    return loss(outputs.squeeze(1), digits, reduction="none")


def absolute_errors(outputs: Tensor, digits: Tensor) -> Tensor:
    return (outputs.squeeze(1) - digits).abs()


def mean_absolute_error(outputs: Tensor, digits: Tensor) -> float:
    return absolute_errors(outputs, digits).mean().item()


def truncated_accuracy(outputs: Tensor, digits: Tensor) -> float:
    return -absolute_errors(outputs, digits).clamp(max=TRUNCATION).mean().item()


def make_task(loss: Callable[..., Tensor]) -> Task:
    splits = digit_splits().items()
    return Task(
        build_model=functools.partial(mlp, 1),
        losses=functools.partial(per_sample, loss),
        splits={name: Data(data.inputs, data.targets.float()) for name, data in splits},
        corrupt=replace_digits,
        val_score=truncated_accuracy,
        test_score=mean_absolute_error,
    )


STUDY = Study(
    name="regression",
    title="Digit regression",
    metric="mean absolute error, digits",
    higher_is_better=False,
    tasks={
        "squared error": functools.partial(make_task, F.mse_loss),
        "smooth L1": functools.partial(make_task, F.smooth_l1_loss),
    },
    taus=("Avg", "ExpAvg"),
    lrs=(3e-4, 1e-3, 3e-3, 1e-2),
    lams=(0.1, 0.3, 1.0, 3.0, 10.0),
)

if __name__ == "__main__":
    raise SystemExit(example_main(__doc__, STUDY))
