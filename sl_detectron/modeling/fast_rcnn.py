"""Fast R-CNN output layers whose losses go through the SuperLoss, one value per RoI.

Shape legend: R RoIs of a batch, K foreground classes (class K is background).
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import cat, cross_entropy
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import nn

from .box_regression import box_regression_losses
from .superloss_term import SuperLossTerm, superloss_terms_from_config

__all__ = ["SuperLossFastRCNNOutputLayers", "to_superloss_output_layers"]


class SuperLossFastRCNNOutputLayers(FastRCNNOutputLayers):
    """:class:`FastRCNNOutputLayers` with the SuperLoss.

    A term that is None leaves the stock loss of the base class untouched, bit for bit.
    """

    @configurable
    def __init__(
        self,
        input_shape: Any,
        *,
        superloss_cls: SuperLossTerm | None = None,
        superloss_box_reg: SuperLossTerm | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape, kwargs: see :class:`FastRCNNOutputLayers`
            superloss_cls: the classification term; None keeps the stock loss
            superloss_box_reg: the box regression term; None keeps the stock loss
        """
        super().__init__(input_shape, **kwargs)
        self.superloss_cls = superloss_cls
        self.superloss_box_reg = superloss_box_reg

    @classmethod
    def from_config(cls, cfg, input_shape):
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        softmax = not cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False)
        return {
            **super().from_config(cfg, input_shape),
            **superloss_terms_from_config(cfg, num_classes if softmax else None),
        }

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """As the base class, with ``loss_cls`` replaced where softmax classification has a term.

        Sigmoid classification and boxes are replaced in the methods that the base class calls.
        """
        losses = super().losses(predictions, proposals)
        if self.superloss_cls is None or getattr(self, "use_sigmoid_ce", False):
            return losses
        scores = predictions[0]
        gt_classes = _gt_classes(proposals, scores)
        per_roi = cross_entropy(scores, gt_classes, reduction="none")
        foreground = gt_classes < self.num_classes
        loss_cls = self.superloss_cls(per_roi, foreground, max(per_roi.numel(), 1))
        return {**losses, "loss_cls": loss_cls * self.loss_weight.get("loss_cls", 1.0)}

    def sigmoid_cross_entropy_loss(
        self, pred_class_logits: torch.Tensor, gt_classes: torch.Tensor
    ) -> torch.Tensor:
        """Sigmoid cross-entropy summed over the classes of each RoI, then the SuperLoss.

        Args:
            pred_class_logits: (R, K+1)
            gt_classes: (R,) in [0, K]
        """
        if self.superloss_cls is None:
            return super().sigmoid_cross_entropy_loss(pred_class_logits, gt_classes)
        num_classes = self.num_classes
        gt_classes = gt_classes.to(pred_class_logits.device, torch.long)
        target = F.one_hot(gt_classes, num_classes + 1)[:, :-1].to(pred_class_logits.dtype)
        losses = F.binary_cross_entropy_with_logits(
            pred_class_logits[:, :-1], target, reduction="none"
        )
        if self.use_fed_loss and gt_classes.numel():
            sampled = self.get_fed_loss_classes(
                gt_classes, self.fed_loss_num_classes, num_classes, self.fed_loss_cls_weights
            )
            weight = losses.new_zeros(num_classes + 1).index_fill(0, sampled, 1.0)
            losses = losses * weight[:-1]
        foreground = gt_classes < num_classes
        return self.superloss_cls(losses.sum(dim=1), foreground, max(gt_classes.numel(), 1))

    def box_reg_loss(
        self,
        proposal_boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        pred_deltas: torch.Tensor,
        gt_classes: torch.Tensor,
    ) -> torch.Tensor:
        """Box loss of each foreground RoI, then the SuperLoss.

        Args:
            proposal_boxes, gt_boxes: (R, D) in pixels; D is 4 (XYXY), or 5 for rotated boxes
            pred_deltas: (R, D) if class-agnostic, else (R, K*D)
            gt_classes: (R,) in [0, K]
        """
        if self.superloss_box_reg is None:
            return super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
        index = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        box_dim = proposal_boxes.shape[1]
        if pred_deltas.shape[1] == box_dim:
            fg_deltas = pred_deltas[index]
        else:
            fg_deltas = pred_deltas.view(-1, self.num_classes, box_dim)[index, gt_classes[index]]
        losses = box_regression_losses(
            proposal_boxes[index],
            gt_boxes[index],
            fg_deltas,
            self.box2box_transform,
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        # Divide by R, not by foreground: each foreground RoI keeps equal weight in every batch.
        foreground = torch.ones_like(losses, dtype=torch.bool)
        return self.superloss_box_reg(losses, foreground, max(gt_classes.numel(), 1))


def _gt_classes(proposals: list[Instances], scores: torch.Tensor) -> torch.Tensor:
    if not proposals:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    return cat([p.gt_classes for p in proposals], dim=0)


@cache
def _superloss_class(cls: Any) -> Any:
    if issubclass(cls, SuperLossFastRCNNOutputLayers):
        return cls
    if cls is FastRCNNOutputLayers:
        return SuperLossFastRCNNOutputLayers
    # Before its class in the method resolution order, so that super() reaches the class's own.
    return type(f"SuperLoss{cls.__name__}", (SuperLossFastRCNNOutputLayers, cls), {})


def _check_own_losses(cls: type, terms: dict[str, SuperLossTerm | None]) -> None:
    """Refuse to put the SuperLoss of stock losses in the place of losses that a class changed."""
    replaced = {
        "losses": "superloss_cls",
        "sigmoid_cross_entropy_loss": "superloss_cls",
        "box_reg_loss": "superloss_box_reg",
    }
    if issubclass(cls, SuperLossFastRCNNOutputLayers):
        return
    for method, term in replaced.items():
        stock = getattr(FastRCNNOutputLayers, method, None)
        if terms[term] is not None and getattr(cls, method, None) is not stock:
            raise TypeError(
                f"{cls.__name__} has a {method}() of its own, which the SuperLoss would replace; "
                f"derive it from SuperLossFastRCNNOutputLayers, or switch {term} off"
            )


def to_superloss_output_layers(
    predictor: nn.Module,
    superloss_cls: SuperLossTerm | None,
    superloss_box_reg: SuperLossTerm | None,
) -> nn.Module:
    """Give a built predictor the SuperLoss, in place.

    The module's class is replaced by a subclass, as ``torch.distributed.fsdp.fully_shard`` and
    ``torch.nn.utils.parametrize`` do. A rebuilt predictor would draw new random weights and would
    need the arguments of a class that we may not know.

    Args:
        predictor: an instance of :class:`FastRCNNOutputLayers` or of a subclass
        superloss_cls: the classification term; None keeps the stock loss
        superloss_box_reg: the box regression term; None keeps the stock loss

    Returns:
        ``predictor``, with the same parameters and state-dict keys

    Raises:
        TypeError: not a :class:`FastRCNNOutputLayers`, or one with losses of its own
    """
    if not isinstance(predictor, FastRCNNOutputLayers):
        raise TypeError(
            f"the SuperLoss needs a box predictor derived from FastRCNNOutputLayers; "
            f"got {type(predictor).__name__}"
        )
    terms = {"superloss_cls": superloss_cls, "superloss_box_reg": superloss_box_reg}
    _check_own_losses(type(predictor), terms)
    stock_class: Any = type(predictor)
    predictor.__class__ = _superloss_class(stock_class)
    predictor.superloss_cls = superloss_cls
    predictor.superloss_box_reg = superloss_box_reg
    return predictor
