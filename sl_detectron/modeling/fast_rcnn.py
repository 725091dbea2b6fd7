"""Fast R-CNN output layers whose losses go through the SuperLoss, one value per RoI.

Shape legend: R RoIs of a batch, M foreground RoIs, K foreground classes (class K is background).
"""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import cat, cross_entropy
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..losses import DataParams
from .box_regression import box_regression_losses
from .build import (
    ClassificationLoss,
    classification_loss_from_config,
    superloss_terms_from_config,
)
from .custom_predictors import MAKERS, RoILosses, check_keys, compare_own_losses
from .generated import make_subclass
from .matched_annotations import FIRST_LOCAL_ID, annotation_ids_of
from .superloss_term import LOG_PERIOD, SuperLossTerm, reduce_losses

__all__ = ["SuperLossFastRCNNOutputLayers", "to_superloss_output_layers"]


class SuperLossFastRCNNOutputLayers(FastRCNNOutputLayers):
    """:class:`FastRCNNOutputLayers` with the SuperLoss.

    A term that is None leaves the stock loss of the base class untouched, bit for bit.

    A class of your own that comes after this one in the method resolution order, as
    :func:`to_superloss_output_layers` puts it, may compute detectron2's losses in its own way:
    both are compared on the first batch and whenever scalars are logged. If its losses are others,
    it says what they are for each RoI, by a method ``classification_losses(scores, gt_classes) ->
    (R,)`` or ``foreground_box_losses(proposal_boxes, gt_boxes, pred_deltas, gt_classes) -> (M,)``.
    """

    # The samples of the running call of losses(), by key; None outside of it.
    _samples: dict[str, RoILosses] | None = None
    _compared = False
    _ids_checked = False

    @configurable
    def __init__(
        self,
        input_shape: Any,
        *,
        superloss_cls: SuperLossTerm | None = None,
        superloss_box_reg: SuperLossTerm | None = None,
        classification_loss: ClassificationLoss | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            input_shape, kwargs: see :class:`FastRCNNOutputLayers`
            superloss_cls: the classification term; None keeps the stock loss
            superloss_box_reg: the box regression term; None keeps the stock loss
            classification_loss: another loss than the softmax cross-entropy, per RoI, with or
                without a term; None keeps it
        """
        super().__init__(input_shape, **kwargs)
        self.superloss_cls = superloss_cls
        self.superloss_box_reg = superloss_box_reg
        self.classification_loss = classification_loss

    @classmethod
    def from_config(cls, cfg, input_shape):
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        softmax = not cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False)
        return {
            **super().from_config(cfg, input_shape),
            **superloss_terms_from_config(cfg, num_classes if softmax else None),
            "classification_loss": classification_loss_from_config(cfg, softmax),
        }

    @property
    @torch.jit.unused
    def needs_annotation_ids(self) -> bool:
        """Whether somebody asks which annotation a RoI is matched to."""
        terms = (self.superloss_cls, self.superloss_box_reg)
        if isinstance(self.classification_loss, DataParams):
            return True
        return any(term is not None and term.needs_annotation_ids for term in terms)

    def losses(
        self,
        predictions: tuple[Tensor, Tensor],
        proposals: list[Instances],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """As the base class, with the SuperLoss in the place of each loss that has a term.

        The methods that the base class calls return detectron2's plain mean and leave what it is
        the mean of.
        """
        terms = {"loss_cls": self.superloss_cls, "loss_box_reg": self.superloss_box_reg}
        replaced = [key for key, term in terms.items() if term is not None]
        if self.classification_loss is not None and "loss_cls" not in replaced:
            replaced.append("loss_cls")
        if not replaced:
            return super().losses(predictions, proposals, *args, **kwargs)
        scores = predictions[0]
        gt_classes = _gt_classes(proposals, scores)
        foreground = self._is_foreground(gt_classes)
        ids = annotation_ids_of(proposals, foreground)
        self._samples = samples = {}
        try:
            losses = dict(super().losses(predictions, proposals, *args, **kwargs))
        finally:
            del self._samples  # TorchScript has no use for an attribute of this type
        if self.classification_loss is not None:
            samples["loss_cls"] = RoILosses(self._other_losses(scores, gt_classes, ids))
        elif "loss_cls" not in samples:
            samples["loss_cls"] = RoILosses(self.classification_losses(scores, gt_classes))
        # Divide by R, not by foreground: each foreground RoI keeps equal weight in every batch.
        num_rois = max(gt_classes.numel(), 1)
        self._check_own_losses(replaced, losses, samples, num_rois)
        for key in replaced:
            where = samples[key].where
            loss = reduce_losses(
                terms[key],
                samples[key].losses,
                foreground[where],
                num_rois,
                None if ids is None else ids[where],
                partial(self._foreground_probabilities, scores[where]),
            )
            losses[key] = loss * self.loss_weight.get(key, 1.0)
        return losses

    def _check_own_losses(
        self,
        replaced: list[str],
        losses: dict[str, Tensor],
        samples: dict[str, RoILosses],
        num_rois: int,
    ) -> None:
        """Compare on the first batch and when scalars are logged: it waits for the device."""
        check_keys(self, replaced, losses)
        keys = [k for k in replaced if any(self._has_own(maker) for maker in MAKERS[k])]
        if self.classification_loss is not None and "loss_cls" in keys:
            keys.remove("loss_cls")  # another loss is what was asked for
        logs = (get_event_storage().iter + 1) % LOG_PERIOD == 0
        if keys and (logs or not self._compared):
            has_per_roi = hasattr(super(), "classification_losses")
            compare_own_losses(self, keys, losses, samples, num_rois, has_per_roi)
            self._compared = True

    def _has_own(self, method: str) -> bool:
        """Whether a class between this one and detectron2's has the method."""
        order = type(self).__mro__
        first = order.index(SuperLossFastRCNNOutputLayers) + 1
        between = order[first : order.index(FastRCNNOutputLayers)]
        return any(method in vars(c) for c in between)

    def _other_losses(self, scores: Tensor, gt_classes: Tensor, ids: Tensor | None) -> Tensor:
        other: Any = self.classification_loss
        if not isinstance(other, DataParams):
            return other(scores, gt_classes)
        if not self._ids_checked:  # once, as it waits for the device
            if ids is None or bool((ids >= FIRST_LOCAL_ID).any()):
                raise ValueError(
                    "data_params learns for every training annotation, but the loader does not "
                    "say which ones a batch has: give its instances gt_annotation_ids, as "
                    "sl_detectron.label_noise.build_noisy_train_loader does"
                )
            self._ids_checked = True
        return other(scores, gt_classes, ids)

    def classification_losses(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        """Softmax cross-entropy of each RoI, or sigmoid cross-entropy summed over its classes.

        Args:
            scores: (R, K+1) logits
            gt_classes: (R,) in [0, K]

        Returns:
            (R,), in nats
        """
        own = getattr(super(), "classification_losses", None)
        if own is not None:
            return own(scores, gt_classes)
        if not getattr(self, "use_sigmoid_ce", False):
            return cross_entropy(scores, gt_classes, reduction="none")
        gt_classes = gt_classes.to(scores.device, torch.long)
        target = F.one_hot(gt_classes, self.num_classes + 1)[:, :-1].to(scores.dtype)
        losses = F.binary_cross_entropy_with_logits(scores[:, :-1], target, reduction="none")
        if self.use_fed_loss and gt_classes.numel():
            sampled = self.get_fed_loss_classes(
                gt_classes, self.fed_loss_num_classes, self.num_classes, self.fed_loss_cls_weights
            )
            weight = losses.new_zeros(self.num_classes + 1).index_fill(0, sampled, 1.0)
            losses = losses * weight[:-1]
        return losses.sum(dim=1)

    def foreground_box_losses(
        self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor
    ) -> Tensor:
        """Box loss of each foreground RoI, summed over its coordinates.

        Args:
            proposal_boxes, gt_boxes: (R, D) in pixels; D is 4 (XYXY), or 5 for rotated boxes
            pred_deltas: (R, D) if class-agnostic, else (R, K*D)
            gt_classes: (R,) in [0, K]

        Returns:
            (M,)
        """
        own = getattr(super(), "foreground_box_losses", None)
        if own is not None:
            return own(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
        index = self._is_foreground(gt_classes).nonzero()[:, 0]
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

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """The mean over RoIs, as the base class; what it is the mean of is noted."""
        stock = super().sigmoid_cross_entropy_loss
        if self.superloss_cls is None or self._samples is None:
            return stock(pred_class_logits, gt_classes)
        losses = self.classification_losses(pred_class_logits, gt_classes)
        self._samples["loss_cls"] = RoILosses(losses)
        if self._has_own("sigmoid_cross_entropy_loss"):
            return stock(pred_class_logits, gt_classes)
        # Not by the base class: federated losses would draw their classes a second time.
        return losses.sum() / max(gt_classes.numel(), 1)

    def box_reg_loss(
        self,
        proposal_boxes: Tensor,
        gt_boxes: Tensor,
        pred_deltas: Tensor,
        gt_classes: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The sum over foreground divided by R, as the base class; its samples are noted."""
        if self.superloss_box_reg is not None and self._samples is not None:
            losses = self.foreground_box_losses(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
            index = self._is_foreground(gt_classes).nonzero()[:, 0]
            self._samples["loss_box_reg"] = RoILosses(losses, index)
            if not self._has_own("box_reg_loss"):
                return losses.sum() / max(gt_classes.numel(), 1)
        return super().box_reg_loss(
            proposal_boxes, gt_boxes, pred_deltas, gt_classes, *args, **kwargs
        )

    def _is_foreground(self, gt_classes: Tensor) -> Tensor:
        return (gt_classes >= 0) & (gt_classes < self.num_classes)

    def _foreground_probabilities(self, scores: Tensor) -> Tensor:
        """(R, K) probabilities of the classes of an object, background left out."""
        scores = scores[:, : self.num_classes].float()
        if getattr(self, "use_sigmoid_ce", False):
            return scores.sigmoid()
        return scores.softmax(dim=1)


def _gt_classes(proposals: list[Instances], scores: Tensor) -> Tensor:
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
    return make_subclass(_superloss_class, SuperLossFastRCNNOutputLayers, cls, {})


def to_superloss_output_layers(
    predictor: nn.Module,
    superloss_cls: SuperLossTerm | None,
    superloss_box_reg: SuperLossTerm | None,
    classification_loss: ClassificationLoss | None = None,
) -> nn.Module:
    """Give a built predictor the SuperLoss, in place.

    The module's class is replaced by a subclass, as ``torch.distributed.fsdp.fully_shard`` and
    ``torch.nn.utils.parametrize`` do. A rebuilt predictor would draw new random weights and would
    need the arguments of a class that we may not know.

    Args:
        predictor: an instance of :class:`FastRCNNOutputLayers` or of a subclass
        superloss_cls: the classification term; None keeps the stock loss
        superloss_box_reg: the box regression term; None keeps the stock loss
        classification_loss: another loss than the softmax cross-entropy; None keeps it

    Returns:
        ``predictor``, with the same parameters and state-dict keys

    Raises:
        TypeError: not a :class:`FastRCNNOutputLayers`
        ValueError: a term has the granularity "class", which RoIs do not have
    """
    if not isinstance(predictor, FastRCNNOutputLayers):
        raise TypeError(
            f"the SuperLoss needs a box predictor derived from FastRCNNOutputLayers; "
            f"got {type(predictor).__name__}"
        )
    for term in (superloss_cls, superloss_box_reg):
        if term is not None and term.granularity == "class":
            raise ValueError("granularity 'class' is for dense detectors, not for RoIs")
    stock_class: Any = type(predictor)
    predictor.__class__ = _superloss_class(stock_class)
    predictor.superloss_cls = superloss_cls
    predictor.superloss_box_reg = superloss_box_reg
    predictor.classification_loss = classification_loss
    return predictor
