"""Linear classifiers of annotations, each fitted to other images than those that it predicts.

Shape legend: A annotations, K classes, D features.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .few_classes import MAX_DENSE, Distributions, FewClasses, dense, joined

__all__ = ["cross_fit"]

FOLDS = 5
# Strengths of the L2 penalty that cross_fit chooses from, per annotation and unit of a feature.
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
# Annotations that a classifier is fitted to; more would cost gigabytes and gain nothing.
MAX_FITTED = 50_000


def cross_fit(
    features: Tensor,
    labels: Tensor,
    groups: Tensor,
    num_classes: int,
    confusion: Tensor | None = None,
    seed: int = 0,
) -> Distributions:
    """Predictions of linear classifiers, each for annotations that it was not fitted to.

    A wrong label cannot vouch for itself, as it does in the predictions of a detector that was
    trained on it. The penalty is the one whose predictions fit held-out labels best.

    Args:
        features: (A, D)
        labels: (A,) int64 given classes
        groups: (A,) int64; annotations of one group, an image, are held out together
        num_classes: K
        confusion: (K, K), see :class:`TrueClasses`, if the classifiers are to predict true classes;
            None if they are to predict labels
        seed: of the folds

    Returns:
        (A, K) class distributions; of many classes the largest entries

    Raises:
        ValueError: there are fewer groups than folds
    """
    # Without those that have no annotation here: a fold of such images only could not be fitted.
    different, groups = groups.unique(return_inverse=True)
    num_groups = len(different)
    if num_groups < FOLDS:
        raise ValueError(
            f"cross-fitting needs at least {FOLDS} images with annotations; got {num_groups}"
        )
    generator = torch.Generator().manual_seed(seed)
    folds = (torch.randperm(num_groups, generator=generator) % FOLDS)[groups]
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp_min(1e-6)
    # Inner products of the order of 1, whatever D.
    inputs = F.pad(features / features.shape[1] ** 0.5, (0, 1), value=1.0)
    fit = partial(_fit_fold, inputs, labels, folds, num_classes, confusion)
    fits = {p: fit(0, p) for p in PENALTIES}
    first = labels[folds == 0][:, None]

    def likelihood(penalty: float) -> float:
        of_labels = fits[penalty] if confusion is None else dense(fits[penalty]) @ confusion
        return float(of_labels.gather(1, first).log().mean())

    penalty = max(fits, key=likelihood)
    parts = [fits[penalty], *(fit(fold, penalty) for fold in range(1, FOLDS))]
    # From the order of the folds to that of the annotations.
    order = torch.cat([(folds == fold).nonzero()[:, 0] for fold in range(FOLDS)]).argsort()
    return joined(parts)[order]


def _fit_fold(
    inputs: Tensor,
    labels: Tensor,
    folds: Tensor,
    num_classes: int,
    confusion: Tensor | None,
    fold: int,
    penalty: float,
) -> Distributions:
    """Predictions for one fold of a softmax regression that was fitted to the others."""
    fitted = (folds != fold).nonzero()[:MAX_FITTED, 0]
    x, y = inputs[fitted], labels[fitted]
    weights = inputs.new_zeros(inputs.shape[1], num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = x @ weights
        if confusion is not None:
            logits = (logits.softmax(dim=1) @ confusion).clamp_min(1e-9).log()
        value = F.cross_entropy(logits, y) + penalty * weights[:-1].square().sum() / len(y)
        value.backward()
        return value

    optimizer.step(loss)
    weights, of_fold = weights.detach(), folds == fold
    if num_classes <= MAX_DENSE:
        return (inputs[of_fold] @ weights).softmax(dim=1).clamp_min(1e-6)
    rows = inputs[of_fold].split(max(2**24 // num_classes, 1))
    given = labels[of_fold].split(len(rows[0]))
    return FewClasses.cat(
        [
            FewClasses.of((x @ weights).softmax(dim=1).clamp_min(1e-6), y)
            for x, y in zip(rows, given)
        ]
    )
