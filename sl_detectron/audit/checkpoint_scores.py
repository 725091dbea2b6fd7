"""Detectors with weights, and the scores of a table's annotations by one, or one for each fold."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import SafeCheckpointer, check_checkpoint
from ..config import has_pretrained_trunk, without_federated_loss
from ..data.annotation_ids import AnnotationTable
from ..data.folds import fold_of
from .features import trunk_of
from .score_annotations import AnnotationScores, joined_scores, score_annotations

__all__ = [
    "Checkpoints",
    "check_pretrained",
    "load_detector",
    "load_pretrained",
    "score_checkpoint",
]

# Share of a backbone's parameters that pretrained weights may lack.
MOST_RANDOM = 0.1
# One detector, or one for each fold of the images, trained without it.
Checkpoints = str | os.PathLike | Sequence[str]


def check_pretrained(cfg: CfgNode, asked_by: str) -> None:
    """Refuse a config whose training starts from a random backbone.

    Args:
        cfg: of a detector
        asked_by: the option or key that needs pretrained features

    Raises:
        ValueError: ``MODEL.WEIGHTS`` is empty, and no frozen trunk loads weights
    """
    if not cfg.MODEL.WEIGHTS and not has_pretrained_trunk(cfg):
        raise ValueError(
            f"{asked_by} needs a pretrained backbone, and MODEL.WEIGHTS is empty: name weights "
            "there, or train first: MODEL.SUPERLOSS.CORRECTION.ROUNDS 2 and sl-audit --from-run "
            "use a training run instead"
        )


def load_detector(cfg: CfgNode, checkpoint: str | os.PathLike, content: Any = None) -> nn.Module:
    """A config's detector with the weights of a checkpoint, which must fill it.

    Args:
        cfg: of the detector
        checkpoint: path of its weights
        content: of that file, which is not read then

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: its weights are of another detector
    """
    check_checkpoint(checkpoint)
    model = build_model(without_federated_loss(cfg))
    checkpointer = _StrictCheckpointer(model)
    if content is not None:
        checkpointer.take(checkpoint, content)
    checkpointer.load(str(checkpoint))
    return model


def load_pretrained(cfg: CfgNode) -> nn.Module:
    """A config's detector with the weights that its training starts from.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: there are no weights, or not those of the backbone, whose features would be
            random
    """
    check_pretrained(cfg, "an estimate from features")
    check_checkpoint(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    model = build_model(without_federated_loss(cfg))
    checkpointer = SafeCheckpointer if has_pretrained_trunk(cfg) else _TrunkCheckpointer
    checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def score_checkpoint(
    cfg: CfgNode, checkpoint: Checkpoints, table: AnnotationTable, detect: bool = False
) -> AnnotationScores | None:
    """Build a config's detector, load weights and score the annotations of a table.

    All processes of detectron2's ``launch`` call it; it is None in others than the main one. Of
    several checkpoints each scores the images of its fold, which it was not trained on.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        return _score_folds(cfg, checkpoint, table, detect)
    model = load_detector(cfg, checkpoint)
    return score_annotations(model, [*table.records()], cfg, detect, progress=True)


def _score_folds(
    cfg: CfgNode, checkpoints: Sequence[str], table: AnnotationTable, detect: bool
) -> AnnotationScores | None:
    folds = [fold_of(record["image_id"], len(checkpoints)) for record in table.records()]
    parts = []
    for fold, checkpoint in enumerate(checkpoints):
        images = tuple(image for image, of in zip(table.images, folds) if of == fold)
        if not images:
            continue
        part = score_checkpoint(cfg, checkpoint, replace(table, images=images), detect)
        if part is not None:
            parts.append((fold, part))
    if not parts:
        return None
    scores = joined_scores([part for _, part in parts])
    # In the order of the table again.
    found = {fold: iter(part.detections) for fold, part in parts}
    return scores._replace(detections=[next(found[fold]) for fold in folds] if detect else [])


class _StrictCheckpointer(SafeCheckpointer):
    """Refuses what does not fill the detector: a random one would rank labels at random."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        super()._log_incompatible_keys(incompatible)
        parameters = dict(self.model.named_parameters())
        missing = [key for key in incompatible.missing_keys if key in parameters]
        missing += [key for key, *_ in incompatible.incorrect_shapes]
        # DataParams' temperatures are of the training alone.
        missing = [key for key in missing if "log_sample_temperature" not in key]
        if missing:
            raise ValueError(
                f"the checkpoint does not match this config: {missing[0]} and {len(missing) - 1} "
                "other parameters are missing or have a different shape"
            )


class _TrunkCheckpointer(SafeCheckpointer):
    """Refuses what leaves a part of the trunk random that features are pooled from.

    Some backbones have small parameters that pretrained weights lack, as position embeddings.
    """

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        super()._log_incompatible_keys(incompatible)
        lacking = {*incompatible.missing_keys, *(key for key, *_ in incompatible.incorrect_shapes)}
        of_trunk = {id(p) for p in trunk_of(self.model.backbone).parameters()}
        sizes = {k: p.numel() for k, p in self.model.named_parameters() if id(p) in of_trunk}
        random = sorted(sizes.keys() & lacking)
        share = sum(sizes[key] for key in random) / max(sum(sizes.values()), 1)
        if share > MOST_RANDOM:
            raise ValueError(
                f"MODEL.WEIGHTS does not fit the backbone: {100 * share:.0f} % of its parameters, "
                f"as {random[0]}, would stay random, and so would an estimate from its features"
            )
