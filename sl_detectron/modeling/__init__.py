"""detectron2 adapters: importing registers the heads and meta-architectures by name."""

from .fast_rcnn import (
    SuperLossFastRCNNOutputLayers,
    to_superloss_output_layers,
)
from .retinanet import SuperLossRetinaNet
from .roi_heads import (
    SuperLossCascadeROIHeads,
    SuperLossRes5ROIHeads,
    SuperLossROIHeadsMixin,
    SuperLossStandardROIHeads,
)
from .superloss_term import SuperLossTerm, superloss_terms_from_config

__all__ = [
    "SuperLossStandardROIHeads",
    "SuperLossRes5ROIHeads",
    "SuperLossCascadeROIHeads",
    "SuperLossRetinaNet",
    "SuperLossROIHeadsMixin",
    "SuperLossFastRCNNOutputLayers",
    "SuperLossTerm",
    "superloss_terms_from_config",
    "to_superloss_output_layers",
]
