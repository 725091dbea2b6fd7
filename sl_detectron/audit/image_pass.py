"""One pass over the images of a table with their annotations, shared by processes."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, detection_utils
from detectron2.data import transforms as T
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from tqdm import tqdm

from ..data.formats.annotations import Record
from ..data.images import BrokenImage, read_image, warn_of_turned
from ..data.train_loader import shield_workers

__all__ = ["NO_ANNOTATION", "each_image"]

logger = logging.getLogger(__name__)

NO_ANNOTATION = "the training sets have no annotation"


def each_image(
    records: Sequence[Record], cfg: CfgNode, progress: bool = False, resize: bool = True
) -> Iterator[tuple[int, tuple[Record, Instances] | None]]:
    """A detector's input for each image of this process's share, and what is annotated in it.

    An image comes alone, so that what is made of it depends neither on the number of processes nor
    on ``DATALOADER.NUM_WORKERS``.

    Args:
        records: the same in all processes
        cfg: ``INPUT`` and ``DATALOADER`` count
        progress: whether to show a progress bar
        resize: to the size of test images, or not

    Yields:
        position of the record, its input, and its annotations that are no crowds in coordinates of
        that input: ``gt_boxes``, ``gt_classes``, ``gt_annotation_ids``; None in place of both for
        an image that ``BROKEN_IMAGES`` lets be skipped

    Raises:
        ValueError: there is no image
        BrokenImage: one that may not be skipped
    """
    if not records:
        raise ValueError(NO_ANNOTATION)
    warn_of_turned(records, "the audited images")
    share = InferenceSampler(len(records))
    skips = cfg.DATALOADER.get("BROKEN_IMAGES", "error") == "skip"
    images = zip(share, _loader(records, cfg, share, resize))
    hidden = not (progress and comm.is_main_process())
    for i, (image,) in tqdm(images, unit="image", total=len(share), disable=hidden):
        if isinstance(image, BrokenImage):
            if not skips:
                raise image
            logger.warning("Not audited: %s", str(image).partition("; repair it")[0])
            image = None
        yield i, image


class _Inputs:
    """A mapper from a record to an input and its targets, or to the error of its image.

    An error that is raised in a worker of a loader has no line.
    """

    def __init__(self, cfg: CfgNode, resize: bool):
        augmentations = detection_utils.build_augmentation(cfg, is_train=False) if resize else []
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = cfg.INPUT.FORMAT

    def __call__(self, record: Record) -> Any:
        try:
            return _load(record, self.augmentations, self.image_format)
        except BrokenImage as error:
            return error


def _loader(records: Sequence[Record], cfg: CfgNode, share: InferenceSampler, resize: bool) -> Any:
    """Lists of one input each; what its workers hold does not grow with the dataset."""
    return shield_workers(
        build_detection_test_loader(
            [*records],
            mapper=_Inputs(cfg, resize),
            sampler=share,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
    )


def _load(record: Record, augmentations: T.Augmentation, image_format: str) -> Any:
    """A detector's input, and its annotations in the coordinates of that input."""
    image = read_image(record, image_format)
    height, width = image.shape[:2]
    augmented = T.AugInput(image)
    transform = augmentations(augmented)
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    targets = Instances(augmented.image.shape[:2])
    corners = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    targets.gt_boxes = Boxes(torch.as_tensor(transform.apply_box(corners)).float())
    targets.gt_boxes.clip(targets.image_size)
    for field, key in (("gt_classes", "category_id"), ("gt_annotation_ids", "annotation_id")):
        targets.set(field, torch.tensor([a[key] for a in annotations], dtype=torch.int64))
    pixels = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
    return {"image": pixels, "height": height, "width": width}, targets
