"""Box regression losses with one value per box.

Shape legend: M foreground boxes.
"""

import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss

__all__ = ["box_regression_losses"]

_OVERLAP_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def box_regression_losses(
    anchors: torch.Tensor,
    gt_boxes: torch.Tensor,
    pred_deltas: torch.Tensor,
    box2box_transform: Box2BoxTransform,
    loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Loss of each box whose sum is detectron2's box regression loss.

    Args:
        anchors: (M, D) anchors or proposals in pixels; D is 4 (XYXY), or 5 for rotated boxes
        gt_boxes: (M, D) the ground truth matched to each, in pixels
        pred_deltas: (M, D) predicted deltas from anchor to box
        box2box_transform: the transform that the deltas belong to
        loss_type: "smooth_l1" (on deltas), "giou", "diou" or "ciou" (on boxes)
        smooth_l1_beta: where smooth L1 turns from L2 to L1; 0 is L1

    Returns:
        (M,) losses

    Raises:
        ValueError: unknown ``loss_type``
    """
    losses: torch.Tensor
    if loss_type == "smooth_l1":
        target = box2box_transform.get_deltas(anchors, gt_boxes)
        losses = smooth_l1_loss(pred_deltas, target, smooth_l1_beta, reduction="none").sum(dim=1)
    elif loss_type in _OVERLAP_LOSSES:
        pred_boxes = box2box_transform.apply_deltas(pred_deltas, anchors)
        losses = _OVERLAP_LOSSES[loss_type](pred_boxes, gt_boxes, reduction="none")
    else:
        choices = ["smooth_l1", *_OVERLAP_LOSSES]
        raise ValueError(f"BBOX_REG_LOSS_TYPE must be one of {choices}; got {loss_type!r}")
    return losses
