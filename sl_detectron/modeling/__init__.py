"""detectron2 adapters: importing registers the heads and meta-architectures by name."""

from .build import superloss_terms_from_config
from .fast_rcnn import (
    SuperLossFastRCNNOutputLayers,
    to_superloss_output_layers,
)
from .mobilenet import MobileNetV2, build_mobilenet_v2_fpn_backbone
from .retinanet import SuperLossRetinaNet
from .roi_heads import (
    SuperLossCascadeROIHeads,
    SuperLossRes5ROIHeads,
    SuperLossROIHeadsMixin,
    SuperLossRROIHeads,
    SuperLossStandardROIHeads,
    superloss_roi_heads,
)
from .superloss_term import SuperLossTerm

__all__ = [
    "SuperLossStandardROIHeads",
    "SuperLossRes5ROIHeads",
    "SuperLossCascadeROIHeads",
    "SuperLossRROIHeads",
    "SuperLossRetinaNet",
    "SuperLossROIHeadsMixin",
    "SuperLossFastRCNNOutputLayers",
    "SuperLossTerm",
    "MobileNetV2",
    "build_mobilenet_v2_fpn_backbone",
    "superloss_roi_heads",
    "superloss_terms_from_config",
    "to_superloss_output_layers",
]
