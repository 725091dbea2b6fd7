"""Datasets: Pascal VOC folders, the toy set, annotation ids and a training loader that resumes."""

import os

from .annotation_ids import AnnotationIdMapper, AnnotationTable, number_annotations
from .toy import TOY_CLASS_NAMES, make_toy_dataset, register_toy_datasets
from .train_loader import BROKEN_IMAGES, TrainLoader, shield_workers
from .voc import check_datasets, load_voc_dataset, register_voc_dataset, register_voc_datasets

__all__ = [
    "register_voc_dataset",
    "register_voc_datasets",
    "load_voc_dataset",
    "check_datasets",
    "AnnotationIdMapper",
    "number_annotations",
    "AnnotationTable",
    "TrainLoader",
    "BROKEN_IMAGES",
    "shield_workers",
    "TOY_CLASS_NAMES",
    "make_toy_dataset",
    "register_toy_datasets",
]

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_toy_datasets(os.path.join(_root, "toy_digits"))
