"""SD-LocNet's weighting: annotations count by how stable and how easy they are.

Shape legend: S samples (RoIs or anchors), G annotations of a batch, A of the training sets, K
classes.
"""

import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..config import num_classes_of
from ..losses.ranks import gather_rows, sum_over_ranks
from ..modeling.class_targets import LossOf
from .method import METHOD_REGISTRY, Method, per_sample, start_of

__all__ = ["SDLocNet", "consistency"]

# Annotations of a process that the others hear of in a step.
MOST_ANNOTATIONS = 256


def consistency(p: Tensor, q: Tensor) -> Tensor:
    """1 - JS(p, q) / log 2, from 1 for equal distributions to 0 for disjoint ones.

    Args:
        p, q: (G, K) distributions

    Example:
        >>> consistency(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0]] * 2))
        tensor([0.0000, 0.6887])
    """
    middle = (p + q) / 2
    divergence = torch.xlogy(p, p) + torch.xlogy(q, q) - 2 * torch.xlogy(middle, middle)
    return 1 - divergence.sum(dim=1) / (2 * math.log(2))


@METHOD_REGISTRY.register()
class SDLocNet(Method):
    """Weights of annotations, as CA-BBC's comparison used SD-LocNet (Zhang et al. 2019).

    No equations of that use are public, so these are ours. With p the mean class distribution of
    an annotation's samples in this step, q its mean over the steps before, and l its mean loss:
    weight = c * exp(-l), c = 1 - JS(p, q) / log 2 (1 at first sight), divided by its mean over
    the annotations of the batch, all processes together. The distribution is over the classes of
    an object; that of a RetinaNet's sigmoids is brought to sum to 1. Background has weight 1.

    Args:
        num_annotations: A
        num_classes: K
        start: iterations with weight 1; q is already learned
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_annotations: int, num_classes: int, start: int = 0) -> None:
        super().__init__(start)
        # A last row takes what has no annotation.
        self.register_buffer("sums", torch.zeros(num_annotations + 1, num_classes))
        self.register_buffer("counts", torch.zeros(num_annotations + 1, 1))

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "SDLocNet":
        return cls(num_annotations, num_classes_of(cfg), start_of(cfg))

    def expected_losses(
        self,
        loss_of: LossOf,
        ids: Tensor,
        labels: Tensor,
        probabilities: Callable[[], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The plain losses with the weights of their annotations."""
        p = self._of_objects(probabilities)
        losses = loss_of(labels)
        p = p / p.sum(dim=1, keepdim=True).clamp_min(1e-12)
        known, columns = self._columns(ids)
        means = self._means(p, known, columns)
        learns = self.training and torch.is_grad_enabled()
        weights = self._weights(means, self._means(per_sample(losses), known, columns), learns)
        if learns:
            self._learn(means)
        of_samples = torch.ones_like(p[:, 0])
        if self.is_active and len(weights):
            of_samples = torch.where(known, weights[columns], 1.0)
        return losses, of_samples

    def _rows(self, ids: Tensor) -> Tensor:
        last = len(self.sums) - 1
        return torch.where((ids >= 0) & (ids < last), ids, last)

    @torch.no_grad()
    def _weights(self, p: Tensor, losses: Tensor, learns: bool) -> Tensor:
        """(G,) weights of mean 1 over those that have samples, of all processes as they learn."""
        rows = self._rows(self._ids)
        q, counts = self.sums[rows], self.counts[rows]
        weights = consistency(p, torch.where(counts > 0, q / counts.clamp_min(1), p))
        weights = weights.clamp_min(0) * (-losses).exp()
        seen = ~weights.isnan()
        parts = torch.stack([torch.where(seen, weights, 0).sum(), seen.sum().to(weights)])
        # A forward for batch statistics or a validation loss may be that of one process.
        total, number = sum_over_ranks(parts) if learns else parts
        # Of losses so large that all weights vanish none is preferred.
        return torch.where(total > 0, weights * number / total, 1.0)

    @torch.no_grad()
    def _learn(self, p: Tensor) -> None:
        # float64 holds every id.
        seen = gather_rows(torch.cat([self._ids[:, None].double(), p], dim=1), MOST_ANNOTATIONS)
        is_seen = ~seen.isnan().any(dim=1)
        rows = self._rows(torch.where(is_seen, seen[:, 0], -1).long())
        values = torch.where(is_seen[:, None], seen[:, 1:], 0).to(self.sums)
        self.sums.index_add_(0, rows, values)
        self.counts.index_add_(0, rows, is_seen[:, None].to(self.counts))
