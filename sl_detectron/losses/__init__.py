"""The SuperLoss on per-sample losses: any task, torch only."""

from .fixed import FixedConfidence
from .grouping import group_mean
from .module import SuperLoss
from .superloss import confidence, superloss, superloss_with_confidence
from .tau import AverageTau, ConstantTau, ExpAverageTau

__all__ = [
    "AverageTau",
    "ConstantTau",
    "ExpAverageTau",
    "FixedConfidence",
    "SuperLoss",
    "confidence",
    "group_mean",
    "superloss",
    "superloss_with_confidence",
]
