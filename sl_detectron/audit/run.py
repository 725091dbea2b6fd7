"""Label audits of a finished training run and of any detector's checkpoint."""

import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode

from ..checkpoint import last_checkpoint, read_checkpoint
from ..config import num_classes_of
from ..data.annotation_ids import AnnotationTable
from ..data.formats.manifest import read_manifest
from ..label_noise import noisy_dataset_dicts
from ..losses import confidence
from .checkpoint_scores import Checkpoints, load_detector, load_pretrained, score_checkpoint
from .compact_tracker import build_tracker, load_tracker
from .features import AnnotationFeatures, pool_features
from .few_classes import Distributions, blocks, dense, in_rows
from .objectlab import objectlab_scores
from .ranking import audit_annotations
from .records import LabelAudit, SuspectList
from .score_annotations import AnnotationScores
from .scoring import AuditEvaluation, evaluate_audit, truth_from_manifest
from .suspects import find_suspects, tracked_suspects
from .tracker import AnnotationStatistics
from .true_classes import TrueClasses, estimate_true_classes, predict_held_out

__all__ = [
    "TrackedRun",
    "audit_checkpoint",
    "audit_features",
    "audit_kinds",
    "audit_run",
    "audit_statistics",
    "estimate_from_features",
    "estimate_run",
    "evaluate_run",
    "read_run",
]


class TrackedRun(NamedTuple):
    """What an audit takes of a run's last checkpoint, which is read once for all of it.

    Args:
        checkpoint: its path
        weights: its content without statistics and optimizer
        table: the run's annotations
        statistics: of them
    """

    checkpoint: Path
    weights: dict[str, Any]
    table: AnnotationTable
    statistics: AnnotationStatistics


def read_run(folder: str | os.PathLike, table: AnnotationTable | None = None) -> TrackedRun:
    """Read a run's last checkpoint.

    Args:
        folder: ``OUTPUT_DIR`` of the run
        table: the run's; None reads it

    Raises:
        FileNotFoundError: there is no checkpoint, or no table of annotations
        ValueError: the run did not track annotations, or other ones
    """
    path = last_checkpoint(folder)
    content = read_checkpoint(path)
    state = content.get("annotation_tracker")
    if state is None:
        raise ValueError(
            f"{path} holds no annotation statistics: the model had no SuperLoss, or "
            "MODEL.SUPERLOSS.TRACK_ANNOTATIONS was off; audit it by --checkpoint"
        )
    table = table or AnnotationTable.read(folder)
    tracker = load_tracker(state, torch.tensor(table.labels()), table.fingerprint)
    weights = {key: content[key] for key in ("model",) if key in content}
    return TrackedRun(path, weights, table, tracker.statistics())


def audit_run(
    folder: str | os.PathLike,
    table: AnnotationTable | None = None,
    estimate: TrueClasses | None = None,
    tracked: TrackedRun | None = None,
) -> LabelAudit:
    """Rank annotations by the statistics in a run's last checkpoint, without model or datasets.

    Args:
        folder: ``OUTPUT_DIR`` of the run
        table: the run's; None reads it
        estimate: from :func:`estimate_run`, whose probabilities rank better than those of the run;
            None for the latter
        tracked: from :func:`read_run`; None reads it

    Raises:
        FileNotFoundError: there is no checkpoint, or no table of annotations
        ValueError: the run did not track annotations
    """
    tracked = tracked or read_run(folder, table)
    statistics = tracked.statistics
    if estimate is not None:
        statistics = statistics._replace(probabilities=estimate.probabilities)
    return audit_annotations(tracked.table, statistics)


def audit_statistics(
    folder: str | os.PathLike, kinds: Collection[str], table: AnnotationTable | None = None
) -> tuple[LabelAudit, SuspectList]:
    """Rank what a run's statistics suffice for, without model, images or datasets.

    Args:
        folder: ``OUTPUT_DIR`` of the run
        kinds: some of :data:`~sl_detectron.audit.suspects.TRACKED_KINDS`
        table: the run's; None reads it

    Raises:
        FileNotFoundError, ValueError: as :func:`audit_run`, or the statistics do not suffice
    """
    tracked = read_run(folder, table)
    audit = audit_run(folder, tracked=tracked)
    return audit, tracked_suspects(tracked.table, tracked.statistics, audit, kinds)


