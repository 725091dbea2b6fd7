#!/usr/bin/env python3
"""Digit classification with wrong labels: cross-entropy with and without the SuperLoss.

After Tables 3 and 4 and Figure 2 of the SuperLoss paper's supplementary, on scikit-learn's digits:
both kinds of symmetric noise (the wrong label is another class, or any class), tau = logC, Avg and
ExpAvg, and a sweep over lambda. Writes classification.json, classification.md (accuracy in percent,
mean and standard deviation over seeds) and classification.png.

Examples:
  tools/examples/digit_classification.py --output docs/results/digits
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from digits import NUM_CLASSES, Task, digit_splits, mlp
from study import Study, example_main
from torch import Tensor


def replace_labels(
    labels: Tensor, rate: float, rng: np.random.Generator, keep_possible: bool
) -> Tensor:
    """Give a share of the labels another class, or any class if the old one may be kept."""
    hit = rng.random(len(labels)) < rate
    shift = rng.integers(0 if keep_possible else 1, NUM_CLASSES, len(labels))
    return (labels + torch.from_numpy(shift * hit)) % NUM_CLASSES


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(dim=1) == labels).float().mean().item()


def make_task(keep_possible: bool) -> Task:
    return Task(
        build_model=functools.partial(mlp, NUM_CLASSES),
        losses=functools.partial(F.cross_entropy, reduction="none"),
        splits=digit_splits(),
        corrupt=functools.partial(replace_labels, keep_possible=keep_possible),
        val_score=accuracy,
        test_score=accuracy,
        num_outcomes=NUM_CLASSES,
    )


STUDY = Study(
    name="classification",
    title="Digit classification",
    metric="accuracy, %",
    higher_is_better=True,
    tasks={
        "another class": functools.partial(make_task, keep_possible=False),
        "any class": functools.partial(make_task, keep_possible=True),
    },
    taus=("logC", "Avg", "ExpAvg"),
    lrs=(1e-4, 3e-4, 1e-3, 3e-3),
    lams=(0.03, 0.1, 0.25, 1.0, 4.0),
    sweep="ExpAvg",
)

if __name__ == "__main__":
    raise SystemExit(example_main(__doc__, STUDY))
