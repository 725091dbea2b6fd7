"""Training on corrected labels: within one run, or in rounds that each start from the last one's.

What the correction does and when it helps is in docs/label_correction.md.
"""

import logging
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ..audit.run import estimate_run
from ..audit.tracker import AnnotationTracker
from ..audit.true_classes import infer_true_classes
from ..checkpoint import check_checkpoint, read_checkpoint
from ..data.annotation_ids import AnnotationTable
from ..files import replacing
from ..modeling.class_targets import ClassTargets, attach_class_targets

__all__ = [
    "CorrectLabels",
    "build_class_targets",
    "build_correction_hook",
    "check_correction",
    "is_estimated",
    "round_config",
    "write_class_targets",
]

logger = logging.getLogger(__name__)

TARGETS = "class_targets.pth"
LATER_LOSSES = ("plain", "superloss")
FORMS = ("hard", "soft")
# Statistics of a running training run are not held out, so that no likelihood tells how far they
# can be trusted. This temperature was best on the training half of VOC 2007's subset.
TEMPERATURE = 0.4


class CorrectLabels(HookBase):
    """Set the class targets from the statistics so far, first at ``start``, then periodically.

    Register it before the hooks that write checkpoints. Every rank computes the same targets from
    the statistics of all.

    Args:
        tracker: of the run
        targets: what the model trains on, which it changes
        start: iterations before the first correction
        period: iterations from one to the next
        hard, min_probability: see :meth:`ClassTargets.set_distributions`
    """

    def __init__(
        self,
        tracker: AnnotationTracker,
        targets: ClassTargets,
        start: int,
        period: int,
        hard: bool,
        min_probability: float,
    ) -> None:
        self.tracker = tracker
        self.targets = targets
        self.start = start
        self.period = period
        self.hard = hard
        self.min_probability = min_probability

    def after_step(self) -> None:
        # The last step ends the training: nothing is trained on its targets.
        since = self.trainer.iter + 1 - self.start
        if since < 0 or since % self.period or self.trainer.iter + 1 >= self.trainer.max_iter:
            return
        tracked = self.tracker.mean_probabilities()
        seen = ~tracked.isnan().any(dim=1)
        # Host trip: once a period, the estimate of the true classes has many.
        rows = seen.nonzero()[:, 0]
        estimate = infer_true_classes(tracked[rows], self.targets.labels[rows], TEMPERATURE)
        probabilities = torch.zeros_like(tracked).index_copy(0, rows, estimate.probabilities)
        self.targets.set_distributions(probabilities, seen, self.hard, self.min_probability)
        logger.info(
            "Corrected labels at iteration %d: %d of %d annotations have another class, about "
            "%.0f %% of the labels are wrong",
            self.trainer.iter + 1,
            int((self.targets.classes[:, 0] != self.targets.labels).sum()),
            *(len(seen), 100 * estimate.noise_rate),
        )


def build_correction_hook(
    cfg: CfgNode, tracker: AnnotationTracker, targets: ClassTargets
) -> CorrectLabels | None:
    """The hook that ``CORRECTION.START`` asks for; None where it is 1.0."""
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    if node.START >= 1.0:
        return None
    start = max(round(node.START * cfg.SOLVER.MAX_ITER), 1)
    hard = node.FORM == "hard"
    return CorrectLabels(tracker, targets, start, node.PERIOD, hard, node.MIN_PROBABILITY)


def check_correction(cfg: CfgNode) -> None:
    """Check the values of ``MODEL.SUPERLOSS.CORRECTION`` before anything is trained.

    Raises:
        ValueError: a bad value, by name
        FileNotFoundError: there is no ``TARGETS``
    """
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    accepted = {
        "ROUNDS": (node.ROUNDS >= 1, "1 or above"),
        "LATER_LOSS": (node.LATER_LOSS in LATER_LOSSES, f"one of {LATER_LOSSES}"),
        "START": (0 < node.START <= 1, "above 0.0 and at most 1.0"),
        "PERIOD": (node.PERIOD >= 1, "1 or above"),
        "FORM": (node.FORM in FORMS, f"one of {FORMS}"),
        "MIN_PROBABILITY": (0 <= node.MIN_PROBABILITY <= 1, "in [0, 1]"),
    }
    for key, (fits, form) in accepted.items():
        if not fits:
            raise ValueError(f"MODEL.SUPERLOSS.CORRECTION.{key} must be {form}; got {node[key]!r}")
    check_checkpoint(node.TARGETS, "MODEL.SUPERLOSS.CORRECTION.TARGETS")
    if (node.ROUNDS > 1 or node.START < 1) and not cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS:
        raise ValueError(
            "MODEL.SUPERLOSS.CORRECTION corrects by the statistics of the annotations, and "
            "MODEL.SUPERLOSS.TRACK_ANNOTATIONS is off"
        )


