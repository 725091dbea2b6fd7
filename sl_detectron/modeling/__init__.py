"""detectron2 adapters: importing registers the heads and meta-architectures by name."""

from . import frozen_trunk  # noqa: F401 - registers the backbone
from .build import CLASSIFICATION_LOSS_REGISTRY, TAU_REGISTRY
from .fast_rcnn import to_superloss_output_layers
from .per_anchor_losses import PerAnchorLosses
from .per_roi_losses import PerRoILosses
from .retinanet import SuperLossRetinaNet
from .roi_align import MatrixROIAlign, use_matrix_roi_align
from .roi_heads import (
    SuperLossCascadeROIHeads,
    SuperLossRes5ROIHeads,
    SuperLossROIHeadsMixin,
    SuperLossRROIHeads,
    SuperLossStandardROIHeads,
    superloss_roi_heads,
)
from .superloss_term import SuperLossTerm
from .trunks import TRUNK_REGISTRY, Trunk

__all__ = [
    "SuperLossStandardROIHeads",
    "SuperLossRes5ROIHeads",
    "SuperLossCascadeROIHeads",
    "SuperLossRROIHeads",
    "SuperLossRetinaNet",
    "SuperLossROIHeadsMixin",
    "MatrixROIAlign",
    "SuperLossTerm",
    "PerAnchorLosses",
    "PerRoILosses",
    "CLASSIFICATION_LOSS_REGISTRY",
    "TAU_REGISTRY",
    "TRUNK_REGISTRY",
    "Trunk",
    "superloss_roi_heads",
    "use_matrix_roi_align",
    "to_superloss_output_layers",
]
