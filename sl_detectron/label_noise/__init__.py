"""Label noise as a property of a dataset: seeded, reproducible, reversible.

``injection`` is the pure core; ``noises``, ``asymmetric`` and ``boxes`` say what a noise does to an
annotation; ``loader`` and ``mapper`` bring it into training; ``export`` writes it to disk.
"""

from .asymmetric import AsymmetricNoise
from .boxes import BoxJitter, MissingAnnotations, SpuriousBoxes
from .clean_seeds import CleanSeeds
from .injection import inject
from .instance import InstanceNoise
from .loader import build_noisy_train_loader
from .mapper import NoisyLabelMapper
from .noises import NOISE_REGISTRY, Noise, SymmetricNoise
from .training_sets import noisy_dataset_dicts, noisy_sets

__all__ = [
    "NOISE_REGISTRY",
    "AsymmetricNoise",
    "BoxJitter",
    "CleanSeeds",
    "InstanceNoise",
    "MissingAnnotations",
    "Noise",
    "NoisyLabelMapper",
    "SpuriousBoxes",
    "SymmetricNoise",
    "build_noisy_train_loader",
    "inject",
    "noisy_dataset_dicts",
    "noisy_sets",
]
