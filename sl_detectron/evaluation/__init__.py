"""Pascal VOC AP: exact, fast and for any class list."""

from .average_precision import (
    IOU_THRESHOLDS,
    ClassResult,
    average_precision,
    evaluate_detections,
)
from .build import build_evaluator, check_evaluator
from .evaluator import VOCEvaluator
from .files import load_detections, load_ground_truth
from .results import check_report_path, evaluate_files, write_report
from .voc_matching import Detections, GroundTruth
from .voc_result import VOCResult

__all__ = [
    "VOCEvaluator",
    "build_evaluator",
    "check_evaluator",
    "evaluate_files",
    "check_report_path",
    "write_report",
    "average_precision",
    "evaluate_detections",
    "load_detections",
    "load_ground_truth",
    "ClassResult",
    "Detections",
    "GroundTruth",
    "VOCResult",
    "IOU_THRESHOLDS",
]