def build_class_targets(
    cfg: CfgNode, model: nn.Module, annotations: AnnotationTable | None
) -> ClassTargets | None:
    """The class targets that ``MODEL.SUPERLOSS.CORRECTION`` asks for, attached to a model.

    None where nothing is corrected.

    Raises:
        ValueError: a bad value; a loader without a table of annotations, or a model that takes no
            targets; targets of other annotations
    """
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    if not node.TARGETS and node.START >= 1.0:
        return None
    if annotations is None:
        raise ValueError(
            "MODEL.SUPERLOSS.CORRECTION needs a training loader of build_noisy_train_loader, "
            "whose annotations have ids"
        )
    targets = ClassTargets(torch.tensor(annotations.labels()))
    if node.TARGETS:
        _read_class_targets(node.TARGETS, targets, cfg, annotations)
    targets.to(cfg.MODEL.DEVICE)
    if not attach_class_targets(model, targets):
        raise ValueError(
            "MODEL.SUPERLOSS.CORRECTION needs SuperLoss heads or SuperLossRetinaNet; set "
            "MODEL.ROI_HEADS.NAME or MODEL.META_ARCHITECTURE to a SuperLoss one"
        )
    return targets


def round_config(cfg: CfgNode, number: int) -> CfgNode:
    """The config of a training round from 1 to ``CORRECTION.ROUNDS``.

    The last one writes to ``OUTPUT_DIR``, those before it to a folder in it.
    """
    if cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS == 1:
        return cfg
    node, output = cfg.MODEL.SUPERLOSS.CORRECTION, Path(cfg.OUTPUT_DIR)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS = 1
    if number < node.ROUNDS:
        cfg.OUTPUT_DIR = str(output / f"round_{number}")
    if number > 1:
        cfg.MODEL.SUPERLOSS.CORRECTION.TARGETS = str(output / f"round_{number - 1}" / TARGETS)
        if node.LATER_LOSS == "plain":
            # Not ENABLED False: the term also tells the tracker what it sees.
            cfg.MODEL.SUPERLOSS.CLS.FIXED_SIGMA = 1.0
            cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = False
    cfg.freeze()
    return cfg


def is_estimated(cfg: CfgNode) -> bool:
    """Whether the round of this config is done, with its :func:`write_class_targets`."""
    return Path(cfg.OUTPUT_DIR, TARGETS).is_file()


def write_class_targets(cfg: CfgNode) -> None:
    """After a round: estimate the true classes of its annotations, for the next one."""
    path = Path(cfg.OUTPUT_DIR, TARGETS)
    if comm.is_main_process():
        table = AnnotationTable.read(cfg.OUTPUT_DIR)
        estimate = estimate_run(cfg, cfg.OUTPUT_DIR, table)
        state = {"probabilities": estimate.probabilities, "fingerprint": table.fingerprint}
        state |= {"noise_rate": estimate.noise_rate}
        with replacing(path) as partial:
            torch.save(state, partial)
        labels = torch.tensor(table.labels())
        best = estimate.probabilities.max(dim=1)
        logger.info(
            "About %.0f %% of the labels are wrong; %d of %d annotations get another class, of "
            "which about %d is right: %s",
            100 * estimate.noise_rate,
            int((best.indices != labels).sum()),
            len(labels),
            int(best.values[best.indices != labels].sum()),
            path,
        )
    comm.synchronize()


def _read_class_targets(
    path: str | os.PathLike, targets: ClassTargets, cfg: CfgNode, annotations: AnnotationTable
) -> None:
    node, state = cfg.MODEL.SUPERLOSS.CORRECTION, read_checkpoint(path)
    if state.get("fingerprint") != annotations.fingerprint:
        raise ValueError(
            f"MODEL.SUPERLOSS.CORRECTION.TARGETS: {path} is of other annotations than those of "
            "DATASETS.TRAIN with DATASETS.LABEL_NOISE"
        )
    hard = node.FORM == "hard"
    targets.set_distributions(state["probabilities"], None, hard, node.MIN_PROBABILITY)
