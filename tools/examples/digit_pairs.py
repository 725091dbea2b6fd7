#!/usr/bin/env python3
"""Digit retrieval with wrong pair labels: contrastive loss with and without the SuperLoss.

After section 3.4 of the SuperLoss paper's supplementary, on scikit-learn's digits: an embedding is
learned from pairs that are labelled "same digit" or not, with tau = Avg. A share of the pair labels
is replaced by a coin toss, so that half of these are wrong. Every test digit in turn is the query,
and the others of its class are to be found. Writes pairs.json, pairs.md (mean average precision in
percent, mean and standard deviation over seeds) and pairs.png.

Examples:
  tools/examples/digit_pairs.py --output docs/results/digits
"""

import numpy as np
import torch
import torch.nn.functional as F
from digits import Data, Task, digit_splits, mlp
from study import Study, example_main
from torch import Tensor, nn

NUM_DIMENSIONS = 16
MARGIN = 0.7
PAIRS = {"train": 2000, "val": 1000}


class Embedding(nn.Module):
    """Pixels (..., 64) to unit vectors (..., 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(NUM_DIMENSIONS)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.net(pixels), dim=-1)


def draw_pairs(data: Data, num: int, seed: int) -> Data:
    """Pixels (P, 2, 64) and whether the digits are the same (P,), for half of the pairs."""
    rng = np.random.default_rng(seed)
    digits = data.targets.numpy()
    first = rng.integers(len(digits), size=num)
    second = np.empty_like(first)
    same = np.arange(num) % 2 == 0
    for i, index in enumerate(first):
        candidates = np.flatnonzero((digits == digits[index]) == same[i])
        second[i] = rng.choice(candidates[candidates != index])
    pairs = torch.from_numpy(np.stack([first, second], axis=1))
    return Data(data.inputs[pairs], torch.from_numpy(same))


def distances(embeddings: Tensor) -> Tensor:
    # The root has no slope at 0.
    return (embeddings[:, 0] - embeddings[:, 1]).square().sum(dim=1).add(1e-12).sqrt()


def contrastive_losses(embeddings: Tensor, same: Tensor) -> Tensor:
    """d^2 / 2 of a pair that is the same, max(0, margin - d)^2 / 2 of another."""
    d = distances(embeddings)
    return torch.where(same, d, (MARGIN - d).clamp(min=0)).square() / 2


def toss_labels(same: Tensor, rate: float, rng: np.random.Generator) -> Tensor:
    hit, coin = rng.random((2, len(same)))
    return torch.where(torch.from_numpy(hit < rate), torch.from_numpy(coin < 0.5), same)


def rank_accuracy(embeddings: Tensor, same: Tensor) -> float:
    """Share of (same, other) couples of pairs in the right order of distance, in percent."""
    d = distances(embeddings)
    closer = d[same][:, None] < d[~same][None, :]
    return 100 * closer.float().mean().item()


def mean_average_precision(embeddings: Tensor, digits: Tensor) -> float:
    """Over all queries, in percent."""
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-torch.inf)  # last, and cut off below
    ranking = similarity.argsort(dim=1, descending=True)[:, :-1]
    relevant = (digits[ranking] == digits[:, None]).double()
    places = torch.arange(1, ranking.shape[1] + 1)
    precision = relevant.cumsum(dim=1) / places
    return 100 * ((precision * relevant).sum(dim=1) / relevant.sum(dim=1)).mean().item()


def make_task() -> Task:
    splits = digit_splits()
    pairs = {
        split: draw_pairs(splits[split], num, seed)
        for seed, (split, num) in enumerate(PAIRS.items())
    }
    return Task(
        build_model=Embedding,
        losses=contrastive_losses,
        splits={**pairs, "test": splits["test"]},
        corrupt=toss_labels,
        val_score=rank_accuracy,
        test_score=mean_average_precision,
    )


STUDY = Study(
    name="pairs",
    title="Digit retrieval",
    metric="mean average precision, %",
    higher_is_better=True,
    tasks={"contrastive": make_task},
    taus=("Avg",),
    lrs=(1e-4, 3e-4, 1e-3, 3e-3),
    num_epochs=30,
    lams=(0.003, 0.01, 0.03, 0.1, 0.3),
)

if __name__ == "__main__":
    raise SystemExit(example_main(__doc__, STUDY))
