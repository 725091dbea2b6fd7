"""detectron2's losses of a box predictor, one value per RoI.

Shape legend: R RoIs of a batch, M foreground RoIs, K foreground classes (class K is background),
D numbers of a box: 4 (XYXY), or 5 for rotated boxes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import cross_entropy
from torch import Tensor

from .box_regression import box_regression_losses

__all__ = ["PerRoILosses", "is_foreground"]


class PerRoILosses:
    """What ``loss_cls`` and ``loss_box_reg`` of :class:`FastRCNNOutputLayers` are the mean of.

    It stands behind detectron2's classes in the method resolution order of a SuperLoss predictor:
    a custom predictor overrides a method, and may call it by ``super()``.
    """

    num_classes: int
    box2box_transform: Any
    box_reg_loss_type: str
    smooth_l1_beta: float
    # The classes that the federated loss of the running call of losses() has drawn.
    _federated_classes: Tensor | None = None

    def classification_losses(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """Softmax cross-entropy of each RoI, or sigmoid cross-entropy summed over its classes.

        Args:
            scores: (R, K+1) logits; of a predictor with another number of classes,
                one column for each and one for background
            gt_classes: (R,) in [0, K]

        Returns:
            (R,), in nats
        """
        if not getattr(self, "use_sigmoid_ce", False):  # detectron2 0.6 has softmax only
            softmax_losses: Tensor = cross_entropy(scores, gt_classes, reduction="none")
            return softmax_losses
        gt_classes = gt_classes.to(scores.device, torch.long)
        # A comparison: on a CPU one_hot reads the values of the classes.
        classes = torch.arange(scores.shape[1] - 1, device=scores.device)
        target = (gt_classes[:, None] == classes).to(scores.dtype)
        losses = F.binary_cross_entropy_with_logits(scores[:, :-1], target, reduction="none")
        if self._federated_classes is not None:
            weight = losses.new_zeros(scores.shape[1])
            losses = losses * weight.index_fill(0, self._federated_classes, 1.0)[:-1]
        return losses.sum(dim=1)

    def foreground_box_losses(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """Box loss of each foreground RoI, summed over its coordinates.

        Args:
            proposal_boxes, gt_boxes: (R, D) in pixels
            pred_deltas: (R, D) if class-agnostic, else (R, K*D)
            gt_classes: (R,) in [0, K]

        Returns:
            (M,)
        """
        # Host trip: as in the stock box loss, the boxes of background are not computed.
        index = is_foreground(gt_classes, self.num_classes).nonzero()[:, 0]
        box_dim = proposal_boxes.shape[1]
        if pred_deltas.shape[1] == box_dim:
            fg_deltas = pred_deltas[index]
        else:
            fg_deltas = pred_deltas.view(-1, self.num_classes, box_dim)[index, gt_classes[index]]
        return box_regression_losses(
            proposal_boxes[index],
            gt_boxes[index],
            fg_deltas,
            self.box2box_transform,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )


def is_foreground(gt_classes: Tensor, num_classes: int) -> Tensor:
    """(R,) bool: which classes are those of an object, neither background nor ignored."""
    return (gt_classes >= 0) & (gt_classes < num_classes)
