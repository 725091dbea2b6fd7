"""Training hooks for detectron2's trainers."""

import logging

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..audit import AUDIT_JSON, AnnotationTracker, write_audit
from ..losses import SuperLoss
from .label_audit import audit_tracked
from .resume import StopOnSignal

__all__ = ["LogTau", "TrackAnnotations"]

logger = logging.getLogger(__name__)


class LogTau(HookBase):
    """After training, log every tau of every rank.

    They are equal: each step sums the losses over ranks before it moves tau. A line that shows
    otherwise is the first thing to know about a training that went wrong.
    """

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            # Called after an exception too: the other ranks would not join the gather.
            return
        taus = {
            name: float(module.tau)  # training is over: a host round trip costs nothing
            for name, module in self.trainer.model.named_modules()
            if isinstance(module, SuperLoss)
        }
        by_rank = comm.gather(taus)
        for name in taus if by_rank else ():
            logger.info("tau by rank of %s: %s", name, [rank[name] for rank in by_rank])


class TrackAnnotations(HookBase):
    """Keep the checkpoints' annotation statistics complete; write the label audit after training.

    Register it before the hook that writes checkpoints.

    Args:
        tracker: what the loss terms tell about every annotation
        cfg: of the run; the audit goes into its ``OUTPUT_DIR``
        stop: says when a checkpoint is due
    """

    def __init__(self, tracker: AnnotationTracker, cfg: CfgNode, stop: StopOnSignal):
        self.tracker = tracker
        self.cfg = cfg
        self.stop = stop

    def after_step(self) -> None:
        if self.stop.checkpoint_is_due():
            self.tracker.synchronize()

    def after_train(self) -> None:
        # Called after an exception too: the statistics are then of this process alone.
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        if not self.tracker.statistics().num_samples.any():
            logger.warning(
                "No annotation was tracked: the training loader gives no gt_annotation_ids; build "
                "it with sl_detectron.data.build_noisy_train_loader(cfg, mapper)"
            )
            return
        try:
            audit = audit_tracked(self.cfg, self.tracker)
            write_audit(audit, self.cfg.OUTPUT_DIR)
        except Exception as error:
            # The checkpoint holds the statistics; the evaluation that follows must not be lost.
            logger.error(
                "No label audit (%s: %s). Mend that and run tools/audit_labels.py --from-run %s",
                *(type(error).__name__, error, self.cfg.OUTPUT_DIR),
            )
            return
        logger.info("Ranked %d annotations: %s", len(audit.annotations), AUDIT_JSON)
