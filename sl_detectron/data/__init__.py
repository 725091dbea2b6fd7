"""Datasets: Pascal VOC folders, the toy set, annotation ids and a training loader that resumes."""

import os

from .annotation_ids import AnnotationIdMapper
from .toy import make_toy_dataset, register_toy_datasets
from .train_loader import TrainLoader
from .voc import load_voc_dataset, register_voc_dataset

__all__ = [
    "AnnotationIdMapper",
    "TrainLoader",
    "load_voc_dataset",
    "make_toy_dataset",
    "register_toy_datasets",
    "register_voc_dataset",
]

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_toy_datasets(os.path.join(_root, "toy_digits"))
