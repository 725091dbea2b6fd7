"""Annotations that are trained as a distribution over all classes, which changes with the batch.

Shape legend: S samples (RoIs or anchors), G annotations of a batch, K classes.
"""

from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..modeling.class_targets import LossOf, mean_losses
from .method import Method

__all__ = ["SoftTargets"]


class SoftTargets(Method):
    """The loss of a sample is the expected one over a distribution of its annotation.

    ``sum_k y_k * loss(k)``, the cross-entropy with soft targets where that is the loss. Boxes and
    masks are those of the most probable class. Background is no class of an annotation.

    A subclass sets ``table``, (G, K) in the order of the batch, before the batch is matched; None
    leaves the given classes.
    """

    table: Tensor | None = None

    def relabel(self, targets: list[Instances]) -> list[Instances]:
        """Targets with their most probable classes."""
        targets = super().relabel(targets)
        if self.table is None:
            return targets
        classes = self.table.argmax(dim=1).split([len(target) for target in targets])
        return [
            Instances(target.image_size, **{**target.get_fields(), "gt_classes": best})
            for target, best in zip(targets, classes)
        ]

    def expected_losses(
        self, loss_of: LossOf, ids: Tensor, labels: Tensor, probabilities: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Expected losses over the classes, every sample with weight 1."""
        known, columns = self._columns(ids)
        if self.table is None:
            return loss_of(labels), torch.ones_like(known, dtype=torch.float32)
        num_annotations, num_classes = self.table.shape
        # A last row for the other samples, which keep their class. Without any annotation the loss
        # is asked for as often: it may wait for other processes.
        given = torch.eye(1, num_classes, device=labels.device)
        shares = torch.cat([self.table, given])[torch.where(known, columns, num_annotations)]
        every = torch.arange(num_classes, device=labels.device)
        return mean_losses(loss_of, torch.where(known[:, None], every, labels[:, None]), shares)
