"""Pascal VOC AP: exact, fast and for any class list."""

from .build import build_evaluator, check_evaluator
from .pascal_voc_evaluation import VOCEvaluator
from .voc_ap import (
    IOU_THRESHOLDS,
    ClassResult,
    average_precision,
    evaluate_detections,
)
from .voc_files import load_detections, load_ground_truth
from .voc_matching import Detections, GroundTruth
from .voc_report import check_report_path, evaluate_files, write_report
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
