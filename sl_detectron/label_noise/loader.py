"""The training loader on noisy labels: its samplers see what training sees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from torch.utils.data import Sampler

from ..config import needs_masks, train_sets
from ..data.annotation_ids import AnnotationIdMapper, AnnotationTable
from ..data.class_checks import check_masks
from ..data.formats.annotations import Record
from ..data.images import CheckedImages, warn_of_turned
from ..data.many_objects import many_objects
from ..data.train_loader import TrainLoader
from .samplers import sampler_factory
from .training_sets import noisy_dataset_dicts

__all__ = ["build_noisy_train_loader"]


def _loader_from_config(
    cfg: CfgNode, mapper: Callable[[Record], Any] | None = None
) -> dict[str, Any]:
    sets = noisy_dataset_dicts(cfg)
    if mapper is None and needs_masks(cfg):  # a custom mapper may make them
        for name, of_set in sets.items():
            check_masks(name, of_set)
    records = [record for name in train_sets(cfg) for record in sets[name]]
    return {
        "sets": sets,
        "records": records,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "make_sampler": sampler_factory(cfg, sets, records),
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "broken_images": cfg.DATALOADER.BROKEN_IMAGES,
    }


@configurable(from_config=_loader_from_config)
def build_noisy_train_loader(
    sets: Mapping[str, list[Record]],
    *,
    mapper: Callable[[Record], Any],
    total_batch_size: int,
    records: Sequence[Record] | None = None,
    make_sampler: Callable[[int], Sampler] | None = None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    broken_images: str = "error",
) -> TrainLoader:
    """Build a training loader over noisy sets whose annotations have ids.

    Call it with a config, ``build_noisy_train_loader(cfg, mapper=None)``, for ``DATASETS.TRAIN``
    with ``DATASETS.LABEL_NOISE``; or, in a LazyConfig, with the arguments themselves.
    Every sampler of ``DATALOADER.SAMPLER_TRAIN`` sees the noisy labels that training sees. Test
    sets are never touched: only this loader injects. The mapped ``instances`` have
    ``gt_annotation_ids``, the ``annotation_id`` of :func:`noisy_dataset_dicts`.

    Args:
        sets: {dataset name: records with ids}, from :func:`noisy_dataset_dicts` or
            :func:`noisy_sets`
        mapper: any detectron2 mapper; with a config None for ``DatasetMapper(cfg, True)``. Wrap a
            custom one in :class:`~sl_detectron.data.AnnotationIdMapper` where it may be.
        total_batch_size: images of a step, over all ranks
        records: what is sampled; None for those of all sets
        make_sampler, aspect_ratio_grouping, num_workers, broken_images: see :class:`TrainLoader`

    Returns:
        batches as those of :func:`detectron2.data.build_detection_train_loader`; its
        ``annotations`` are the :class:`AnnotationTable` of the noisy sets

    Raises:
        ValueError: the noise is set wrongly or does not fit the datasets
    """
    if type(mapper) is DatasetMapper:
        mapper = AnnotationIdMapper(CheckedImages(mapper))
    for name, of_set in sets.items():
        warn_of_turned(of_set, f"dataset {name!r}")
    if records is None:
        records = [record for of_set in sets.values() for record in of_set]
    with many_objects():
        loader = TrainLoader(
            records,
            mapper,
            total_batch_size,
            make_sampler,
            aspect_ratio_grouping=aspect_ratio_grouping,
            num_workers=num_workers,
            broken_images=broken_images,
        )
        loader.annotations = AnnotationTable.of(sets)
    return loader
