"""Label audits of a running training, of a finished one, and of any detector's checkpoint."""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import SafeCheckpointer, read_checkpoint
from ..config import num_classes_of
from ..data.formats.manifest import read_manifest
from ..label_noise import noisy_dataset_dicts
from ..losses import confidence
from ..modeling import SuperLossTerm
from . import AnnotationTracker, LabelAudit, audit_annotations
from .objectlab import objectlab_scores
from .score_annotations import Probe, probe_annotations
from .scoring import (
    AuditEvaluation,
    evaluate_audit,
    truth_from_manifest,
    truth_from_records,
)

__all__ = [
    "audit_checkpoint",
    "audit_run",
    "audit_tracked",
    "build_annotation_tracker",
    "class_names_of",
    "evaluate_run",
    "last_checkpoint",
    "probe_checkpoint",
]

logger = logging.getLogger(__name__)

# Above, tracking is left out: a set of so many classes would fill a GPU without being asked.
MAX_BYTES = 2**30


def build_annotation_tracker(
    cfg: CfgNode, model: nn.Module, data_loader: Any
) -> AnnotationTracker | None:
    """A tracker that observes every classification term of a model.

    Args:
        cfg: with ``MODEL.SUPERLOSS.TRACK_ANNOTATIONS``
        model: the detector, also inside of DistributedDataParallel
        data_loader: from :func:`~sl_detectron.label_noise.build_noisy_train_loader`

    Returns:
        None where the key is off, the model has no SuperLoss, the loader does not say how many
        annotations there are, there is one class only, or they would take more than 1 GiB
    """
    observed = _classification_terms(model)
    num_annotations = getattr(data_loader, "num_annotations", 0)
    num_classes = max(observed.values(), default=0)
    # With one class no other one can be suggested.
    if not (cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS and num_annotations and num_classes > 1):
        return None
    fingerprint = getattr(data_loader, "fingerprint", "")
    tracker = AnnotationTracker(num_annotations, num_classes, fingerprint)
    num_bytes = sum(buffer.nbytes for buffer in tracker.buffers())
    if num_bytes > MAX_BYTES:
        logger.warning(
            "No label audit: statistics of %d annotations would take %.1f GiB; set "
            "MODEL.SUPERLOSS.TRACK_ANNOTATIONS False to silence this",
            num_annotations,
            num_bytes / 2**30,
        )
        return None
    tracker.to(cfg.MODEL.DEVICE)
    for i, term in enumerate(observed):
        # The stages of a cascade, which come in this order, make one step.
        term.observers.append(tracker if i == 0 else partial(tracker, begins_step=False))
    return tracker


def _classification_terms(model: nn.Module) -> dict[SuperLossTerm, int]:
    """{term: number of classes K of the module that has it}."""
    terms = {}
    for module in model.modules():
        num_classes: Any = getattr(module, "num_classes", 0)
        for child in module.children():
            if isinstance(child, SuperLossTerm) and child.name == "cls":
                terms[child] = int(num_classes)
    return terms


def audit_tracked(cfg: CfgNode, tracker: AnnotationTracker) -> LabelAudit:
    """Rank the training annotations of a config by what a tracker holds.

    Raises:
        ValueError: the tracker's annotations are not those of the config
    """
    sets, classes = noisy_dataset_dicts(cfg), class_names_of(cfg)
    return audit_annotations(sets, classes, tracker.statistics(), tracker.fingerprint)


def audit_run(cfg: CfgNode, checkpoint: str | os.PathLike | None = None) -> LabelAudit:
    """Rank annotations by the statistics in a run's checkpoint, without a model.

    Args:
        cfg: of the run
        checkpoint: None for the last one in its ``OUTPUT_DIR``

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: the run did not track annotations, or other ones than those of the config
    """
    path = Path(checkpoint or last_checkpoint(cfg.OUTPUT_DIR))
    state = read_checkpoint(path).get("annotation_tracker")
    if state is None:
        raise ValueError(
            f"{path} holds no annotation statistics: the model had no SuperLoss, or "
            "MODEL.SUPERLOSS.TRACK_ANNOTATIONS was off; audit it by --checkpoint"
        )
    rows, columns = state["sums"].shape
    tracker = AnnotationTracker(rows - 1, columns - AnnotationTracker.NUM_VALUES)
    tracker.load_state_dict(state)
    return audit_tracked(cfg, tracker)


