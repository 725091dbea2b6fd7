"""A test loader on the readers of this package, which name an image that cannot be read."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader

from .datasets import load_dataset
from .images import READ_ERRORS, BrokenImage, CheckedImages, broken_image, warn_of_turned
from .train_loader import shield_workers

__all__ = ["build_test_loader"]

logger = logging.getLogger(__name__)


def build_test_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """detectron2's test loader, of a set that :func:`load_dataset` read.

    SIGTERM to the whole job does not end an evaluation half-way. An image that cannot be read stops
    the evaluation in one line that names it, or with ``DATALOADER.BROKEN_IMAGES`` "skip" has no
    prediction, so that its objects count as missed.

    Args:
        cfg: with the keys of :func:`~sl_detectron.add_superloss_config`
        dataset_name: in detectron2's catalogs
    """
    if cfg.MODEL.LOAD_PROPOSALS:
        return shield_workers(build_detection_test_loader(cfg, dataset_name))
    records = load_dataset(dataset_name, cfg.DATASETS.BAD_ANNOTATIONS)
    warn_of_turned(records, f"dataset {dataset_name!r}")
    loader = build_detection_test_loader(
        records,
        mapper=_Samples(CheckedImages(DatasetMapper(cfg, False))),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return _Batches(shield_workers(loader), cfg.DATALOADER.BROKEN_IMAGES == "skip")


class _Samples:
    """A mapper that returns the error of an image: one raised in a worker has no line."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]):
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self.mapper(record)
        except READ_ERRORS as error:
            return broken_image(record, error)


class _Batches:
    """The batches of a loader whose images could be read; at most ``len`` of them."""

    def __init__(self, loader: Any, skips: bool):
        self.loader = loader
        self.skips = skips

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.loader:
            broken = [sample for sample in batch if isinstance(sample, BrokenImage)]
            if broken and not self.skips:
                raise broken[0]
            for error in broken:
                logger.warning("No prediction for %s", str(error).partition("; repair it")[0])
            if len(broken) < len(batch):
                yield [sample for sample in batch if not isinstance(sample, BrokenImage)]
