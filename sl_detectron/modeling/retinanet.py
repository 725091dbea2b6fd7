"""RetinaNet whose focal loss and box regression go through the SuperLoss, one value per anchor.

Shape legend: N images, R anchors of an image over all levels, K classes, M foreground anchors.
"""

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage

from .build import losses_from_config
from .class_targets import SampleTargets
from .loss_checks import check_anchor_losses
from .matched_annotations import (
    UNMATCHED,
    check_target_classes,
    ids_by_target,
    with_annotation_ids,
)
from .per_anchor_losses import PerAnchorLosses
from .superloss_term import GRANULARITIES, SuperLossTerm, reduce_losses

__all__ = ["SuperLossRetinaNet"]


@META_ARCH_REGISTRY.register()
class SuperLossRetinaNet(RetinaNet, PerAnchorLosses):
    """:class:`RetinaNet` with the SuperLoss; the head has no losses, so the detector is replaced.

    The losses of the anchors are those of :class:`PerAnchorLosses`. It comes last in the method
    resolution order, so that in ``class SuperLossMyRetinaNet(SuperLossRetinaNet, MyRetinaNet)`` a
    ``MyRetinaNet`` which restates detectron2's losses says what they are by methods of these names.

    Args:
        superloss_cls: the classification term; None keeps the plain focal loss. Its samples are
            the focal losses of anchors, summed over classes, or with granularity "class" of every
            (anchor, class).
        superloss_box_reg: the box regression term; None keeps the plain box loss
        kwargs: see :class:`RetinaNet`

    Raises:
        TypeError: a custom class restates a loss that the SuperLoss would replace and does not say
            what it is for each anchor, or detectron2's class itself was changed
        ValueError: a term does not fit a dense detector
    """

    # Per image (R,) ids of the matched annotations, from label_anchors() to the losses() after it.
    _annotation_ids: list[torch.Tensor] | None = None
    class_targets: SampleTargets | None = None

    @configurable
    def __init__(
        self,
        *,
        superloss_cls: SuperLossTerm | None = None,
        superloss_box_reg: SuperLossTerm | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_anchor_losses(self, SuperLossRetinaNet, superloss_cls, superloss_box_reg)
        self.superloss_cls = superloss_cls
        self.superloss_box_reg = superloss_box_reg

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        losses = losses_from_config(cfg, None, cls_granularities=GRANULARITIES)
        del losses["classification_loss"]  # None: a focal loss has no other choice
        return {**super().from_config(cfg), **losses}

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As the base class; notes the annotation that each anchor is matched to, if needed."""
        check_target_classes(gt_instances, self.num_classes)
        self._annotation_ids = None
        terms = (self.superloss_cls, self.superloss_box_reg)
        needs_ids = any(term is not None and term.needs_annotation_ids for term in terms)
        if not needs_ids and self.class_targets is None:
            labels, boxes = super().label_anchors(anchors, gt_instances)
            return labels, boxes
        targets = with_annotation_ids(gt_instances)
        if self.class_targets is not None:
            targets = self.class_targets.relabel(targets)
        labels, boxes = super().label_anchors(anchors, targets)
        self._annotation_ids = [
            ids_by_target(image_labels, image_boxes, self.num_classes, target)
            for image_labels, image_boxes, target in zip(labels, boxes, targets)
        ]
        return labels, boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """As the base class, each anchor's losses through the SuperLoss before they are summed.

        Args:
            anchors: per level, the boxes of one image
            pred_logits: per level, (N, Hi*Wi*Ai, K)
            gt_labels: per image, (R,) in [-1, K]; -1 is ignored, K background
            pred_anchor_deltas: per level, (N, Hi*Wi*Ai, 4)
            gt_boxes: per image, (R, 4) in pixels, XYXY

        Returns:
            ``loss_cls`` and ``loss_box_reg``, 0-d tensors
        """
        annotation_ids, self._annotation_ids = self._annotation_ids, None
        arguments = anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes
        has_cls_loss = self.superloss_cls is not None or self.class_targets is not None
        if not has_cls_loss and self.superloss_box_reg is None:
            return dict(super().losses(*arguments))
        before = self.__dict__.get("loss_normalizer")
        losses: dict[str, torch.Tensor] = {}
        # Else only for a box loss that equals ours: a second focal loss would cost as much memory.
        if not has_cls_loss or super().losses.__func__ is not RetinaNet.losses:
            losses = dict(super().losses(*arguments))
        labels = torch.stack(gt_labels)
        foreground = (labels >= 0) & (labels != self.num_classes)
        # Host trip: as stock, whose normalizer is a Python float, stepped once per iteration.
        num_foreground = foreground.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_foreground / len(gt_labels))
        if losses and before is None:
            self.__dict__.pop("loss_normalizer", None)
        elif losses:
            self.loss_normalizer = before
        normalizer = self._ema_update("loss_normalizer", max(num_foreground, 1), 100)
        logits = cat(pred_logits, dim=1)
        ids = None if annotation_ids is None else torch.stack(annotation_ids)
        replaced = {}
        if has_cls_loss:
            compute = partial(self._class_term, logits, labels, foreground, normalizer, ids)
            targets = self.class_targets
            replaced["loss_cls"] = compute() if targets is None else targets.settle(compute)
        if self.superloss_box_reg is not None or not losses:
            losses_box = self.foreground_box_losses(
                Boxes.cat(anchors).tensor,
                torch.stack(gt_boxes),
                cat(pred_anchor_deltas, dim=1),
                foreground,
            )
            replaced["loss_box_reg"] = reduce_losses(
                self.superloss_box_reg,
                losses_box,
                torch.ones_like(losses_box, dtype=torch.bool),
                normalizer,
                # Host trip: of the anchors that the box loss has just waited for.
                None if ids is None else ids[foreground],
                lambda: logits[foreground].float().sigmoid(),
            )
        missing = sorted(replaced.keys() - losses.keys()) if losses else []
        if missing:
            raise TypeError(
                f"losses() of {type(self).__name__} has {sorted(losses)} and no {missing}, which "
                "the SuperLoss would replace; switch those terms off"
            )
        return {**losses, **replaced}

    def _class_term(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        foreground: torch.Tensor,
        normalizer: float,
        ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """``loss_cls``; a method may ask for it twice, and after losses()."""
        # Host trip: as in stock's focal loss, which leaves out the ignored anchors.
        valid = (labels >= 0).nonzero(as_tuple=True)
        losses, weights = self._losses_of_logits(logits, labels, ids)
        valid_losses = losses[valid]
        valid_foreground = foreground[valid]
        if self.superloss_cls is None or self.superloss_cls.granularity != "class":
            valid_losses = valid_losses.sum(dim=-1)
        else:  # as much foreground as their anchor
            valid_foreground = valid_foreground[:, None].expand_as(valid_losses)
        return reduce_losses(
            self.superloss_cls,
            valid_losses,
            valid_foreground,
            normalizer,
            None if ids is None else ids[valid],
            lambda: logits[valid].float().sigmoid(),
            None if weights is None else weights[valid],
        )

    def _losses_of_logits(
        self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(N, R, K) losses, and (N, R) weights where samples have targets."""
        losses = self.classification_losses(logits, labels)
        if self.class_targets is None or ids is None:
            return losses, None
        # Host trip: few anchors are matched, and only they have other candidates than their label.
        matched = (ids != UNMATCHED).nonzero(as_tuple=True)
        expected, weights = self.class_targets.expected_losses(
            lambda classes: self.classification_losses(logits[matched], classes),
            ids[matched],
            labels[matched],
            lambda: logits[matched].float().sigmoid(),
        )
        all_weights = torch.ones_like(labels, dtype=weights.dtype)
        return losses.index_put(matched, expected), all_weights.index_put(matched, weights)
