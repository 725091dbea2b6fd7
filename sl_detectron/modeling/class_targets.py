"""What class each annotation is trained as, where that is no longer the class it was given.

Shape legend: A annotations of the training sets, M candidate classes of an annotation, S samples
(RoIs or anchors), K classes.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from .matched_annotations import FIELD

__all__ = ["ClassTargets", "Distributions", "SampleTargets", "attach_class_targets", "mean_losses"]

# Makes (S,) or (S, K) losses of (S,) classes.
LossOf = Callable[[Tensor], Tensor]


class Distributions(Protocol):
    """(A, K) class distributions: a tensor, or what has the largest entries of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(A, K)"""

    def topk(self, k: int, dim: int) -> tuple[Tensor, Tensor]:
        """(A, k) largest probabilities of rows and their classes, ``dim`` 1."""


class SampleTargets(nn.Module):
    """What the samples of annotations are trained as, and how much: the seam of every method.

    A head or dense detector relabels the targets of a batch, matches its samples to them, and asks
    for the losses of the samples.
    """

    def relabel(self, targets: list[Instances]) -> list[Instances]:
        """The targets that samples are matched to; the arguments stay as they are.

        Args:
            targets: per image, with ``gt_classes`` and ``gt_annotation_ids``
        """
        return targets

    def expected_losses(
        self,
        loss_of: LossOf,
        ids: Tensor,
        labels: Tensor,
        probabilities: Callable[[], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses of samples and the weights that they count with.

        Args:
            loss_of: makes (S,) or (S, K) losses of (S,) classes
            ids: (S,) int64 annotation ids; a sample of another annotation keeps its class
            labels: (S,) its class
            probabilities: makes (S, K) of the classes of an object; None where the head has others

        Returns:
            losses as ``loss_of`` makes them, and (S,) the weight that each counts with
        """
        raise NotImplementedError

    def settle(self, compute: Callable[[], Tensor]) -> Tensor:
        """The class term of a forward: ``compute()``, now or when more of the step is there."""
        return compute()


class ClassTargets(SampleTargets):
    """A distribution over a few candidate classes for every annotation.

    The classification loss of a sample is the expected one, ``sum_m weight_m * loss(class_m)``,
    whatever the loss. Weights that sum to less than 1 count the sample less, and weights of 0
    ignore it: it is no background. Boxes, masks and matchings use the first candidate.

    A new object leaves every annotation with the class that it was given, at weight 1.

    Args:
        labels: (A,) int64 given classes; ids of annotations are the rows. An attribute, too.
        num_candidates: M

    Raises:
        ValueError: there is no annotation

    Example:
        >>> targets = ClassTargets(torch.tensor([2, 0]))
        >>> targets.set_distributions(torch.tensor([[0.1, 0.6, 0.3], [1.0, 0.0, 0.0]]))
        >>> targets.classes
        tensor([[1, 2],
                [0, 1]])
        >>> losses = torch.tensor([[1.0, 2.0, 4.0]])
        >>> ids, given = torch.tensor([0]), torch.tensor([2])
        >>> targets.expected_losses(lambda classes: losses[0, classes], ids, given)
        (tensor([2.6667]), tensor([0.9000]))
    """

    classes: Tensor
    weights: Tensor
    labels: Tensor
    _of_given: Tensor

    def __init__(self, labels: Tensor, num_candidates: int = 2) -> None:
        super().__init__()
        if not len(labels):
            raise ValueError("there is no annotation that could have a target")
        given = torch.eye(1, num_candidates, device=labels.device)
        self.register_buffer("classes", labels[:, None].repeat(1, num_candidates))
        self.register_buffer("weights", given.repeat(len(labels), 1))
        self.register_buffer("_of_given", given, persistent=False)
        self.register_buffer("labels", labels, persistent=False)

    @torch.no_grad()
    def set_distributions(
        self,
        probabilities: Distributions,
        where: Tensor | None = None,
        hard: bool = False,
        min_probability: float = 0.0,
    ) -> None:
        """Train annotations as their most probable classes.

        Args:
            probabilities: (A, K) distribution over the true class
            where: (A,) bool; the others keep their targets
            hard: whether the most probable class gets weight 1, in place of its probability
            min_probability: annotations whose most probable class is less probable are ignored
        """
        num_candidates = min(self.weights.shape[1], probabilities.shape[1])
        weights, classes = self.weights.clone().zero_(), self.classes.clone()
        best = probabilities.topk(num_candidates, dim=1)
        weights[:, :num_candidates], classes[:, :num_candidates] = best
        certain = weights[:, :1] >= min_probability
        if hard:
            weights = self._of_given.expand_as(weights)
        weights = torch.where(certain, weights, 0.0)
        if where is not None:
            weights = torch.where(where[:, None], weights, self.weights)
            classes = torch.where(where[:, None], classes, self.classes)
        self.weights.copy_(weights)
        self.classes.copy_(classes)

    @torch.no_grad()
    def relabel(self, targets: list[Instances]) -> list[Instances]:
        """Targets with their most probable classes."""
        relabelled = []
        for target in targets:
            known, rows = self._rows(target.get(FIELD))
            fields = target.get_fields()
            classes = torch.where(known, self.classes[rows, 0], target.gt_classes)
            relabelled.append(Instances(target.image_size, **{**fields, "gt_classes": classes}))
        return relabelled

    def expected_losses(
        self, loss_of: LossOf, ids: Tensor, labels: Tensor, probabilities: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Expected losses over the candidates of the annotations."""
        known, rows = self._rows(ids)
        shares = torch.where(known[:, None], self.weights[rows], self._of_given)
        classes = torch.where(known[:, None], self.classes[rows], labels[:, None])
        return mean_losses(loss_of, classes, shares)

    def _rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Which ids are those of annotations, and a row for each of all."""
        known = (ids >= 0) & (ids < len(self.classes))
        return known, torch.where(known, ids, 0)


def mean_losses(loss_of: LossOf, classes: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean losses of samples over candidate classes.

    Args:
        loss_of: makes (S,) or (S, K) losses of (S,) classes
        classes, shares: (S, M) candidates and their weights

    Returns:
        losses as ``loss_of`` makes them, and (S,) the sum of the weights
    """
    total = shares.sum(dim=1)
    losses: Any = 0.0
    for candidate, share in enumerate((shares / total.clamp_min(1e-6)[:, None]).unbind(dim=1)):
        values = loss_of(classes[:, candidate])
        share = share.to(values).view(-1, *[1] * (values.dim() - 1))
        # Not a mere product: of a class without weight the loss may be infinite.
        losses = losses + torch.where(share > 0, share * values, 0.0)
    return losses, total


def attach_class_targets(model: nn.Module, targets: SampleTargets | None) -> int:
    """Let every SuperLoss head or dense detector of a model train on these targets.

    They are no part of the model: its checkpoints stay those of the detector.

    Returns:
        how many modules take them
    """
    takers = [m for m in model.modules() if hasattr(type(m), "class_targets")]
    for module in takers:
        # As a module it would be a child, whose state the model's has.
        object.__setattr__(module, "class_targets", targets)
    return len(takers)
