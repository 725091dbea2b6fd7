"""detectron2's losses of a RetinaNet, one value per anchor.

Shape legend: N images, R anchors of an image over all levels, K classes, M foreground anchors.
"""

from typing import Any

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from .box_regression import box_regression_losses

__all__ = ["PerAnchorLosses"]


class PerAnchorLosses:
    """What ``loss_cls`` and ``loss_box_reg`` of :class:`RetinaNet` are the sum of.

    It stands behind detectron2's classes in the method resolution order of a SuperLoss detector: a
    custom RetinaNet that restates ``losses()`` overrides a method, and may call it by ``super()``.
    """

    num_classes: int
    focal_loss_alpha: float
    focal_loss_gamma: float
    box2box_transform: Any
    box_reg_loss_type: str
    smooth_l1_beta: float

    def classification_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of every (anchor, class).

        Args:
            logits: (N, R, K)
            labels: (N, R) in [-1, K]; -1 is ignored, K background

        Returns:
            (N, R, K)
        """
        classes = torch.arange(self.num_classes, device=labels.device)
        # A comparison leaves ignored and background anchors without a class, and needs no
        # int64 one-hot tensor of the size of the logits.
        target = (labels.unsqueeze(-1) == classes).to(logits.dtype)
        losses: Tensor = sigmoid_focal_loss(
            logits, target, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        return losses

    def foreground_box_losses(
        self, anchors: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, foreground: Tensor
    ) -> Tensor:
        """Box loss of each foreground anchor, summed over its coordinates.

        Args:
            anchors: (R, 4) in pixels
            gt_boxes: (N, R, 4) in pixels
            pred_deltas: (N, R, 4)
            foreground: (N, R) bool

        Returns:
            (M,)
        """
        # Host trip: one in the place of stock's two, which choose the same anchors.
        matched = foreground.nonzero(as_tuple=True)
        return box_regression_losses(
            anchors.expand_as(gt_boxes)[matched],
            gt_boxes[matched],
            pred_deltas[matched],
            self.box2box_transform,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
