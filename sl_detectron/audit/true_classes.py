"""From what detectors predict for annotations to a distribution over their true classes.

Shape legend: A annotations, K classes.
"""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from .cross_fit import cross_fit
from .evidence import Evidence, evidence_of
from .few_classes import Distributions, FewClasses, dense

__all__ = [
    "LEAST_GAIN",
    "USELESS",
    "TrueClasses",
    "correction_table",
    "estimate_true_classes",
    "infer_true_classes",
    "predict_held_out",
]

logger = logging.getLogger(__name__)

# Annotations by which temperature and power are chosen.
MAX_COMPARED = 100_000
# That sharpen or soften held-out predictions.
TEMPERATURES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.42, 0.5, 0.6, 0.75, 0.9, 1.1, 1.3, 1.6, 2.0)
# That the predictions of a run are raised to.
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Annotations that each row of the confusion matrix is given beforehand, of symmetric noise.
PRIOR_COUNT = 5.0
NUM_STEPS = 50
# Standard errors by which held-out predictions of labels must be better than class frequencies.
LEAST_GAIN = 2.0
USELESS = (
    "the features do not predict the labels better than the frequencies of the classes do, so what "
    "is estimated from them means nothing: check that the weights are those of this backbone"
)


class TrueClasses(NamedTuple):
    """An estimate of the classes that annotations should have.

    Args:
        probabilities: (A, K) of the true class, given the label and the predictions; of many
            classes the candidates, of which no other has any
        confusion: (K, K); row y holds the probabilities of the labels that objects of class y got
        noise_rate: estimated fraction of wrong labels
        temperature: the predictions, or the held-out ones, were raised to the power 1 / temperature
        gain: see :func:`predict_held_out`; infinite for predictions from elsewhere
    """

    probabilities: Distributions
    confusion: Tensor
    noise_rate: float
    temperature: float
    gain: float = math.inf


def infer_true_classes(
    predictions: Distributions, labels: Tensor, temperature: float
) -> TrueClasses:
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
    em = evidence_of(predictions, labels, temperature)
    # A start, which EM moves.
    confusion = _symmetric(0.4, em.num_classes).to(em.prior)
    for _ in range(NUM_STEPS):
        posterior = em.posterior(em.likelihood(confusion))
        counts = em.counts(posterior)
        rate = 1 - counts.diagonal().sum() / counts.sum()
        counts += PRIOR_COUNT * _symmetric(rate, em.num_classes).to(em.prior)
        confusion = counts / counts.sum(dim=1, keepdim=True)
    return TrueClasses(em.distributions(posterior), confusion, float(rate), temperature)


def estimate_true_classes(
    cross_fitted: Distributions, labels: Tensor, tracked: Distributions | None = None
) -> TrueClasses:
    """Combine held-out predictions with those of a training run.

    Each is the prior of the classes times what it sees of an object, so their product is divided by
    that prior: rare classes would vanish if it counted twice. A classifier that was fitted to noisy
    labels predicts too softly; the temperature is the one at which the labels are likeliest.

    Predictions of a training run are not held out: it agrees with wrong labels that it has
    memorised. So they are no evidence of how the labels were confused. They are raised to the
    power, at most 1, at which they and the labels predict best what the held-out ones see.

    Args:
        cross_fitted: (A, K) from :func:`cross_fit`
        labels: (A,) int64 given classes
        tracked: (A, K) mean predictions over a training run; rows of nan are left out

    Returns:
        with confusion, noise rate and temperature of the held-out predictions
    """
    some = _some(labels)
    _, temperature = _calibrated(cross_fitted, labels)
    held_out = infer_true_classes(cross_fitted, labels, temperature)
    if tracked is None:
        return held_out
    cross_fitted, factors = _aligned(cross_fitted, tracked)
    em = evidence_of(cross_fitted, labels, temperature)
    factors, likelihood = factors.to(em.prior), em.likelihood(held_out.confusion)
    few = evidence_of(cross_fitted[some], labels[some], temperature)
    power = max(POWERS, key=lambda p: _agreement(few, factors[some] ** p * likelihood[some]))
    posterior = em.posterior(factors**power * likelihood)
    return held_out._replace(probabilities=em.distributions(posterior))


def _gain(predictions: Distributions, labels: Tensor) -> float:
    """Of held-out predictions of labels over the frequencies of classes, in standard errors."""
    frequencies = torch.bincount(labels, minlength=predictions.shape[1]) / len(labels)
    of_given = predictions.gather(1, labels[:, None])[:, 0].clamp_min(1e-9)
    gains = of_given.log() - frequencies[labels].log()
    return float(gains.mean() / (gains.std() / len(gains) ** 0.5).clamp_min(1e-9))


