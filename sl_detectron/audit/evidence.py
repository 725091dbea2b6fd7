"""Predictions as the estimate of true classes takes them: of every class, or of candidates.

Shape legend: A annotations, K classes, C candidate classes of an annotation: all, or a few.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .few_classes import Distributions, FewClasses

__all__ = ["Evidence", "evidence_of"]


class Evidence:
    """What EM needs of predictions.

    Args:
        prior: (A, C) predictions raised to the power 1 / temperature, normalised
        num_classes: K
    """

    prior: Tensor
    num_classes: int

    def posterior(self, likelihood: Tensor) -> Tensor:
        """(A, C) by Bayes' rule, of an (A, C) likelihood up to a factor of each annotation."""
        joint = self.prior * likelihood
        return joint / joint.sum(dim=1, keepdim=True)

    def marginal(self) -> Tensor:
        """(A, C) or (C,) mean prior of the candidate's class."""
        raise NotImplementedError

    def likelihood(self, confusion: Tensor) -> Tensor:
        """(A, C) probability of the label, by true class."""
        raise NotImplementedError

    def counts(self, posterior: Tensor) -> Tensor:
        """(K, K) expected numbers of annotations, by true class and label."""
        raise NotImplementedError

    def distributions(self, posterior: Tensor) -> Distributions:
        """(A, K) of an (A, C) posterior."""
        raise NotImplementedError


def evidence_of(predictions: Distributions, labels: Tensor, temperature: float) -> Evidence:
    """Of (A, K) predictions and (A,) int64 given classes."""
    if isinstance(predictions, FewClasses):
        return _Candidates(predictions, labels, temperature)
    return _Every(predictions, labels, temperature)


class _Every(Evidence):
    """What EM needs of (A, K) predictions."""

    def __init__(self, predictions: Tensor, labels: Tensor, temperature: float):
        self.labels, self.num_classes = labels, predictions.shape[1]
        self.given = F.one_hot(labels, predictions.shape[1]).to(predictions)
        self.prior = (predictions.clamp_min(1e-6).log() / temperature).softmax(dim=1)

    def marginal(self) -> Tensor:
        return self.prior.mean(dim=0)

    def likelihood(self, confusion: Tensor) -> Tensor:
        return confusion[:, self.labels].T

    def counts(self, posterior: Tensor) -> Tensor:
        return posterior.T @ self.given

    def distributions(self, posterior: Tensor) -> Distributions:
        return posterior


class _Candidates(Evidence):
    """As :class:`_Every`, of the kept classes of predictions: the true class is one of them.

    It works on the host, where sums come in one order: each rank must find the same.
    """

    def __init__(self, predictions: FewClasses, labels: Tensor, temperature: float):
        self.device, predictions = predictions.device, predictions.cpu()
        self.classes, self.num_classes = predictions.classes, predictions.num_classes
        self.labels = labels.cpu()[:, None]
        self.places = (self.classes * self.num_classes + self.labels).flatten()
        logs = predictions.values.clamp_min(1e-6).log() / temperature
        # Of value 0: a place without a class. The given class, which comes first, is always one.
        lacks = predictions.values <= 0
        lacks[:, 0] = False
        self.prior = logs.masked_fill(lacks, -torch.inf).softmax(dim=1)

    def marginal(self) -> Tensor:
        sums = torch.zeros(self.num_classes, dtype=torch.float64)
        sums.index_add_(0, self.classes.flatten(), self.prior.double().flatten())
        # Of no class at a place without one.
        return (sums / len(self.prior)).to(self.prior)[self.classes] * (self.prior > 0)

    def likelihood(self, confusion: Tensor) -> Tensor:
        return confusion[self.classes, self.labels]

    def counts(self, posterior: Tensor) -> Tensor:
        sums = torch.zeros(self.num_classes**2, dtype=torch.float64)
        sums.index_add_(0, self.places, posterior.double().flatten())
        return sums.view(self.num_classes, -1).to(posterior)

    def distributions(self, posterior: Tensor) -> Distributions:
        rest = torch.zeros(len(posterior))
        return FewClasses(self.classes, posterior, rest, self.num_classes).to(self.device)
