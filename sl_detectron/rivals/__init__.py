"""Methods of other papers for noisy labels, as what the samples of annotations are trained as."""

from . import ca_bbc, clc, co_teaching, note_rcnn, sd_locnet, teacher  # noqa: F401 - registers the methods
from .method import METHOD_REGISTRY, Method, build_method, check_method
from .pair import PairedRCNN, PairedRetinaNet

__all__ = [
    "METHOD_REGISTRY",
    "Method",
    "PairedRCNN",
    "PairedRetinaNet",
    "build_method",
    "check_method",
]
