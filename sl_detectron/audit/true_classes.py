"""From what detectors predict for annotations to a distribution over their true classes.

Shape legend: A annotations, K classes, D features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

__all__ = [
    "TrueClasses",
    "correction_table",
    "cross_fit",
    "estimate_true_classes",
    "infer_true_classes",
]

FOLDS = 5
# Strengths of the L2 penalty that cross_fit chooses from, per annotation and unit of a feature.
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
# Annotations that a classifier is fitted to; more would cost gigabytes and gain nothing.
MAX_FITTED = 50_000
# Exponents that sharpen or soften predictions, from sharpest to softest as 1 / exponent.
TEMPERATURES = (0.2, 0.25, 0.3, 0.35, 0.42, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3, 1.6, 2.0)
# Annotations that each row of the confusion matrix is given beforehand, of symmetric noise.
PRIOR_COUNT = 5.0
NUM_STEPS = 50


class TrueClasses(NamedTuple):
    """An estimate of the classes that annotations should have.

    Args:
        probabilities: (A, K) of the true class, given the label and the predictions
        confusion: (K, K); row y holds the probabilities of the labels that objects of class y got
        noise_rate: estimated fraction of wrong labels
        temperature: that the predictions were raised to the power 1 / temperature
    """

    probabilities: Tensor
    confusion: Tensor
    noise_rate: float
    temperature: float


def infer_true_classes(predictions: Tensor, labels: Tensor, temperature: float) -> TrueClasses:
    """Bayes' rule on predictions and labels, with the confusion of the labels learned by EM.

    The true class of annotation i has probability q_i(y) T(y, label_i) up to a factor, where q_i is
    its prediction and T(y, c) the probability that an object of class y is labelled c. T is the
    maximum a posteriori estimate under a Dirichlet prior of symmetric noise (Dawid and Skene, 1979,
    with one annotator and a classifier).

    Args:
        predictions: (A, K) class distributions, not of a model that has memorised the labels
        labels: (A,) int64 given classes
        temperature: predictions are raised to the power 1 / temperature and normalised

    Example:
        >>> predictions = torch.tensor([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 8)
        >>> labels = torch.tensor([0] * 7 + [1] * 9)
        >>> estimate = infer_true_classes(predictions, labels, temperature=0.5)
        >>> estimate.probabilities[7]  # predicted 0, labelled 1
        tensor([0.8826, 0.1174])
    """
    num_classes = predictions.shape[1]
    given = F.one_hot(labels, num_classes).to(predictions)
    prior = (predictions.clamp_min(1e-6).log() / temperature).softmax(dim=1)
    # A start, which EM moves.
    confusion = _symmetric(0.4, num_classes).to(predictions)
    for _ in range(NUM_STEPS):
        joint = prior * confusion[:, labels].T
        posterior = joint / joint.sum(dim=1, keepdim=True)
        counts = posterior.T @ given
        rate = 1 - counts.diagonal().sum() / counts.sum()
        counts += PRIOR_COUNT * _symmetric(rate, num_classes).to(predictions)
        confusion = counts / counts.sum(dim=1, keepdim=True)
    return TrueClasses(posterior, confusion, float(rate), temperature)


def estimate_true_classes(
    cross_fitted: Tensor, labels: Tensor, tracked: Tensor | None = None
) -> TrueClasses:
    """Combine held-out predictions with those of a training run, and calibrate both.

    Each is the prior of the classes times what it sees of an object, so their product is divided by
    that prior: rare classes would vanish if it counted twice. Held-out predictions are calibrated
    by the likelihood of the labels. Those of a training run are not held out: it agrees with wrong
    labels that it has memorised. The product is therefore given the temperature at which it finds
    as much noise as the held-out ones do.

    Args:
        cross_fitted: (A, K) from :func:`cross_fit`
        labels: (A,) int64 given classes
        tracked: (A, K) mean predictions over a training run; rows of nan are left out
    """
    held_out = [infer_true_classes(cross_fitted, labels, t) for t in TEMPERATURES]
    best = max(held_out, key=lambda e: _log_likelihood(cross_fitted, labels, e))
    if tracked is None:
        return best
    # nan: never sampled. A sigmoid's probabilities need not sum to 1.
    tracked = tracked.nan_to_num(0.0).clamp_min(1e-6)
    tracked = tracked / tracked.sum(dim=1, keepdim=True)
    product = cross_fitted.clamp_min(1e-6) * tracked / tracked.mean(dim=0)
    product = product / product.sum(dim=1, keepdim=True)
    estimates = [infer_true_classes(product, labels, t) for t in TEMPERATURES]
    return min(estimates, key=lambda e: abs(e.noise_rate - best.noise_rate))


def correction_table(probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> str:
    """How many labels a correction to the most probable classes is expected to fix and to break.

    Args:
        probabilities: (A, K) of the true class, see :class:`TrueClasses`
        labels: (A,) int64 given classes
        classes: K names

    Returns:
        a table by given class and a line for all: expected counts, by the probabilities
    """
    probable, best = probabilities.max(dim=1)
    of_given = probabilities.gather(1, labels[:, None])[:, 0]
    changes = (best != labels).double()
    columns = [torch.ones_like(changes), 1 - of_given, changes]
    columns += [changes * probable, changes * of_given]
    by_class = torch.zeros(len(classes), len(columns), dtype=torch.float64)
    by_class.index_add_(0, labels, torch.stack([c.double() for c in columns], dim=1))
    rows = [[name, *row] for name, row in zip(classes, by_class.tolist()) if row[0]]
    rows.append(["all", *by_class.sum(dim=0).tolist()])
    headers = ["given class", "annotations", "wrong", "changed", "of these fixed", "broken"]
    return f"Expected of a correction:\n{tabulate(rows, headers, floatfmt='.0f')}"


def cross_fit(
    features: Tensor, labels: Tensor, groups: Tensor, num_classes: int, seed: int = 0
) -> Tensor:
    """Predictions of linear classifiers, each for annotations that it was not fitted to.

    A wrong label cannot vouch for itself, as it does in the predictions of a detector that was
    trained on it. The penalty is the one whose predictions fit held-out labels best.

    Args:
        features: (A, D)
        labels: (A,) int64 given classes
        groups: (A,) int64; annotations of one group, an image, are held out together
        num_classes: K
        seed: of the folds

    Returns:
        (A, K) class distributions

    Raises:
        ValueError: there are fewer groups than folds
    """
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    if num_groups < FOLDS:
        raise ValueError(f"cross-fitting needs at least {FOLDS} images; got {num_groups}")
    generator = torch.Generator().manual_seed(seed)
    folds = (torch.randperm(num_groups, generator=generator) % FOLDS)[groups]
    features = (features - features.mean(dim=0)) / features.std(dim=0).clamp_min(1e-6)
    # Inner products of the order of 1, whatever D.
    inputs = F.pad(features / features.shape[1] ** 0.5, (0, 1), value=1.0)
    fits = {p: _fit_fold(inputs, labels, folds, 0, num_classes, p) for p in PENALTIES}
    first = folds == 0
    penalty = min(fits, key=lambda p: float(F.nll_loss(fits[p].log(), labels[first])))
    predictions = inputs.new_empty(len(labels), num_classes)
    predictions[first] = fits[penalty]
    for fold in range(1, FOLDS):
        predictions[folds == fold] = _fit_fold(inputs, labels, folds, fold, num_classes, penalty)
    return predictions


def _fit_fold(
    inputs: Tensor, labels: Tensor, folds: Tensor, fold: int, num_classes: int, penalty: float
) -> Tensor:
    """Predictions for one fold of a softmax regression that was fitted to the others."""
    fitted = (folds != fold).nonzero()[:MAX_FITTED, 0]
    x, y = inputs[fitted], labels[fitted]
    weights = inputs.new_zeros(inputs.shape[1], num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weights, y) + penalty * weights[:-1].square().sum() / len(y)
        value.backward()
        return value

    optimizer.step(loss)
    return (inputs[folds == fold] @ weights.detach()).softmax(dim=1).clamp_min(1e-6)


def _log_likelihood(predictions: Tensor, labels: Tensor, estimate: TrueClasses) -> float:
    prior = (predictions.clamp_min(1e-6).log() / estimate.temperature).softmax(dim=1)
    return float((prior * estimate.confusion[:, labels].T).sum(dim=1).log().mean())


def _symmetric(rate: float | Tensor, num_classes: int) -> Tensor:
    """(K, K) confusion matrix of symmetric label noise."""
    matrix = torch.full((num_classes, num_classes), float(rate) / (num_classes - 1))
    return matrix.fill_diagonal_(1 - float(rate))
