"""ROI heads whose box classification and regression go through the SuperLoss."""

import copy
from functools import cache
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    ROIHeads,
    RROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Instances

from .annotation_ids import FIELD, ids_by_target, with_annotation_ids
from .build import (
    ClassificationLoss,
    classification_loss_from_config,
    superloss_terms_from_config,
)
from .fast_rcnn import to_superloss_output_layers
from .superloss_term import SuperLossTerm

__all__ = [
    "SuperLossROIHeadsMixin",
    "SuperLossStandardROIHeads",
    "SuperLossRes5ROIHeads",
    "SuperLossCascadeROIHeads",
    "SuperLossRROIHeads",
    "superloss_roi_heads",
]

# detectron2's scripting declares these for StandardROIHeads itself; TorchScript does not look at
# base classes.
_SCRIPT_CONSTANTS = {"mask_on": torch.jit.Final[bool], "keypoint_on": torch.jit.Final[bool]}


class SuperLossROIHeadsMixin(ROIHeads):
    """Gives the box predictors of any ROI heads the SuperLoss.

    Heads that are built from a config take the terms of ``MODEL.SUPERLOSS``; heads that are built
    by arguments take ``superloss_cls`` and ``superloss_box_reg``. Each predictor, as each stage of
    a cascade, gets terms of its own.

    Put it before the heads that it extends, or call :func:`superloss_roi_heads`::

        @ROI_HEADS_REGISTRY.register()
        class SuperLossMyROIHeads(SuperLossROIHeadsMixin, MyROIHeads):
            pass
    """

    def __init__(
        self,
        *args: Any,
        superloss_cls: SuperLossTerm | None = None,
        superloss_box_reg: SuperLossTerm | None = None,
        classification_loss: ClassificationLoss | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            args, kwargs: of the heads that are extended: a config and an input shape, or arguments
            superloss_cls: the classification term; None keeps the stock loss
            superloss_box_reg: the box regression term; None keeps the stock loss
            classification_loss: another loss than the heads' own softmax cross-entropy

        Raises:
            ValueError: the heads have no :class:`FastRCNNOutputLayers`
        """
        super().__init__(*args, **kwargs)
        predictors = [m for m in self.modules() if isinstance(m, FastRCNNOutputLayers)]
        if not predictors:
            raise ValueError(
                f"{type(self).__name__} has no box predictor derived from FastRCNNOutputLayers, "
                "which the SuperLoss needs"
            )
        losses: dict[str, Any] = {
            "superloss_cls": superloss_cls,
            "superloss_box_reg": superloss_box_reg,
            "classification_loss": classification_loss,
        }
        cfg = next((a for a in (*args, *kwargs.values()) if isinstance(a, CfgNode)), None)
        for predictor in predictors:
            if cfg is not None:
                softmax = not getattr(predictor, "use_sigmoid_ce", False)
                num_classes = predictor.num_classes if softmax else None
                losses = {
                    **superloss_terms_from_config(cfg, num_classes),
                    "classification_loss": classification_loss_from_config(cfg, softmax),
                }
            if cfg is not None or any(losses.values()):
                to_superloss_output_layers(predictor, **copy.deepcopy(losses))

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """As the base class; the sampled proposals also get ``gt_annotation_ids``."""
        return super().label_and_sample_proposals(proposals, with_annotation_ids(targets))

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """What later stages of a cascade match by; it passes on classes and boxes only."""
        proposals = super()._match_and_label_boxes(proposals, stage, targets)
        for proposal, target in zip(proposals, with_annotation_ids(targets)):
            boxes = proposal.gt_boxes.tensor
            ids = ids_by_target(proposal.gt_classes, boxes, self.num_classes, target)
            proposal.set(FIELD, ids)
        return proposals


@cache
def superloss_roi_heads(heads: type[ROIHeads]) -> type[ROIHeads]:
    """The SuperLoss version of any ROI heads, registered as ``SuperLoss<Name>``.

    Args:
        heads: a subclass of :class:`ROIHeads` whose box predictors derive from
            :class:`FastRCNNOutputLayers`

    Returns:
        a subclass of ``heads``, the same one for the same heads

    Raises:
        TypeError: not ROI heads

    Example:
        >>> class MyROIHeads(StandardROIHeads):
        ...     pass
        >>> superloss_roi_heads(MyROIHeads).__name__
        'SuperLossMyROIHeads'
        >>> "SuperLossMyROIHeads" in ROI_HEADS_REGISTRY
        True
    """
    if not (isinstance(heads, type) and issubclass(heads, ROIHeads)):
        raise TypeError(f"superloss_roi_heads takes a subclass of ROIHeads; got {heads!r}")
    if issubclass(heads, SuperLossROIHeadsMixin):
        return heads
    name = f"SuperLoss{heads.__name__}"
    namespace: dict[str, Any] = {"__module__": heads.__module__}
    if issubclass(heads, StandardROIHeads):
        namespace["__annotations__"] = _SCRIPT_CONSTANTS
    superloss_heads = type(name, (SuperLossROIHeadsMixin, heads), namespace)
    if name not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(superloss_heads)
    return superloss_heads


@ROI_HEADS_REGISTRY.register()
class SuperLossStandardROIHeads(SuperLossROIHeadsMixin, StandardROIHeads):
    """:class:`StandardROIHeads` (FPN) with the SuperLoss; masks and keypoints as stock."""

    __annotations__ = _SCRIPT_CONSTANTS


@ROI_HEADS_REGISTRY.register()
class SuperLossRes5ROIHeads(SuperLossROIHeadsMixin, Res5ROIHeads):
    """:class:`Res5ROIHeads` (C4) with the SuperLoss."""


@ROI_HEADS_REGISTRY.register()
class SuperLossCascadeROIHeads(SuperLossROIHeadsMixin, CascadeROIHeads):
    """:class:`CascadeROIHeads` with the SuperLoss, every stage with its own tau."""


@ROI_HEADS_REGISTRY.register()
class SuperLossRROIHeads(SuperLossROIHeadsMixin, RROIHeads):
    """:class:`RROIHeads` (rotated boxes) with the SuperLoss."""
