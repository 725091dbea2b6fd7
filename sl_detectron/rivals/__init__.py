"""Methods of other papers for noisy labels, as what the samples of annotations are trained as."""

from .ca_bbc import CABBC
from .clc import CLC
from .co_teaching import CoTeaching
from .method import METHOD_REGISTRY, Method, build_method, check_method
from .note_rcnn import NoteRCNN, NoteRCNNROIHeads
from .pair import PairedRCNN, PairedRetinaNet
from .sd_locnet import SDLocNet
from .teacher import EMATeacher

__all__ = [
    "CABBC",
    "CLC",
    "METHOD_REGISTRY",
    "CoTeaching",
    "EMATeacher",
    "Method",
    "NoteRCNN",
    "NoteRCNNROIHeads",
    "PairedRCNN",
    "PairedRetinaNet",
    "SDLocNet",
    "build_method",
    "check_method",
]
