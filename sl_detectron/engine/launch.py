"""Start a job on every rank, see how far it is, and end it clearly if a rank fails or must stop."""

import argparse
import atexit
import contextlib
import copy
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..cli import USER_ERRORS, run_tool
from ..data.datasets import forget_checked_datasets
from ..data.registered_sets import register_custom_datasets

__all__ = ["end_logs", "iterations_done", "launch_job", "metrics_stamp", "setup_job"]


def launch_job(job: Callable[[Any, argparse.Namespace], Any], cfg: Any, args: Any) -> None:
    """detectron2's ``launch`` with SIGTERM passed on to the ranks and their errors in one line.

    Args:
        job: called with cfg and args on every rank
        cfg: a config that can be pickled
        args: from detectron2's ``default_argument_parser``; ``dist_timeout``, in seconds, is how
            long a rank waits for another one

    Raises:
        SystemExit: a rank ended with an exit code, after it logged the reason
        ChildProcessError: a rank was killed, or waited too long for another; all are stopped
    """
    if args.num_gpus * args.num_machines <= 1:
        job(cfg, args)
        return
    forget_checked_datasets()  # each rank reads for itself
    before = signal.signal(signal.SIGTERM, _pass_on)
    try:
        launch(
            _run_rank,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(job, cfg, args),
            timeout=timedelta(seconds=args.dist_timeout),
        )
    except ProcessExitedException as error:
        if error.exit_code > 0:
            raise SystemExit(error.exit_code) from error
        raise ChildProcessError(
            f"rank {error.error_index} was killed by {error.signal_name}; the others were "
            "stopped; --resume continues from the last checkpoint"
        ) from error
    except ProcessRaisedException as error:
        # A rank that finds another one gone may be the first to end.
        lost = re.search(r".*(Connection (closed|reset) by peer|[Tt]imed out).*", str(error))
        if lost is None:
            raise
        reason = lost[0].strip()
        raise ChildProcessError(f"rank {error.error_index} lost another rank: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_rank(job: Callable[[Any, argparse.Namespace], Any], cfg: Any, args: Any) -> None:
    """Run the job, and end without tearing the interpreter down, in which gloo's threads can abort.

    A thread that still holds a tensor of the last collective operation waits for the interpreter's
    lock to free it, and all that was done would be reported as killed by SIGABRT. What was
    registered with :mod:`atexit` earlier, by the imports, is not called, but for logging's.
    """
    code: Any = 1  # of a process that ends by an exception

    def end() -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError):  # closed, or without a reader
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)  # a message counts as 1

    atexit.register(end)  # now, so that what the job registers comes before it
    try:
        code = run_tool(partial(job, cfg), args)
    except SystemExit as stop:
        code = stop.code or 0
    sys.exit(code)


def _pass_on(number: int, frame: FrameType | None) -> None:
    for child in multiprocessing.active_children():
        child.terminate()


def setup_job(cfg: Any, args: argparse.Namespace | None = None) -> None:
    """detectron2's ``default_setup`` (loggers, config backup, seeds) with our logger beside it."""
    if isinstance(cfg, CfgNode):
        # detectron2's launch starts new processes, without the datasets of this config.
        register_custom_datasets(cfg.DATASETS)
        output = cfg.OUTPUT_DIR
    else:
        output = cfg.train.output_dir
    default_setup(cfg, args)
    # After some calls torch fuses a scripted function, as a stock RetinaNet's focal loss is. That
    # rounds differently, and a resumed run would not end as one that was never interrupted. All
    # that torch.jit.set_fusion_strategy does, which is deprecated as the rest of torch.jit.
    torch._C._jit_set_fusion_strategy([("STATIC", 0), ("DYNAMIC", 0)])
    setup_logger(output, comm.get_rank(), name="sl_detectron")
    if not getattr(args, "debug", False):
        for handler in logging.getLogger("detectron2").handlers:
            # The one of the console; log.txt keeps the traceback.
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.setFormatter(_WithoutTraceback(handler.formatter))


def end_logs() -> None:
    """Undo what :func:`setup_job` did to the loggers: another job then logs to its folder only."""
    for name in ("detectron2", "fvcore", "sl_detectron"):
        logger = logging.getLogger(name)
        for handler in [*logger.handlers]:
            logger.removeHandler(handler)
    setup_logger.cache_clear()  # it does nothing for arguments that it had before


class _WithoutTraceback(logging.Formatter):
    """Formats a user error as one line, as the command line does."""

    def __init__(self, stock: logging.Formatter | None):
        super().__init__()
        # setup_logger gives out the same handlers again, with this formatter.
        self.stock: logging.Formatter = getattr(stock, "stock", stock) or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, USER_ERRORS):
            # A copy: the other handlers get the same record, and cache its traceback in it.
            record = copy.copy(record)
            reason = " ".join(str(error).split())
            record.msg, record.args = f"{record.getMessage()} {reason}", ()
            record.exc_info = record.exc_text = None
        return self.stock.format(record)


def metrics_stamp(output: str | os.PathLike) -> tuple[int, int] | None:
    """Time and size of a run's metrics file, which tell one state of it from the next.

    A file's time is compared with its own only: file systems and servers keep other clocks.
    """
    try:
        status = (Path(output) / "metrics.json").stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def iterations_done(output: str | os.PathLike, before: tuple[int, int] | None = None) -> int:
    """Number of iterations in the metrics file of a run, also of one in another process.

    A file whose stamp is still the one ``before`` the start belongs to an older run: 0.
    """
    path = Path(output) / "metrics.json"
    try:
        if before is not None and metrics_stamp(output) == before:
            return 0
        return int(json.loads(path.read_text().splitlines()[-1])["iteration"]) + 1
    except (OSError, ValueError, IndexError):  # not there yet, or caught in the middle of a write
        return 0