def estimate_run(
    cfg: CfgNode,
    folder: str | os.PathLike,
    table: AnnotationTable | None = None,
    tracked: TrackedRun | None = None,
) -> TrueClasses | None:
    """Estimate the true classes of a run's annotations, from its statistics and one pass.

    All processes of detectron2's ``launch`` call it, and share the images.

    Args:
        cfg: of the run
        folder: its ``OUTPUT_DIR``
        table: the run's; None reads it
        tracked: from :func:`read_run`; None reads it

    Returns:
        for all annotations; one that has no features, as a crowd, keeps its label. None in other
        processes than the main one

    Raises:
        FileNotFoundError: there is no checkpoint, or no table of annotations
        ValueError: the run did not track annotations, or has too few images
    """
    # Before the pass: the statistics may be missing.
    tracked = tracked or read_run(folder, table)
    path, weights, table, statistics = tracked
    cfg = _without_store(cfg)
    features = pool_features(load_detector(cfg, path, weights), [*table.records()], cfg)
    return _estimate(features, cfg, table, statistics.probabilities)


def estimate_from_features(cfg: CfgNode, table: AnnotationTable) -> TrueClasses | None:
    """Estimate the true classes of annotations before training, from pretrained features.

    As :func:`estimate_run`, without statistics.

    Args:
        cfg: of a detector whose ``MODEL.WEIGHTS``, or frozen trunk, are pretrained
        table: what is estimated

    Raises:
        ValueError: there are too few images, or the weights are none of the backbone
    """
    return _estimate(_pretrained_features(cfg, table), cfg, table)


def _pretrained_features(cfg: CfgNode, table: AnnotationTable) -> AnnotationFeatures | None:
    cfg = _without_store(cfg)
    return pool_features(load_pretrained(cfg), [*table.records()], cfg)


