"""The SuperLoss and other losses with a confidence, on per-sample values: any task, torch only."""

from .classification import (
    focal_loss,
    generalized_cross_entropy,
    hard_bootstrapping,
    lncis,
    self_paced,
    soft_bootstrapping,
    symmetric_cross_entropy,
    truncated_generalized_cross_entropy,
)
from .confidence_aware import MultitaskLoss, introspection, multitask, r2d2_reliability
from .data_params import DataParams, data_params
from .module import FixedConfidence, SuperLoss
from .noise_rate import AfterStart, CurriculumLoss, ForwardCorrection
from .superloss import confidence, superloss

__all__ = [
    "AfterStart",
    "CurriculumLoss",
    "DataParams",
    "FixedConfidence",
    "ForwardCorrection",
    "MultitaskLoss",
    "SuperLoss",
    "confidence",
    "data_params",
    "focal_loss",
    "generalized_cross_entropy",
    "hard_bootstrapping",
    "introspection",
    "lncis",
    "multitask",
    "r2d2_reliability",
    "self_paced",
    "soft_bootstrapping",
    "superloss",
    "symmetric_cross_entropy",
    "truncated_generalized_cross_entropy",
]
