"""Resume a training run as if it had never stopped, and stop it on a signal of a scheduler."""

import copy
import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import SafeCheckpointer
from ..data import TrainLoader
from ..losses import AfterStart, DataParams, ForwardCorrection
from ..modeling import SuperLossTerm
from ..rivals.pair import fill_both
from .rng import get_rng_state, set_rng_state

__all__ = [
    "STOPPED",
    "ResumeState",
    "SaveAndStop",
    "StopOnSignal",
    "any_rank",
    "resume_or_load",
]

# Exit code of a training run that SIGTERM stopped after it wrote a checkpoint: 128 + SIGTERM, as in
# a shell. Not 0: a script that trains and then evaluates must see that training is not done.
STOPPED = 128 + signal.SIGTERM

logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """Note SIGTERM, and let all ranks agree on the step after which they stop.

    Register it first, and :class:`SaveAndStop` after the hooks that a checkpoint needs. ``period``
    is the number of iterations from one checkpoint to the next, ``eval_period`` from one evaluation
    to the next; 0 for none.
    """

    def __init__(self, period: int, eval_period: int = 0):
        self.period = period
        self.eval_period = eval_period
        self.stops = False
        self._signalled = False
        self._before: Any = None

    def before_train(self) -> None:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def after_step(self) -> None:
        self.stops = any_rank(self._signalled)

    def after_train(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def checkpoint_is_due(self) -> bool:
        """Whether this step ends in a checkpoint; the same on every rank."""
        done = self.trainer.iter + 1
        is_last = done >= self.trainer.max_iter
        return self.stops or done % self.period == 0 or is_last or self.is_before_evaluation()

    def is_before_evaluation(self) -> bool:
        """Whether an evaluation follows this step, and no checkpoint of the schedule is before."""
        done = self.trainer.iter + 1
        if not self.eval_period or done % self.eval_period or done >= self.trainer.max_iter:
            return False
        return done % self.period != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


class SaveAndStop(HookBase):
    """End the process with a checkpoint, once :class:`StopOnSignal` requests it.

    An evaluation may fail, so there is a checkpoint before each; only the last of these is kept. A
    training run that was killed between its last two checkpoints gets the final one.
    """

    def __init__(self, stop: StopOnSignal, checkpointer: SafeCheckpointer):
        self.stop = stop
        self.checkpointer = checkpointer
        self._before_evaluation: Path | None = None

    def before_train(self) -> None:
        if self.trainer.start_iter == self.trainer.max_iter:
            self.checkpointer.complete()

    def after_step(self) -> None:
        # A complete training run has its last checkpoint already.
        stops = self.stop.stops and self.trainer.iter + 1 < self.trainer.max_iter
        if not stops and not self.stop.is_before_evaluation():
            return
        name = f"model_{self.trainer.iter:07d}"
        self.checkpointer.save(name, iteration=self.trainer.iter)
        if not stops:
            self._replace(Path(self.checkpointer.save_dir, f"{name}.pth"))
            return
        logger.info("Stopped by SIGTERM after iteration %d; --resume continues", self.trainer.iter)
        # The first rank to leave makes the launcher end the others.
        comm.synchronize()
        raise SystemExit(STOPPED)

    def _replace(self, path: Path) -> None:
        if self._before_evaluation is not None and comm.is_main_process():
            self._before_evaluation.unlink(missing_ok=True)
        self._before_evaluation = path


class ResumeState(HookBase):
    """Put into checkpoints what every rank has for itself, and bring the data to where they were.

    These are the random states of Python, numpy and torch, the loss normalizer of RetinaNet and
    the seed of the data. The trainer saves the state of its hooks. A loader that is not a
    :class:`TrainLoader` starts anew.
    """

    def __init__(self, model: nn.Module, loader: Any, stop: StopOnSignal):
        # Without DDP, whose names of modules are others.
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.loader = loader if isinstance(loader, TrainLoader) else None
        self.stop = stop
        self._ranks: list[dict[str, Any]] = []
        self._iteration = -1
        self._loaded: dict[str, Any] = {}

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if self.loader is not None:
            self.loader.start_batch = start
            if start and "data" in self._loaded:
                self.loader.load_state_dict(self._loaded["data"])
        elif start:
            logger.warning("The loader is not sl_detectron's: the data start from the beginning")
        if start and self._loaded:
            self._restore()

    def after_step(self) -> None:
        if self.stop.checkpoint_is_due():
            self._ranks = comm.gather(self._state_of_rank())
            self._iteration = self.trainer.iter

    def after_train(self) -> None:
        if self.loader is not None:
            self.loader.close()

    def state_dict(self) -> dict[str, Any]:
        """Random states and normalizers by rank, and what decides the order of the data."""
        ranks, iteration = self._ranks, self._iteration
        if comm.get_world_size() == 1:  # no other rank, so right at any time
            ranks, iteration = [self._state_of_rank()], self.trainer.iter
        data = {} if self.loader is None else {"data": self.loader.state_dict()}
        return {"ranks": ranks, "iteration": iteration, **data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state until training starts: what is built before then draws numbers too."""
        self._loaded = state

    def _state_of_rank(self) -> dict[str, Any]:
        # The EMA of the number of foreground anchors, a plain attribute that no state dict has.
        normalizers = {
            name: float(module.loss_normalizer)
            for name, module in self.model.named_modules()
            if isinstance(module, DenseDetector) and hasattr(module, "loss_normalizer")
        }
        return {"rng": get_rng_state(), "normalizers": normalizers}

    def _restore(self) -> None:
        ranks = self._loaded["ranks"]
        if self._loaded["iteration"] != self.trainer.start_iter - 1 or not ranks:
            logger.warning("The checkpoint was not written at the end of a step of all ranks")
            return
        same = len(ranks) == comm.get_world_size()
        state = ranks[comm.get_rank() if same else 0]
        modules = dict(self.model.named_modules())
        for name, value in state["normalizers"].items():
            if name in modules:  # which has no such attribute before its first step
                modules[name].loss_normalizer = value
        if same:
            set_rng_state(state["rng"])
        else:
            logger.warning(
                "The checkpoint is of %d processes: with %d the random states are not restored",
                *(len(ranks), comm.get_world_size()),
            )


def resume_or_load(checkpointer: SafeCheckpointer, weights: str, resume: bool) -> bool:
    """Resume a training run, or load weights for a new one, which resets the SuperLoss.

    tau, the steps of a warm-up and learned temperatures belong to the losses of one training run:
    a tau of another task, averaged over 10^8 losses, would not move to those of this one.

    Args:
        checkpointer: of the model
        weights: a checkpoint for a new training run
        resume: whether to continue from the last checkpoint, if there is one

    Returns:
        whether the run is resumed
    """
    resumes = resume and checkpointer.has_checkpoint()
    parts = {
        name: (part, copy.deepcopy(part.state_dict()))
        for name, part in checkpointer.model.named_modules()
        if isinstance(part, SuperLossTerm | DataParams | AfterStart | ForwardCorrection)
    }
    if resumes:
        checkpointer.resume_or_load(weights, resume=True)
        return True
    with fill_both(checkpointer.model):
        checkpointer.resume_or_load(weights, resume=False)
    anew = []
    for name, (part, state) in parts.items():
        if any(not torch.equal(value, state[key]) for key, value in part.state_dict().items()):
            part.load_state_dict(state)
            anew.append(name)
    if anew:
        logger.info(
            "%s holds tau or other running state of the SuperLoss of another training run; it "
            "is reset here (--resume would keep it): %s",
            *(weights, ", ".join(anew)),
        )
    return False


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank. All ranks must call it; no GPU waits for it."""
    if comm.get_world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
    return bool(flags)
