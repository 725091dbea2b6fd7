"""ROI heads whose box classification and regression go through the SuperLoss."""

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config.config import _get_args_from_config
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
from torch import nn

from .build import ClassificationLoss, losses_from_config
from .class_targets import SampleTargets
from .custom_predictors import make_subclass
from .fast_rcnn import SuperLossFastRCNNOutputLayers, to_superloss_output_layers
from .matched_annotations import (
    FIELD,
    check_target_classes,
    ids_by_target,
    with_annotation_ids,
)
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
    a cascade, gets its own copy.

    Put it before the heads that it extends, or call :func:`superloss_roi_heads`::

        @ROI_HEADS_REGISTRY.register()
        class SuperLossMyROIHeads(SuperLossROIHeadsMixin, MyROIHeads):
            pass
    """

    class_targets: SampleTargets | None = None

    def __init__(
        self,
        *args: Any,
        superloss_cls: SuperLossTerm | None = None,
        superloss_box_reg: SuperLossTerm | None = None,
        classification_loss: ClassificationLoss | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            args, kwargs: of the heads that are extended: a config and an input shape, or keywords
            superloss_cls: the classification term; None keeps the stock loss
            superloss_box_reg: the box regression term; None keeps the stock loss
            classification_loss: another loss than the heads' softmax cross-entropy

        Raises:
            ValueError: the heads have no :class:`FastRCNNOutputLayers`, or both a config and
                losses were given
        """
        super().__init__(*args, **kwargs)
        predictors = self._box_predictors()
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
        given = [name for name, loss in losses.items() if loss is not None]
        # As detectron2 calls heads: the config comes first, or there are keywords only.
        cfg = kwargs.get("cfg", args[0] if args else None)
        from_cfg = isinstance(cfg, CfgNode)
        if from_cfg and given:
            raise ValueError(
                f"{type(self).__name__} was given a config, whose MODEL.SUPERLOSS sets its "
                f"losses, and {given} beside it"
            )
        if from_cfg:
            _extend(predictors, cfg)
        elif given:
            # The first predictor gets what was given, the others copies.
            for i, predictor in enumerate(predictors):
                to_superloss_output_layers(predictor, **(copy.deepcopy(losses) if i else losses))

    @classmethod
    def from_config(cls, cfg: CfgNode, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the heads that are extended, with the SuperLoss in the box predictors."""
        # As @configurable itself calls it: what it does not take goes to __init__.
        ret: dict[str, Any] = _get_args_from_config(super().from_config, cfg, *args, **kwargs)
        for value in ret.values():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                _extend(part.modules() if isinstance(part, nn.Module) else [], cfg)
        return ret

    def _box_predictors(self) -> list[FastRCNNOutputLayers]:
        return [m for m in self.modules() if isinstance(m, FastRCNNOutputLayers)]

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances], *args: Any, **kwargs: Any
    ) -> list[Instances]:
        """As the base class; the sampled proposals also get ``gt_annotation_ids``."""
        check_target_classes(targets, self.num_classes)
        targets = self._numbered(targets)
        sampled = super().label_and_sample_proposals(proposals, targets, *args, **kwargs)
        # The sampling of rotated heads, for example, copies boxes and classes only.
        return self._with_ids(sampled, targets)

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances], *args: Any
    ) -> list[Instances]:
        """What later stages of a cascade match by; it passes on classes and boxes only."""
        targets = self._numbered(targets)
        matched = super()._match_and_label_boxes(proposals, stage, targets, *args)
        return self._with_ids(matched, targets)

    def _numbered(self, targets: list[Instances]) -> list[Instances]:
        """Targets with annotation ids, and with corrected classes where there are some."""
        losses = [getattr(p, "classification_loss", None) for p in self._box_predictors()]
        needs_known = any(getattr(loss, "needs_annotation_ids", False) for loss in losses)
        numbered = with_annotation_ids(targets, needs_known)
        return self.class_targets.relabel(numbered) if self.class_targets else numbered

    def _with_ids(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Recover annotation ids that the base class dropped, if needed."""
        if not any(getattr(p, "needs_annotation_ids", False) for p in self._box_predictors()):
            return proposals
        for proposal, target in zip(proposals, targets):
            if proposal.has("gt_boxes") and not proposal.has(FIELD):
                boxes = proposal.gt_boxes.tensor
                ids = ids_by_target(proposal.gt_classes, boxes, self.num_classes, target)
                proposal.set(FIELD, ids)
        return proposals


def _extend(values: Iterable[Any], cfg: CfgNode) -> None:
    """Give those of the values that are stock predictors the losses of a config."""
    for predictor in values:
        if not isinstance(predictor, FastRCNNOutputLayers):
            continue
        if not isinstance(predictor, SuperLossFastRCNNOutputLayers):
            softmax = not getattr(predictor, "use_sigmoid_ce", False)
            losses = losses_from_config(cfg, predictor.num_classes if softmax else None)
            to_superloss_output_layers(predictor, **losses)


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
        ValueError: the name is taken by the version of other heads

    Example:
        >>> class WideROIHeads(StandardROIHeads):
        ...     pass
        >>> superloss_roi_heads(WideROIHeads).__name__
        'SuperLossWideROIHeads'
        >>> "SuperLossWideROIHeads" in ROI_HEADS_REGISTRY
        True
    """
    if not (isinstance(heads, type) and issubclass(heads, ROIHeads)):
        raise TypeError(f"superloss_roi_heads takes a subclass of ROIHeads; got {heads!r}")
    if issubclass(heads, SuperLossROIHeadsMixin):
        return heads
    name = f"SuperLoss{heads.__name__}"
    if name in ROI_HEADS_REGISTRY:
        registered: type[ROIHeads] = ROI_HEADS_REGISTRY.get(name)
        if heads in registered.__mro__ and issubclass(registered, SuperLossROIHeadsMixin):
            return registered
        raise ValueError(
            f"{name} is registered already, for another class than {heads!r}; rename one of them"
        )
    namespace = (
        {"__annotations__": _SCRIPT_CONSTANTS} if issubclass(heads, StandardROIHeads) else {}
    )
    superloss_heads: type[ROIHeads] = make_subclass(
        superloss_roi_heads, SuperLossROIHeadsMixin, heads, namespace
    )
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