def _some(labels: Tensor) -> slice:
    return slice(0, None, max(len(labels) // MAX_COMPARED, 1))


def _calibrated(predictions: Distributions, labels: Tensor) -> tuple[float, float]:
    """The largest mean log likelihood of the labels, and the temperature at which it is that."""
    predictions, labels = predictions[_some(labels)], labels[_some(labels)]
    return max((_log_likelihood(predictions, labels, t), t) for t in TEMPERATURES)


def _log_likelihood(predictions: Distributions, labels: Tensor, temperature: float) -> float:
    """Of the labels, given predictions of the true classes."""
    em = evidence_of(predictions, labels, temperature)
    confusion = infer_true_classes(predictions, labels, temperature).confusion
    return float((em.prior * em.likelihood(confusion)).sum(dim=1).log().mean())


def _agreement(held_out: Evidence, known: Tensor) -> float:
    """Mean log likelihood of held-out predictions, given what else is known of the true classes.

    That depends on the former through the true class y only. So its likelihood of annotation i is,
    up to a factor, the sum over y of q_i(y) / p(y) times P(y | known), where q_i is the held-out
    prediction and p its mean.

    Args:
        held_out: of the held-out predictions
        known: (A, C) likelihood of the true class, up to a factor
    """
    seen = (held_out.prior * known).sum(dim=1)
    return float((seen / (held_out.marginal() * known).sum(dim=1)).log().mean())


def _aligned(cross_fitted: Distributions, tracked: Distributions) -> tuple[Distributions, Tensor]:
    """Held-out predictions, and what a run's say beside the prior: (A, C), as their candidates."""
    if not isinstance(cross_fitted, FewClasses) or not isinstance(tracked, FewClasses):
        cross_fitted, tracked = dense(cross_fitted), dense(tracked).nan_to_num(0.0)
        # A sigmoid's probabilities need not sum to 1.
        total = tracked.sum(dim=1, keepdim=True)
        tracked = (tracked / total).clamp_min(1e-6)
        seen = total > 0
        factors = tracked / tracked[seen[:, 0]].mean(dim=0)
        return cross_fitted, torch.where(seen, factors, 1.0)
    values, rest = tracked.values.nan_to_num(0.0), tracked.rest.nan_to_num(0.0)
    total = values.sum(dim=1) + rest * (tracked.num_classes - values.shape[1])
    seen = total > 0
    values, rest = values / total[:, None], rest / total
    tracked = FewClasses(tracked.classes, values, rest, tracked.num_classes)
    mean = tracked[seen].mean_over_rows().clamp_min(1e-6)
    classes = torch.cat([cross_fitted.classes, tracked.classes[:, 1:]], dim=1)
    factors = tracked.at(classes).clamp_min(1e-6) / mean[classes]
    ours = cross_fitted.at(classes).clamp_min(1e-6)
    for column in range(cross_fitted.classes.shape[1], classes.shape[1]):
        # A class of both has one place.
        again = (classes[:, :column] == classes[:, column : column + 1]).any(dim=1)
        ours[:, column].masked_fill_(again, 0.0)
    cross_fitted = FewClasses(classes, ours, torch.zeros_like(rest), tracked.num_classes)
    return cross_fitted, torch.where(seen[:, None], factors, 1.0)


def correction_table(probabilities: Distributions, labels: Tensor, classes: Sequence[str]) -> str:
    """How many labels a correction to the most probable classes is expected to fix and to break.

    Args:
        probabilities: (A, K) of the true class, see :class:`TrueClasses`
        labels: (A,) int64 given classes
        classes: K names

    Returns:
        a table by given class and a line for all: expected counts, by the probabilities
    """
    probable, best = (column[:, 0] for column in probabilities.topk(1, dim=1))
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


def predict_held_out(
    features: Tensor, labels: Tensor, groups: Tensor, num_classes: int
) -> tuple[Distributions, float]:
    """Predictions of the true classes by :func:`cross_fit`, corrected for confusions of labels.

    A classifier that is fitted to labels predicts labels. This is the true class, but softer, if
    wrong labels are spread over the classes, and it is not if most objects of a class got the label
    of one other. So a second classifier is fitted through the confusion that the first one's
    predictions tell (forward correction, Patrini et al. 2017, section 3.2). The one that makes the
    labels likelier is taken. Of more than 22 classes only the first is fitted.

    Args:
        features, labels, groups, num_classes: as of :func:`cross_fit`

    Returns:
        (A, K) class distributions; and by how many standard errors the first one predicts labels
        better than the frequencies of the classes. Below :data:`LEAST_GAIN` a warning is logged:
        EM takes a classifier that knows nothing for one whose labels are wrong

    Raises:
        ValueError: there are fewer groups than folds, or fewer than two classes
    """
    if num_classes < 2:
        raise ValueError("true classes can be estimated of a detector of at least two classes")
    first = cross_fit(features, labels, groups, num_classes)
    gain = _gain(first, labels)
    if not gain > LEAST_GAIN:
        logger.warning(USELESS)
    if isinstance(first, FewClasses):
        return first, gain
    likelihood, temperature = _calibrated(first, labels)
    confusion = infer_true_classes(first, labels, temperature).confusion
    second = cross_fit(features, labels, groups, num_classes, confusion)
    return (second if _calibrated(second, labels)[0] > likelihood else first), gain


def _symmetric(rate: float | Tensor, num_classes: int) -> Tensor:
    """(K, K) confusion matrix of symmetric label noise."""
    matrix = torch.full((num_classes, num_classes), float(rate) / (num_classes - 1))
    return matrix.fill_diagonal_(1 - float(rate))
