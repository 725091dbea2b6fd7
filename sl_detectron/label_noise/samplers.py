"""The samplers of ``DATALOADER.SAMPLER_TRAIN``, on noisy labels."""

from collections.abc import Callable, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler
from torch.utils.data import Sampler

from ..config import train_sets
from ..data.formats.annotations import Record

__all__ = ["SAMPLERS", "sampler_factory"]

SAMPLERS = (
    "TrainingSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)


def sampler_factory(
    cfg: CfgNode, sets: Mapping[str, list[Record]], records: Sequence[Record]
) -> Callable[[int], Sampler] | None:
    """What makes the sampler of ``DATALOADER.SAMPLER_TRAIN`` from a seed; None for the default."""
    kind, size = cfg.DATALOADER.SAMPLER_TRAIN, len(records)
    if kind == "TrainingSampler":
        return None
    if kind == "RandomSubsetTrainingSampler":
        # The subset and its order must not be drawn alike.
        return lambda seed: RandomSubsetTrainingSampler(
            size, cfg.DATALOADER.RANDOM_SUBSET_RATIO, seed_shuffle=seed, seed_subset=seed + 1
        )
    if kind == "RepeatFactorTrainingSampler":
        factors = _repeat_factors(cfg, records)
    else:
        factors = _weighted_factors(cfg, sets)
    return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)


def _repeat_factors(cfg: CfgNode, records: Sequence[Record]) -> torch.Tensor:
    # detectron2 0.6 has no REPEAT_SQRT: it always takes the root.
    options = {"sqrt": cfg.DATALOADER.REPEAT_SQRT} if "REPEAT_SQRT" in cfg.DATALOADER else {}
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, **options
    )


def _weighted_factors(cfg: CfgNode, sets: Mapping[str, list[Record]]) -> torch.Tensor:
    """The repeat factors that detectron2 would make of the clean sets, of the noisy ones."""
    weights = dict(cfg.DATASETS.TRAIN_REPEAT_FACTOR)
    unknown = sorted(weights.keys() - sets.keys())
    if unknown:
        raise ValueError(f"DATASETS.TRAIN_REPEAT_FACTOR names {unknown}, not in DATASETS.TRAIN")
    names = train_sets(cfg)
    factors = torch.cat([torch.full((len(sets[n]),), float(weights.get(n, 1))) for n in names])
    if cfg.DATALOADER.SAMPLER_TRAIN == "WeightedCategoryTrainingSampler":
        factors = factors * torch.cat([_repeat_factors(cfg, sets[name]) for name in names])
        factors = factors / factors.min()
    return factors
