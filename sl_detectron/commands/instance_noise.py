"""Noise by the mistakes of a detector, for ``sl-inject-noise --type instance``."""

import os
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from ..audit.checkpoint_scores import score_checkpoint
from ..audit.few_classes import dense
from ..config import num_classes_of
from ..data.annotation_ids import AnnotationTable, number_annotations
from ..data.formats.annotations import Record
from ..label_noise import InstanceNoise

__all__ = ["build_instance_noise"]


def build_instance_noise(
    cfg: CfgNode,
    checkpoint: str | os.PathLike,
    records: Sequence[Record],
    class_names: Sequence[str],
    dataset_name: str,
    rate: float,
    seed: int,
) -> InstanceNoise:
    """Ask a detector what it sees in every annotated box of a set.

    Args:
        cfg: of the detector
        checkpoint: its weights; a weak detector makes mistakes of more kinds
        records: dataset dicts with file names, in the order of the set's own reader
        class_names: K names of the set
        dataset_name: of the set
        rate, seed: see :class:`InstanceNoise`

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: the detector has another number of classes, or cannot be asked
    """
    if num_classes_of(cfg) != len(class_names):
        raise ValueError(
            f"the detector of --config-file has {num_classes_of(cfg)} classes and the set "
            f"{len(class_names)}: it must be a detector of the same classes in the same order"
        )
    table = AnnotationTable.of(number_annotations({dataset_name: records}))
    scores = score_checkpoint(cfg, checkpoint, table)
    if scores is None:
        raise ValueError("noise is drawn in one process; this is not the main one of several")
    sums = torch.zeros(table.num_annotations, len(class_names))
    sums.index_add_(0, scores.ids, dense(scores.probabilities))
    labels = torch.tensor(table.labels())
    # Of the foreground classes; nan, and so hit last, for crowds and what no anchor was matched to.
    shares = sums / sums.sum(dim=1, keepdim=True)
    return InstanceNoise(rate=rate, seed=seed, distributions=shares, labels=labels)
