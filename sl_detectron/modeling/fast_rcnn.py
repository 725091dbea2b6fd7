"""Fast R-CNN output layers whose losses go through the SuperLoss, one value per RoI.

Shape legend: R RoIs of a batch, K foreground classes (class K is background), D numbers of a box.
"""

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from .build import ClassificationLoss, losses_from_config
from .class_targets import SampleTargets
from .custom_predictors import make_subclass
from .loss_checks import check_roi_losses
from .matched_annotations import annotation_ids_of
from .per_roi_losses import PerRoILosses, is_foreground
from .superloss_term import SuperLossTerm, reduce_losses

__all__ = ["SuperLossFastRCNNOutputLayers", "to_superloss_output_layers"]


class SuperLossFastRCNNOutputLayers(FastRCNNOutputLayers, PerRoILosses):
    """:class:`FastRCNNOutputLayers` with the SuperLoss.

    A term that is None leaves the stock loss of the base class untouched, bit for bit.

    The losses of the RoIs are those of :class:`PerRoILosses`. It comes last in the method
    resolution order, so that a custom predictor which restates detectron2's losses says what they
    are by methods of the same names.
    """

    class_targets: SampleTargets | None = None

    @configurable
    def __init__(
        self,
        input_shape: Any,
        *,
        superloss_cls: SuperLossTerm | None = None,
        superloss_box_reg: SuperLossTerm | None = None,
        classification_loss: ClassificationLoss | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            input_shape, kwargs: see :class:`FastRCNNOutputLayers`
            superloss_cls: the classification term; None keeps the stock loss
            superloss_box_reg: the box regression term; None keeps the stock loss
            classification_loss: another loss than the softmax cross-entropy, per RoI, with or
                without a term; None keeps it
        """
        super().__init__(input_shape, **kwargs)
        losses = superloss_cls, superloss_box_reg, classification_loss
        check_roi_losses(self, type(self), SuperLossFastRCNNOutputLayers, *losses)
        self.superloss_cls = superloss_cls
        self.superloss_box_reg = superloss_box_reg
        self.classification_loss = classification_loss

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        softmax = not cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False)
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES if softmax else None
        return {**super().from_config(cfg, input_shape), **losses_from_config(cfg, num_classes)}

    @property
    @torch.jit.unused
    def needs_annotation_ids(self) -> bool:
        """Whether a loss or an observer needs the annotation that a RoI is matched to."""
        parts = (self.superloss_cls, self.superloss_box_reg, self.classification_loss)
        needed = any(getattr(part, "needs_annotation_ids", False) for part in parts)
        return needed or self.class_targets is not None

    def losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """As the base class, with the SuperLoss in the place of each loss that has a term."""
        losses: dict[str, Tensor] = super().losses(predictions, proposals, *args, **kwargs)
        parts = (self.superloss_cls, self.classification_loss, self.class_targets)
        has_cls_loss = any(part is not None for part in parts)
        if not has_cls_loss and self.superloss_box_reg is None:
            return losses
        scores, deltas = predictions[0], predictions[1]
        gt_classes = _cat([p.gt_classes for p in proposals], scores.new_empty(0).long())
        foreground = is_foreground(gt_classes, self.num_classes)
        ids = annotation_ids_of(proposals, foreground) if self.needs_annotation_ids else None
        # Divide by R, not by foreground: each foreground RoI keeps equal weight in every batch.
        num_rois = max(gt_classes.numel(), 1)
        probabilities = self._probabilities_of(scores)
        replaced = {}
        if has_cls_loss:
            federated, self._federated_classes = self._federated_classes, None
            arguments = scores, gt_classes, foreground, num_rois, ids, probabilities, federated
            compute = partial(self._class_term, *arguments)
            targets = self.class_targets
            replaced["loss_cls"] = compute() if targets is None else targets.settle(compute)
        if self.superloss_box_reg is not None:
            boxes, gt_boxes = _boxes(proposals, deltas)
            # Host trip: the stock box loss of this step has waited for the same RoIs.
            index = foreground.nonzero()[:, 0]
            replaced["loss_box_reg"] = self.loss_weight.get("loss_box_reg", 1.0) * reduce_losses(
                self.superloss_box_reg,
                self.foreground_box_losses(boxes, gt_boxes, deltas, gt_classes),
                foreground[index],
                num_rois,
                None if ids is None else ids[index],
                probabilities and (lambda: probabilities()[index]),
            )
        missing = sorted(replaced.keys() - losses.keys())
        if missing:
            raise TypeError(
                f"losses() of {type(self).__name__} has {sorted(losses)} and no {missing}, which "
                "the SuperLoss would replace; switch those terms off"
            )
        return {**losses, **replaced}

    def get_fed_loss_classes(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the base class; the classes are noted, since a second draw would be of others."""
        classes: Tensor = super().get_fed_loss_classes(*args, **kwargs)
        if self.superloss_cls is not None or self.class_targets is not None:
            self._federated_classes = classes
        return classes

    def _class_term(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        foreground: Tensor,
        num_rois: int,
        ids: Tensor | None,
        probabilities: Callable[[], Tensor] | None,
        federated_classes: Tensor | None,
    ) -> Tensor:
        """``loss_cls``; a method may ask for it twice, and after losses()."""
        self._federated_classes = federated_classes
        losses, weights = self._losses_of_scores(scores, gt_classes, ids, probabilities)
        self._federated_classes = None
        is_softmax = not getattr(self, "use_sigmoid_ce", False)
        objects = partial(_object_probabilities, scores) if is_softmax else None
        arguments = losses, foreground, num_rois, ids, probabilities, weights, objects
        reduced = reduce_losses(self.superloss_cls, *arguments)
        weight: float = self.loss_weight.get("loss_cls", 1.0)
        return reduced * weight

    def _losses_of_scores(
        self,
        scores: Tensor,
        gt_classes: Tensor,
        ids: Tensor | None,
        probabilities: Callable[[], Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(R,) losses of the configured kind, and (R,) weights where samples have targets."""

        def loss_of(classes: Tensor) -> Tensor:
            custom = self.classification_loss
            if custom is None:
                return self.classification_losses(scores, classes)
            if getattr(custom, "needs_annotation_ids", False):
                return custom(scores, classes, ids)
            return custom(scores, classes)

        if self.class_targets is None or ids is None:
            return loss_of(gt_classes), None
        arguments = loss_of, ids, gt_classes, probabilities
        custom: Any = self.classification_loss
        if not (getattr(custom, "learns_once", False) and custom.training):
            return self.class_targets.expected_losses(*arguments)
        # Several classes of a sample may be asked for: the step is counted after them.
        custom.eval()
        try:
            expected = self.class_targets.expected_losses(*arguments)
        finally:
            custom.train()
        loss_of(gt_classes)
        return expected

    def _probabilities_of(self, scores: Tensor) -> Callable[[], Tensor] | None:
        """Makes (R, K) probabilities of the classes of an object, background left out.

        None for scores of other classes than the K of the head, as those of a vocabulary that
        changes from batch to batch: an observer would take one class for another.
        """
        if scores.shape[1] == self.num_classes + 1:
            return partial(self._foreground_probabilities, scores)
        if self.superloss_cls is not None and self.superloss_cls.observers:
            log_first_n(
                logging.WARNING,
                f"{type(self).__name__} has {scores.shape[1]} scores a RoI, not num_classes + 1 = "
                f"{self.num_classes + 1}: no annotation is tracked",
                name=__name__,
                key="message",
            )
        return None

    def _foreground_probabilities(self, scores: Tensor) -> Tensor:
        scores = scores[:, : self.num_classes].float()
        if getattr(self, "use_sigmoid_ce", False):
            return scores.sigmoid()
        return scores.softmax(dim=1)


def _object_probabilities(scores: Tensor) -> Tensor:
    """(R,) of (R, K+1) logits of a softmax, the last of which is of background."""
    return 1 - scores.float().softmax(dim=1)[:, -1]


def _cat(tensors: list[Tensor], empty: Tensor) -> Tensor:
    return cat(tensors, dim=0) if tensors else empty


def _boxes(proposals: list[Instances], deltas: Tensor) -> tuple[Tensor, Tensor]:
    """(R, D) proposals and the boxes matched to them; an image without any has placeholders."""
    matched = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
    empty = deltas.new_empty(0, 4)
    return _cat([p.proposal_boxes.tensor for p in proposals], empty), _cat(matched, empty)


@cache
def _superloss_class(cls: Any) -> Any:
    if issubclass(cls, SuperLossFastRCNNOutputLayers):
        return cls
    if cls is FastRCNNOutputLayers:
        return SuperLossFastRCNNOutputLayers
    # Before its class in the method resolution order, so that super() reaches the class's own.
    try:
        return make_subclass(_superloss_class, SuperLossFastRCNNOutputLayers, cls, {})
    except TypeError as error:
        raise TypeError(
            f"{cls.__name__} must have PerRoILosses after FastRCNNOutputLayers as bases: {error}"
        ) from error


def to_superloss_output_layers(
    predictor: nn.Module,
    superloss_cls: SuperLossTerm | None,
    superloss_box_reg: SuperLossTerm | None,
    classification_loss: ClassificationLoss | None = None,
) -> nn.Module:
    """Give a built predictor the SuperLoss, in place.

    The module's class is replaced by a subclass, as ``torch.distributed.fsdp.fully_shard`` and
    ``torch.nn.utils.parametrize`` do. A rebuilt predictor would draw new random weights and would
    need the arguments of an unknown class.

    Args:
        predictor: an instance of :class:`FastRCNNOutputLayers` or of a subclass
        superloss_cls: the classification term; None keeps the stock loss
        superloss_box_reg: the box regression term; None keeps the stock loss
        classification_loss: another loss than the softmax cross-entropy; None keeps it

    Returns:
        ``predictor``, with the same parameters and state-dict keys

    Raises:
        TypeError: not a :class:`FastRCNNOutputLayers`, or its class restates a loss that the
            SuperLoss would replace and does not say what it is for each RoI, or detectron2's class
            itself was changed
        ValueError: a term or the loss does not fit the predictor
    """
    if not isinstance(predictor, FastRCNNOutputLayers):
        raise TypeError(
            f"the SuperLoss needs a box predictor derived from FastRCNNOutputLayers; "
            f"got {type(predictor).__name__}"
        )
    stock_class: Any = type(predictor)
    superloss_class = _superloss_class(stock_class)
    losses = superloss_cls, superloss_box_reg, classification_loss
    check_roi_losses(predictor, superloss_class, SuperLossFastRCNNOutputLayers, *losses)
    predictor.__class__ = superloss_class
    predictor.superloss_cls = superloss_cls
    predictor.superloss_box_reg = superloss_box_reg
    predictor.classification_loss = classification_loss
    module: nn.Module = predictor
    return module
