"""The training loader on noisy labels: noise comes first, then filters, histograms and samplers.

A training image can leave the set in three ways, all seen in the noisy annotations, as if the
noisy set lay on disk: ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` drops images whose annotations all
went missing, ``MIN_KEYPOINTS_PER_IMAGE`` those with too few keypoints, and
``RandomSubsetTrainingSampler`` a share of the rest. A set that ``DATASETS.TRAIN`` names twice is
seen twice: noise and ids are those of the annotation, which an audit ranks once. Every ``cfg``
has the keys of :func:`~sl_detectron.add_superloss_config`.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler
from torch.utils.data import Sampler

from ..config import check_has_keys, num_classes_key, num_classes_of, train_sets
from ..data.annotation_ids import (
    AnnotationIdMapper,
    AnnotationTable,
    number_annotations,
)
from ..data.datasets import check_classes, load_dataset
from ..data.formats.annotations import Record
from ..data.formats.flaws import check_bad_annotations
from ..data.formats.manifest import changes_from_manifest
from ..data.images import CheckedImages, warn_of_turned
from ..data.train_loader import TrainLoader, check_loading
from .config import (
    check_label_noise,
    manifest_of,
    noises_from_config,
    refuse_noisy_copy,
    train_classes,
)
from .injection import apply_changes, inject
from .noises import Noise
from .stats import noise_statistics, statistics_table

__all__ = ["build_noisy_train_loader", "check_train_loader", "noisy_dataset_dicts"]

_SAMPLERS = (
    "TrainingSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "WeightedTrainingSampler",
    "WeightedCategoryTrainingSampler",
)

logger = logging.getLogger(__name__)


def build_noisy_train_loader(
    cfg: CfgNode, mapper: Callable[[dict[str, Any]], Any] | None = None
) -> TrainLoader:
    """Build a training loader over ``DATASETS.TRAIN`` with ``DATASETS.LABEL_NOISE``.

    Every sampler of ``DATALOADER.SAMPLER_TRAIN`` sees the noisy labels that training sees. Test
    sets are never touched: only this loader injects. The mapped ``instances`` have
    ``gt_annotation_ids``, the ``annotation_id`` of :func:`noisy_dataset_dicts`.

    Args:
        cfg: with the keys of :func:`~sl_detectron.add_superloss_config`
        mapper: any detectron2 mapper; None for ``DatasetMapper(cfg, True)``. Wrap a custom
            one in :class:`~sl_detectron.data.AnnotationIdMapper` where it may be.

    Returns:
        batches as those of :func:`detectron2.data.build_detection_train_loader`; its
        ``annotations`` are the :class:`AnnotationTable` of the noisy sets

    Raises:
        ValueError: the noise is set wrongly or does not fit the datasets
    """
    if mapper is None or type(mapper) is DatasetMapper:
        mapper = AnnotationIdMapper(CheckedImages(mapper or DatasetMapper(cfg, True)))
    sets = noisy_dataset_dicts(cfg)
    for name, of_set in sets.items():
        warn_of_turned(of_set, f"dataset {name!r}")
    records = [record for name in train_sets(cfg) for record in sets[name]]
    loader = TrainLoader(
        records,
        mapper,
        cfg.SOLVER.IMS_PER_BATCH,
        _sampler_factory(cfg, sets, records),
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        broken_images=cfg.DATALOADER.BROKEN_IMAGES,
    )
    loader.annotations = AnnotationTable.of(sets)
    return loader


def check_train_loader(cfg: CfgNode) -> None:
    """Raise ValueError for a wrong key of the training loader, without reading any dataset."""
    check_has_keys(cfg)
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if not train_sets(cfg):
        raise ValueError("DATASETS.TRAIN must name a dataset; got ()")
    if sampler not in _SAMPLERS:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN must be one of {_SAMPLERS}; got {sampler!r}")
    check_loading(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.BROKEN_IMAGES)
    check_bad_annotations(cfg.DATASETS.BAD_ANNOTATIONS, "DATASETS.BAD_ANNOTATIONS")


def noisy_dataset_dicts(cfg: CfgNode) -> dict[str, list[Record]]:
    """Load the training sets, inject their noise and drop what detectron2 would drop.

    Logs the realised rate of every set, and its table by class at level DEBUG.

    Returns:
        {dataset name: noisy dataset dicts}, in the order of ``DATASETS.TRAIN``. A record without
        ``image_id`` gets its file name, or where two have the same name its place in the list, as
        one. Each annotation has an ``annotation_id``, counted over all sets before any image is
        dropped, so that it is the same in every run of the same sets and noise.

    Raises:
        ValueError: the noise is set wrongly or does not fit the datasets, or no image is left
    """
    check_train_loader(cfg)
    check_label_noise(cfg)
    names = train_sets(cfg)
    manifest = manifest_of(cfg)
    # Loading a COCO set sets its class names, which noises may ask for.
    sets = {name: _load(cfg, name) for name in names}
    for name, records in sets.items():
        check_classes(name, records, num_classes_of(cfg), num_classes_key(cfg), exact=False)
    noises = noises_from_config(cfg)
    if noises and manifest is None:
        for name in names:
            refuse_noisy_copy(name)
    if noises or manifest is not None:
        classes = train_classes(cfg)
        sets = {n: _inject(n, records, classes, noises, manifest) for n, records in sets.items()}
    elif all(MetadataCatalog.get(name).get("thing_classes") for name in names):
        train_classes(cfg)
    return _filter(cfg, number_annotations(sets))


def _load(cfg: CfgNode, name: str) -> list[Record]:
    records = load_dataset(name, cfg.DATASETS.BAD_ANNOTATIONS)
    if not isinstance(records, list):
        raise ValueError(
            f"dataset {name!r} is a {type(records).__name__}, not a list of dicts; "
            "wrap its mapper in NoisyLabelMapper and build its loader yourself"
        )
    if all("image_id" in record for record in records):
        return records
    # detectron2 trains without ids; noise and audit tell images apart by them.
    names = [os.path.basename(str(record.get("file_name", ""))) for record in records]
    if len({*names}) < len(names):
        names = [f"record {i}" for i in range(len(records))]
    return [{"image_id": name, **record} for name, record in zip(names, records)]


def _inject(
    name: str,
    records: list[Record],
    classes: Sequence[str],
    noises: Sequence[Noise],
    manifest: list[dict[str, Any]] | None,
) -> list[Record]:
    if manifest is None:
        noisy, changes = inject(records, noises, len(classes), name)
    else:
        recorded = changes_from_manifest(manifest, classes, name)
        noisy, changes = apply_changes(records, recorded, len(classes), name)
    statistics = noise_statistics(records, changes, len(classes))
    rate, total = 100 * statistics.label_rate, statistics.num_annotations
    counts = ", ".join(f"{what}: {count}" for what, count in statistics.counts.items())
    template = "Label noise in %s: %.2f %% of %d annotations have a wrong class (%s)"
    logger.info(template, name, rate, total, counts)
    logger.debug("Label noise in %s by class:\n%s", name, statistics_table(statistics, classes))
    return noisy


def _filter(cfg: CfgNode, sets: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Do to every set what detectron2's get_detection_dataset_dicts does to a clean one."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else ()
    names = train_sets(cfg)
    if cfg.MODEL.LOAD_PROPOSALS and len(proposals) != len(names):
        raise ValueError(
            f"DATASETS.PROPOSAL_FILES_TRAIN has {len(proposals)} files for {len(names)} sets"
        )
    filtered = {}
    for name, loaded in sets.items():
        records = loaded
        if proposals:
            file = proposals[names.index(name)]
            records = load_proposals_into_dataset([dict(r) for r in records], file)
        has_instances = bool(records) and "annotations" in records[0]
        if has_instances and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            records = filter_images_with_only_crowd_annotations(records)
        if has_instances and cfg.MODEL.KEYPOINT_ON and keypoints > 0:
            records = filter_images_with_few_keypoints(records, keypoints)
        if not records:
            raise ValueError(f"dataset {name!r} has no image left to train on{_why(loaded)}")
        classes = MetadataCatalog.get(name).get("thing_classes")
        if has_instances and classes is not None:
            print_instances_class_histogram(records, classes)
        filtered[name] = records
    return filtered


def _why(records: Sequence[Record]) -> str:
    """What a message says about records of which no image is left."""
    annotations = [a for record in records for a in record.get("annotations", ())]
    crowds = sum(bool(a.get("iscrowd", 0)) for a in annotations)
    if annotations and crowds == len(annotations):
        return f": all {crowds} annotations are crowds (iscrowd 1)"
    return f": its {len(records)} images have {len(annotations)} annotations"


def _sampler_factory(
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
