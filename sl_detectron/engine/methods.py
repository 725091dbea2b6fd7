"""The hook that connects a method of another paper to the training loop."""

import logging

import torch
from detectron2.engine import HookBase

from ..audit.few_classes import seen_rows
from ..audit.tracker import AnnotationTracker
from ..audit.true_classes import infer_true_classes
from ..data.annotation_ids import AnnotationTable
from ..rivals import Method
from ..rivals.co_teaching import CoTeaching

__all__ = ["TrainMethod"]

logger = logging.getLogger(__name__)

# Of the statistics in an estimate of the noise rate: they are not sharpened. Those of an early
# detector, which predicts little, would make most labels look wrong.
TEMPERATURE = 1.0


class TrainMethod(HookBase):
    """Pass the iteration to a method; estimate the noise rate if it is not given.

    The rate is estimated from the statistics so far at the method's start, and then again after
    each further period of that length.

    Register it before the hooks that write checkpoints.

    Args:
        method: attached to the model
        tracker: of the run; None where no rate is estimated
        annotations: of the training loader; likewise

    Raises:
        ValueError: the rate is to be estimated, and nothing is tracked
    """

    def __init__(
        self,
        method: Method,
        tracker: AnnotationTracker | None = None,
        annotations: AnnotationTable | None = None,
    ) -> None:
        self.method = method
        self.tracker = tracker
        self.annotations = annotations
        estimates = isinstance(method, CoTeaching) and method.needs_rate
        if estimates and (tracker is None or annotations is None):
            raise ValueError(
                "MODEL.METHOD.NOISE_RATE is below 0, but no annotation is tracked from which it "
                "could be estimated: set it, or train with a classification term of the SuperLoss "
                "and at least two classes"
            )

    def before_step(self) -> None:
        self.method.begin_step(self.trainer.iter)

    def after_step(self) -> None:
        self.method.end_step()
        method, tracker, annotations = self.method, self.tracker, self.annotations
        if not isinstance(method, CoTeaching) or tracker is None or annotations is None:
            return
        if method.needs_rate and (self.trainer.iter + 1) % max(method.start, 1) == 0:
            method.rate = _estimate(tracker, annotations)


def _estimate(tracker: AnnotationTracker, annotations: AnnotationTable) -> float:
    """Every rank calls, and gets the same."""
    tracked = tracker.mean_probabilities()
    rows = seen_rows(tracked).nonzero()[:, 0]
    if not len(rows):
        return 0.0
    labels = torch.tensor(annotations.labels(), device=tracked.device)
    rate = infer_true_classes(tracked[rows], labels[rows], TEMPERATURE).noise_rate
    logger.info("About %.0f %% of the labels are wrong: Co-teaching drops as many", 100 * rate)
    return float(rate)
