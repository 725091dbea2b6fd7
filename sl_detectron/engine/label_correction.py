"""Training on corrected labels: targets of an earlier estimate, or corrections within one run.

docs/label_correction.md explains the correction and when it helps.
"""

import logging
from dataclasses import dataclass, fields

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from ..audit.checkpoint_scores import check_pretrained
from ..audit.few_classes import in_rows, seen_rows
from ..audit.tracker import AnnotationTracker
from ..audit.true_classes import infer_true_classes
from ..checkpoint import check_checkpoint
from ..config import num_classes_of
from ..data.annotation_ids import AnnotationTable
from ..modeling.class_targets import ClassTargets
from .class_estimates import NODE, attach_targets, read_class_targets

__all__ = [
    "CorrectLabels",
    "LabelCorrection",
    "check_correction",
    "check_one_round",
]

logger = logging.getLogger(__name__)

LATER_LOSSES = ("plain", "superloss")
FORMS = ("hard", "soft")
# The statistics of a training run are not held out, so their likelihood cannot calibrate them.
# This temperature was best on the training half of VOC 2007's subset.
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
        tracked, labels = self.tracker.mean_probabilities(), self.targets.labels
        seen = seen_rows(tracked)
        # Host trip: once a period, the estimate of the true classes has many.
        rows = seen.nonzero()[:, 0]
        estimate = infer_true_classes(tracked[rows], labels[rows], TEMPERATURE)
        probabilities = in_rows(estimate.probabilities, rows, labels)
        self.targets.set_distributions(probabilities, seen, self.hard, self.min_probability)
        logger.info(
            "Corrected labels at iteration %d: %d of %d annotations have another class, about "
            "%.0f %% of the labels are wrong",
            self.trainer.iter + 1,
            int((self.targets.classes[:, 0] != self.targets.labels).sum()),
            *(len(seen), 100 * estimate.noise_rate),
        )


@dataclass(frozen=True)
class LabelCorrection:
    """How one training run corrects labels: ``MODEL.SUPERLOSS.CORRECTION`` without its rounds.

    In a LazyConfig it is the name ``label_correction``. As it is made it corrects nothing.

    Args:
        start: fraction of the iterations after which the targets are estimated from the
            statistics so far, in (0, 1]; 1.0 for never
        period: iterations from one estimate to the next
        form: "hard", the most probable class, or "soft", the two most probable
        min_probability: annotations that are less certain have no class loss
        targets: ``class_targets.pth`` of an earlier run, to start from; "" for the given labels

    Raises:
        ValueError: a bad value, by name
        FileNotFoundError: there is no ``targets``
    """

    start: float = 1.0
    period: int = 500
    form: str = "soft"
    min_probability: float = 0.0
    targets: str = ""

    def __post_init__(self) -> None:
        accepted = {
            "start": (0 < self.start <= 1, "above 0.0 and at most 1.0"),
            "period": (self.period >= 1, "1 or above"),
            "form": (self.form in FORMS, f"one of {FORMS}"),
            "min_probability": (0 <= self.min_probability <= 1, "in [0, 1]"),
        }
        for name, (fits, form) in accepted.items():
            if not fits:
                value = getattr(self, name)
                raise ValueError(f"{NODE}.{name.upper()} must be {form}; got {value!r}")
        check_checkpoint(self.targets, f"{NODE}.TARGETS")

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "LabelCorrection":
        """By the keys of the same names, in capitals."""
        node = cfg.MODEL.SUPERLOSS.CORRECTION
        return cls(**{field.name: node[field.name.upper()] for field in fields(cls)})

    def build_targets(
        self, model: nn.Module, annotations: AnnotationTable | None
    ) -> ClassTargets | None:
        """The class targets of a run, attached to its model; None where nothing is corrected.

        Args:
            model: on the device that it is trained on
            annotations: of the training loader

        Raises:
            ValueError: a loader without a table of annotations, or a model that takes no targets;
                targets of other annotations
        """
        if not self.targets and self.start >= 1.0:
            return None
        if annotations is None:
            raise ValueError(
                f"{NODE} needs a training loader by build_noisy_train_loader, which gives "
                "annotations ids"
            )
        targets = ClassTargets(torch.tensor(annotations.labels()))
        if self.targets:
            self._set_from_file(targets, annotations)
        targets.to(next(model.parameters()).device)
        attach_targets(model, targets)
        return targets

    def build_hook(
        self, tracker: AnnotationTracker | None, targets: ClassTargets | None, max_iter: int
    ) -> CorrectLabels | None:
        """The hook that corrects as the run trains; None where ``start`` is 1.0.

        Raises:
            ValueError: the run does not track its annotations
        """
        if self.start >= 1.0 or targets is None:
            return None
        if tracker is None:
            raise ValueError(
                f"{NODE}.START corrects by the statistics of the annotations, and this run tracks "
                "none: it needs a classification term and at least two classes"
            )
        start = max(round(self.start * max_iter), 1)
        hard = self.form == "hard"
        return CorrectLabels(tracker, targets, start, self.period, hard, self.min_probability)

    def _set_from_file(self, targets: ClassTargets, annotations: AnnotationTable) -> None:
        try:
            probabilities = read_class_targets(self.targets, annotations)
        except ValueError as error:
            raise ValueError(f"{NODE}.TARGETS: {error}") from error
        targets.set_distributions(probabilities, None, self.form == "hard", self.min_probability)


def check_correction(cfg: CfgNode) -> None:
    """Check the values of ``MODEL.SUPERLOSS.CORRECTION`` before anything is trained.

    Raises:
        ValueError: a bad value, by name
        FileNotFoundError: there is no ``TARGETS``
    """
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    if node.ROUNDS < 1:
        raise ValueError(f"{NODE}.ROUNDS must be 1 or above; got {node.ROUNDS!r}")
    if node.LATER_LOSS not in LATER_LOSSES:
        given = node.LATER_LOSS
        raise ValueError(f"{NODE}.LATER_LOSS must be one of {LATER_LOSSES}; got {given!r}")
    correction = LabelCorrection.from_cfg(cfg)
    if node.FROM_FEATURES:
        _check_features(cfg)
    if (node.ROUNDS > 1 or node.FROM_FEATURES) and num_classes_of(cfg) < 2:
        raise ValueError(
            f"{NODE} estimates which class each object has, and the detector has one class only: "
            "set ROUNDS to 1 and FROM_FEATURES to False"
        )
    if (node.ROUNDS > 1 or correction.start < 1) and not cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS:
        raise ValueError(
            f"{NODE} corrects by the statistics of the annotations, and "
            "MODEL.SUPERLOSS.TRACK_ANNOTATIONS is off"
        )


def _check_features(cfg: CfgNode) -> None:
    if cfg.MODEL.SUPERLOSS.CORRECTION.TARGETS:
        raise ValueError(
            f"{NODE}.TARGETS and {NODE}.FROM_FEATURES both set the targets of the first round: "
            "switch one off"
        )
    check_pretrained(cfg, f"{NODE}.FROM_FEATURES")


def check_one_round(cfg: CfgNode) -> None:
    """Refuse a config whose rounds one training run would ignore.

    Raises:
        ValueError: ``ROUNDS`` is above 1, or ``FROM_FEATURES`` is on
    """
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    if node.ROUNDS > 1 or node.FROM_FEATURES:
        key = "FROM_FEATURES" if node.FROM_FEATURES else "ROUNDS"
        raise ValueError(
            f"a trainer trains one round, without an estimate before or after it, and {NODE}.{key} "
            f"is {node[key]}: call sl_detectron.engine.train_net, which does both"
        )
