"""Pascal VOC AP: exact, fast and for any class list."""

from .evaluator import VOCEvaluator
from .files import evaluate_files
from .results import write_report

__all__ = ["VOCEvaluator", "evaluate_files", "write_report"]
