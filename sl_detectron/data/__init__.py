"""Data sets, their label noise, and the toy set."""

import os

from .annotation_ids import AnnotationIdMapper, annotation_fingerprint, number_annotations
from .label_noise import (
    NoisyLabelMapper,
    apply_changes,
    build_noisy_train_loader,
    check_label_noise,
    check_train_loader,
    inject,
    noises_from_config,
    noisy_dataset_dicts,
)
from .toy import TOY_CLASS_NAMES, make_toy_dataset, register_toy_datasets
from .train_loader import BROKEN_IMAGES, TrainLoader, shield_workers
from .voc import check_datasets, load_voc_dataset, register_voc_dataset, register_voc_datasets

__all__ = [
    "register_voc_dataset",
    "register_voc_datasets",
    "load_voc_dataset",
    "check_datasets",
    "inject",
    "apply_changes",
    "NoisyLabelMapper",
    "AnnotationIdMapper",
    "number_annotations",
    "annotation_fingerprint",
    "noises_from_config",
    "check_label_noise",
    "check_train_loader",
    "noisy_dataset_dicts",
    "build_noisy_train_loader",
    "TrainLoader",
    "BROKEN_IMAGES",
    "shield_workers",
    "TOY_CLASS_NAMES",
    "make_toy_dataset",
    "register_toy_datasets",
]

_root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
register_toy_datasets(os.path.join(_root, "toy_digits"))
