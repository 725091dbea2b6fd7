"""Label noise as a property of a data set: seeded, reproducible, reversible.

``injection`` is the pure core; ``types``, ``boxes`` and ``confusion`` say what noise does to an
annotation; ``loader`` and ``mapper`` bring it into training; ``export`` writes it to disk,
``restore`` makes that clean again.
"""

from ..data.formats.changes import CHANGES, Change
from ..data.formats.manifest import changes_from_manifest, manifest_lines, read_manifest
from .boxes import BoxJitter, MissingAnnotations, SpuriousBoxes
from .config import check_label_noise, noises_from_config, train_classes
from .injection import NOISE_KEY, apply_changes, inject, is_noisy
from .loader import build_noisy_train_loader, check_train_loader, noisy_dataset_dicts
from .mapper import NoisyLabelMapper
from .noises import AsymmetricNoise, Noise, SymmetricNoise
from .stats import noise_statistics, statistics_table, uniformity_test

__all__ = [
    "inject",
    "apply_changes",
    "is_noisy",
    "Change",
    "Noise",
    "SymmetricNoise",
    "AsymmetricNoise",
    "BoxJitter",
    "MissingAnnotations",
    "SpuriousBoxes",
    "NoisyLabelMapper",
    "build_noisy_train_loader",
    "check_train_loader",
    "noisy_dataset_dicts",
    "noises_from_config",
    "check_label_noise",
    "train_classes",
    "manifest_lines",
    "read_manifest",
    "changes_from_manifest",
    "noise_statistics",
    "statistics_table",
    "uniformity_test",
    "CHANGES",
    "NOISE_KEY",
]
