"""Noise that depends on the object: wrong labels are what a detector takes it for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.formats.annotations import Annotation
from .noises import NOISE_REGISTRY, Draws, Noise, Noisy, Size, fraction

__all__ = ["InstanceNoise"]

# A detector is never certain: above 0, so that some noise can hit what it predicts perfectly.
_LEAST = 1e-6


@NOISE_REGISTRY.register("instance")
@dataclass(frozen=True, kw_only=True)
class InstanceNoise(Noise):
    """Replace the class by one that a detector sees in the object; hard objects are hit more often.

    An annotation whose true class has the probability p is hit with probability min(1, c (1 - p)),
    with c so that the mean over all annotations is ``rate``. It gets another class with the
    probability that the detector gives to it, divided by 1 - p. Instance-dependent noise by a
    model's own mistakes is that of "Confidence Scores Make Instance-dependent Label-noise Learning
    Possible" (Berthon et al. 2021); what a detector calls confidence is its softmax.

    Args:
        distributions: (A, K) class probabilities of the annotations, whose rows are the
            ``annotation_id`` of :func:`~sl_detectron.data.annotation_ids.number_annotations`
        labels: (A,) int64 true classes

    Raises:
        ValueError: the mode is "exact": every annotation has a rate of its own; or the shapes
            differ

    Example:
        >>> distributions = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
        >>> labels = torch.tensor([0, 1])
        >>> noise = InstanceNoise(rate=0.4, distributions=distributions, labels=labels)
        >>> annotations = [{"annotation_id": i, "category_id": c} for i, c in enumerate([0, 1])]
        >>> [round(noise.weight_of(annotation), 2) for annotation in annotations]
        [0.25, 1.75]
    """

    kind: ClassVar[str] = "instance"
    distributions: Tensor = field(repr=False, compare=False)
    labels: Tensor = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "exact":
            raise ValueError("mode must be 'bernoulli' for noise of type 'instance'; got 'exact'")
        if self.distributions.dim() != 2 or self.labels.shape != self.distributions.shape[:1]:
            raise ValueError(
                f"distributions must be (A, K) and labels (A,); got "
                f"{tuple(self.distributions.shape)} and {tuple(self.labels.shape)}"
            )
        others = self.distributions.double().clamp_min(0).nan_to_num()
        others = others.scatter(1, self.labels[:, None], 0.0)
        # Uniform where the detector sees no other class.
        uniform = torch.ones_like(others).scatter(1, self.labels[:, None], 0.0)
        others = torch.where(others.sum(dim=1, keepdim=True) > _LEAST, others, _LEAST * uniform)
        rates = _with_mean(others.sum(dim=1), self.rate)
        object.__setattr__(self, "_cumulative", others.cumsum(dim=1) / others.sum(1, keepdim=True))
        object.__setattr__(self, "_weights", rates / self.rate if self.rate else rates)

    @classmethod
    def from_config(cls, node: CfgNode, class_names: Sequence[str] | None, **values: Any) -> Noise:
        raise ValueError(
            "TYPE 'instance' needs a detector, which no key names: write a manifest by "
            "sl-inject-noise --type instance --checkpoint, and set MANIFEST"
        )

    def check_classes(self, num_classes: int) -> None:
        if num_classes != self.distributions.shape[1]:
            raise ValueError(
                f"the detector has {self.distributions.shape[1]} classes, the set {num_classes}"
            )

    def weight_of(self, annotation: Annotation) -> float:
        number, label = annotation.get("annotation_id", -1), annotation["category_id"]
        if not 0 <= number < len(self.labels) or int(self.labels[number]) != label:
            raise ValueError(
                "the predictions of the detector do not match the annotations: number "
                f"{number} of class {label} is missing or has another class"
            )
        return float(self._weights[number])  # type: ignore[attr-defined]

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        row = self._cumulative[annotation["annotation_id"]]  # type: ignore[attr-defined]
        wrong = int(torch.searchsorted(row, fraction(draws[0]), right=True))
        return {**annotation, "category_id": min(wrong, num_classes - 1)}


def _with_mean(weights: Tensor, mean: float) -> Tensor:
    """min(1, c * weights) with c so that the mean is as asked for, by bisection."""
    low, high = 0.0, 1 / float(weights.min()) if len(weights) else 1.0
    for _ in range(100):
        middle = (low + high) / 2
        too_low = float((middle * weights).clamp_max(1).mean()) < mean
        low, high = (middle, high) if too_low else (low, middle)
    return (high * weights).clamp_max(1)
