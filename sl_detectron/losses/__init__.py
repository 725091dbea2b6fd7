"""The SuperLoss on per-sample losses: any task, torch only."""

from .module import SuperLoss
from .superloss import confidence, superloss, superloss_with_confidence
from .tau import AverageTau, ConstantTau, ExpAverageTau

__all__ = [
    "AverageTau",
    "ConstantTau",
    "ExpAverageTau",
    "SuperLoss",
    "confidence",
    "superloss",
    "superloss_with_confidence",
]
