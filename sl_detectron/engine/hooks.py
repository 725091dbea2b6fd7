"""Training hooks for detectron2's trainers."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..losses import SuperLoss

__all__ = ["LogTau"]

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
