"""Pascal VOC AP: exact, fast and for any class list."""

from .evaluator import VOCEvaluator, build_evaluator
from .files import evaluate_files
from .results import VOCResult, write_report

__all__ = ["VOCEvaluator", "VOCResult", "build_evaluator", "evaluate_files", "write_report"]
