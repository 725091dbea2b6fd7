"""The SuperLoss and other losses with a confidence, on per-sample values: any task, torch only."""

from .classification import (
    cross_entropy,
    focal_loss,
    generalized_cross_entropy,
    hard_bootstrapping,
    soft_bootstrapping,
    symmetric_cross_entropy,
)
from .confidence_aware import MultitaskLoss, introspection, multitask, r2d2_reliability
from .data_params import DataParams, data_params
from .module import FixedConfidence, SuperLoss
from .superloss import confidence, superloss, superloss_with_confidence
from .tau import AverageTau, ConstantTau, ExpAverageTau

__all__ = [
    "AverageTau",
    "ConstantTau",
    "DataParams",
    "ExpAverageTau",
    "FixedConfidence",
    "MultitaskLoss",
    "SuperLoss",
    "confidence",
    "cross_entropy",
    "data_params",
    "focal_loss",
    "generalized_cross_entropy",
    "hard_bootstrapping",
    "introspection",
    "multitask",
    "r2d2_reliability",
    "soft_bootstrapping",
    "superloss",
    "superloss_with_confidence",
    "symmetric_cross_entropy",
]