def _without_store(cfg: CfgNode) -> CfgNode:
    """A store of trunk features is for images, not for each crop of them."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FROZEN_TRUNK.STORE = ""
    cfg.freeze()
    return cfg


def _estimate(
    features: AnnotationFeatures | None,
    cfg: CfgNode,
    table: AnnotationTable,
    tracked: Distributions | None = None,
) -> TrueClasses | None:
    if features is None:
        return None
    labels, rows = torch.tensor(table.labels()), features.ids
    of_rows = labels[rows], features.images, num_classes_of(cfg)
    held_out, gain = predict_held_out(features.values, *of_rows)
    tracked = None if tracked is None else tracked[rows]
    estimate = estimate_true_classes(held_out, labels[rows], tracked)
    probabilities = in_rows(estimate.probabilities, rows, labels)
    return estimate._replace(probabilities=probabilities, gain=gain)


def audit_checkpoint(
    cfg: CfgNode, checkpoint: Checkpoints, table: AnnotationTable | None = None
) -> LabelAudit | None:
    """Rank annotations by the losses of one pass over their images, for any detector.

    All processes of detectron2's ``launch`` call it, and share the images; it is None in other
    processes than the main one.

    The confidence is that of the SuperLoss with tau the mean loss and ``CLS.LAMBDA``.

    Args:
        cfg: of the detector
        checkpoint: weights of the detector, with or without the SuperLoss; or of one for each
            fold of the images, trained without it
        table: what is audited; None for ``DATASETS.TRAIN`` with ``DATASETS.LABEL_NOISE``

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: the detector is neither a GeneralizedRCNN nor a RetinaNet
    """
    table = table or AnnotationTable.of(noisy_dataset_dicts(cfg))
    scores = score_checkpoint(cfg, checkpoint, table)
    if scores is None:
        return None
    return _audit_of(cfg, table, scores)


def _audit_of(cfg: CfgNode, table: AnnotationTable, scores: AnnotationScores) -> LabelAudit:
    sigma = confidence(scores.losses, scores.losses.mean(), cfg.MODEL.SUPERLOSS.CLS.LAMBDA)
    num_classes = num_classes_of(cfg)
    # Of one class no other can be suggested; the annotations are listed all the same.
    tracker = build_tracker(torch.tensor(table.labels()), max(num_classes, 2))
    for rows, probabilities in blocks(scores.probabilities):
        probabilities = F.pad(probabilities, (0, max(2 - num_classes, 0)))
        columns = (scores.ids[rows], scores.losses[rows], sigma[rows], probabilities)
        tracker(*columns, begins_step=rows.start == 0)
    statistics = tracker.statistics()
    if num_classes < 2:
        statistics = statistics._replace(probabilities=dense(statistics.probabilities)[:, :1])
    return audit_annotations(table, statistics)


def audit_features(
    cfg: CfgNode, table: AnnotationTable
) -> tuple[LabelAudit, TrueClasses] | tuple[None, None]:
    """Rank annotations by classes that are estimated from pretrained features, without a training.

    All processes of detectron2's ``launch`` call it, and share the images; others than the main one
    get None twice. Loss and confidence are of the estimated probability of the given label.

    Args:
        cfg: of a detector, stock or not, whose backbone is pretrained
        table: what is audited

    Raises:
        ValueError: there are too few images, or the weights are none of the backbone
    """
    features = _pretrained_features(cfg, table)
    estimate = _estimate(features, cfg, table)
    if features is None or estimate is None:
        return None, None
    ids = features.ids
    probabilities = estimate.probabilities[ids]
    of_given = probabilities.gather(1, torch.tensor(table.labels())[ids][:, None])[:, 0]
    losses = -of_given.clamp_min(1e-6).log()
    return _audit_of(cfg, table, AnnotationScores(ids, losses, probabilities, [])), estimate


def audit_kinds(
    cfg: CfgNode,
    checkpoint: Checkpoints,
    kinds: Collection[str],
    table: AnnotationTable,
    audit: LabelAudit | None = None,
) -> tuple[LabelAudit, SuspectList, AnnotationScores] | None:
    """Rank what looks wrong of any kind, by one pass of any detector with its detection.

    All processes of detectron2's ``launch`` call it, and share the images; it is None in other
    processes than the main one.

    Args:
        cfg: of the detector
        checkpoint: weights of the detector, with or without the SuperLoss; or of one for each
            fold of the images, trained without it
        kinds: some of :data:`~sl_detectron.audit.kinds.KINDS`
        table: what is audited
        audit: of a training run, whose ranking of wrong classes is then taken; None for that of
            :func:`audit_checkpoint`, bit for bit

    Returns:
        the ranking of wrong classes, the list of all kinds, and what both are from

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: an unknown kind, or a detector that cannot be audited
    """
    scores = score_checkpoint(cfg, checkpoint, table, detect=True)
    if scores is None:
        return None
    audit = audit or _audit_of(cfg, table, scores)
    return audit, find_suspects(table, scores, audit, kinds), scores


def evaluate_run(
    cfg: CfgNode,
    audit: LabelAudit | None,
    table: AnnotationTable,
    checkpoint: Checkpoints | None,
    manifest: str = "",
) -> AuditEvaluation | None:
    """Score an audit against known noise, beside the model's losses and cleanlab's ObjectLab.

    All processes of detectron2's ``launch`` call it, and share the images; it is None in other
    processes than the main one.

    Args:
        cfg: of the run
        audit: of the same run; only the main process needs it
        table: what was audited; it tells the truth about noise in memory
        checkpoint: whose losses and detections make the reference scores; None for an audit
            without a trained detector, which has none
        manifest: of noise that is in the files

    Raises:
        ValueError: no label is known to be wrong
    """
    truth = table.true_classes()
    if manifest and audit is not None:
        truth = truth_from_manifest(table, read_manifest(manifest), audit.classes)
    if checkpoint is None:
        return None if audit is None else evaluate_audit(audit, truth)
    scores = score_checkpoint(cfg, checkpoint, table, detect=True)
    if scores is None or audit is None:
        return None
    references = {"loss of the final model": _mean_losses(scores)}
    lab = objectlab_scores([*table.records()], scores.detections, num_classes_of(cfg))
    for name, qualities in lab.items():
        references[f"ObjectLab, {name}"] = {i: -quality for i, quality in qualities.items()}
    return evaluate_audit(audit, truth, references)


def _mean_losses(scores: AnnotationScores) -> dict[int, float]:
    """Mean over the samples of each annotation, 0 for one that no anchor matched."""
    size = max(scores.ids.tolist(), default=-1) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, scores.ids, scores.losses.double())
    means = sums / torch.bincount(scores.ids, minlength=size)
    return defaultdict(float, enumerate(means.nan_to_num(0.0).tolist()))
