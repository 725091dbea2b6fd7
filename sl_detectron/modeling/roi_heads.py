"""ROI heads whose box classification and regression go through the SuperLoss."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, ROIHeads, StandardROIHeads

from .fast_rcnn import to_superloss_output_layers
from .superloss_term import superloss_terms_from_config

__all__ = [
    "SuperLossROIHeadsMixin",
    "SuperLossStandardROIHeads",
    "SuperLossRes5ROIHeads",
    "SuperLossCascadeROIHeads",
]


class SuperLossROIHeadsMixin(ROIHeads):
    """Gives the box predictors of any configurable ROI heads the terms of ``MODEL.SUPERLOSS``.

    The config makes the difference: heads that are built without one take their predictor as an
    argument, and that is where :class:`SuperLossFastRCNNOutputLayers` goes.

    Put it before the heads that it extends::

        @ROI_HEADS_REGISTRY.register()
        class SuperLossMyROIHeads(SuperLossROIHeadsMixin, MyROIHeads):
            pass
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, *args: Any, **kwargs: Any) -> dict[str, Any]:
        ret = super().from_config(cfg, *args, **kwargs)
        for predictor in ret.get("box_predictors") or [ret["box_predictor"]]:
            softmax = not getattr(predictor, "use_sigmoid_ce", False)
            terms = superloss_terms_from_config(cfg, predictor.num_classes if softmax else None)
            to_superloss_output_layers(predictor, **terms)
        if cfg.MODEL.SUPERLOSS.CLS.GRANULARITY != "sample":
            raise ValueError(
                "MODEL.SUPERLOSS.CLS.GRANULARITY must be 'sample' for ROI heads; got "
                f"{cfg.MODEL.SUPERLOSS.CLS.GRANULARITY!r}"
            )
        return ret


@ROI_HEADS_REGISTRY.register()
class SuperLossStandardROIHeads(SuperLossROIHeadsMixin, StandardROIHeads):
    """:class:`StandardROIHeads` (FPN) with the SuperLoss; masks and keypoints as stock."""


@ROI_HEADS_REGISTRY.register()
class SuperLossRes5ROIHeads(SuperLossROIHeadsMixin, Res5ROIHeads):
    """:class:`Res5ROIHeads` (C4) with the SuperLoss."""


@ROI_HEADS_REGISTRY.register()
class SuperLossCascadeROIHeads(SuperLossROIHeadsMixin, CascadeROIHeads):
    """:class:`CascadeROIHeads` with the SuperLoss, every stage with its own tau."""