def audit_checkpoint(cfg: CfgNode, checkpoint: str | os.PathLike) -> LabelAudit:
    """Rank annotations by the losses of one pass over the training sets, for any detector.

    The confidence is that of the SuperLoss with tau the mean loss and ``CLS.LAMBDA``.

    Args:
        cfg: of the detector; its ``DATASETS.TRAIN`` is audited
        checkpoint: weights of the detector, with or without the SuperLoss

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: the detector is neither a GeneralizedRCNN nor a RetinaNet
    """
    sets = noisy_dataset_dicts(cfg)
    probe = probe_checkpoint(cfg, checkpoint, sets)
    sigma = confidence(probe.losses, probe.losses.mean(), cfg.MODEL.SUPERLOSS.CLS.LAMBDA)
    records = chain(*sets.values())
    last = max((a["annotation_id"] for r in records for a in r.get("annotations", ())), default=-1)
    tracker = AnnotationTracker(last + 1, num_classes_of(cfg))
    tracker(probe.ids, probe.losses, sigma, probe.probabilities)
    return audit_annotations(sets, class_names_of(cfg), tracker.statistics())


def evaluate_run(
    cfg: CfgNode,
    audit: LabelAudit,
    manifest: str = "",
    checkpoint: str | os.PathLike | None = None,
) -> AuditEvaluation:
    """Score an audit against known noise, beside the model's losses and cleanlab's ObjectLab.

    Args:
        cfg: of the run
        audit: of the same run
        manifest: of noise that is in the files; without it the noise is that of the config
        checkpoint: whose losses and detections make the reference scores; None for none of them

    Raises:
        ValueError: no label is known to be wrong
    """
    sets = noisy_dataset_dicts(cfg)
    truth = truth_from_records(sets)
    if manifest:
        truth = truth_from_manifest(sets, read_manifest(manifest), audit.classes)
    references: dict[str, dict[int, float]] = {}
    if checkpoint is not None:
        records = list(chain(*sets.values()))
        probe = probe_checkpoint(cfg, checkpoint, sets, detect=True)
        references["loss of the final model"] = _mean_losses(probe)
        lab = objectlab_scores(records, probe.detections, num_classes_of(cfg))
        for name, scores in lab.items():
            references[f"ObjectLab, {name}"] = {i: -score for i, score in scores.items()}
    return evaluate_audit(audit, truth, references)


def probe_checkpoint(
    cfg: CfgNode,
    checkpoint: str | os.PathLike,
    sets: Mapping[str, Sequence[dict[str, Any]]],
    detect: bool = False,
) -> Probe:
    """Build a config's detector, load weights and look at every annotation.

    Raises:
        FileNotFoundError: there is no checkpoint
        ValueError: it is not a checkpoint, or not one of this detector
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    model = build_model(cfg)
    _StrictCheckpointer(model).load(str(checkpoint))
    return probe_annotations(model, list(chain(*sets.values())), cfg, detect, progress=True)


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
                f"the checkpoint is not of the config's detector: for {missing[0]} and "
                f"{len(missing) - 1} more it has no weights, or of another shape"
            )


def last_checkpoint(folder: str) -> Path:
    """The checkpoint that a run wrote last.

    Raises:
        FileNotFoundError: the folder is not a run's
    """
    pointer = Path(folder, "last_checkpoint")
    if not pointer.is_file():
        raise FileNotFoundError(f"{folder} is not the output of a training: no {pointer.name}")
    return Path(folder, pointer.read_text().strip())


def class_names_of(cfg: CfgNode) -> list[str]:
    """The K class names of the training sets."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    return list(names or map(str, range(num_classes_of(cfg))))


def _mean_losses(probe: Probe) -> dict[int, float]:
    """Mean over the samples of each annotation, 0 for one that no anchor matched."""
    size = max(probe.ids.tolist(), default=-1) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, probe.ids, probe.losses.double())
    means = sums / torch.bincount(probe.ids, minlength=size)
    return defaultdict(float, enumerate(means.nan_to_num(0.0).tolist()))
