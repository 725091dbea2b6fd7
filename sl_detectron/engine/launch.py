"""Start a job on every rank, and make one clear end of it if a rank fails or is told to stop."""

import argparse
import atexit
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

from detectron2.engine import launch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from ..cli import run_tool

__all__ = ["launch_job"]


def launch_job(job: Callable[[Any, argparse.Namespace], Any], cfg: Any, args: Any) -> None:
    """detectron2's ``launch`` with SIGTERM passed on to the ranks and their errors in one line.

    Args:
        job: called with cfg and args on every rank
        cfg: a config that can be pickled
        args: from detectron2's ``default_argument_parser``; ``dist_timeout``, in seconds, is how
            long a rank waits for another one

    Raises:
        SystemExit: a rank ended with an exit code of its own, after it said why
        ChildProcessError: a rank was killed, or waited too long for another; all are stopped
    """
    if args.num_gpus * args.num_machines <= 1:
        job(cfg, args)
        return
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
            "stopped; --resume goes on from the last checkpoint"
        ) from error
    except ProcessRaisedException as error:
        # A rank that finds another one gone may be the first to end.
        lost = re.search(
            r"[^\n]*(Connection (closed|reset) by peer|[Tt]imed out)[^\n]*", str(error)
        )
        if lost is None:
            raise
        reason = lost[0].strip()
        raise ChildProcessError(f"rank {error.error_index} lost another one: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_rank(job: Callable[[Any, argparse.Namespace], Any], cfg: Any, args: Any) -> None:
    end = _EndOfProcess()
    atexit.register(end)  # now, so that what the job registers comes before it
    try:
        end.code = run_tool(partial(job, cfg), args)
    except SystemExit as stop:
        end.code = stop.code or 0
    sys.exit(end.code)


class _EndOfProcess:
    """Ends without tearing the interpreter down, in which gloo's threads can abort the process.

    A thread that still holds a tensor of the last collective operation waits for the interpreter's
    lock to free it, and all that was done would be reported as killed by SIGABRT. What was
    registered with :mod:`atexit` earlier, by the imports, is not called, but for logging's.
    """

    def __init__(self) -> None:
        self.code: Any = 1  # of a process that ends by an exception

    def __call__(self) -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError):  # closed, or nobody reads it
                stream.flush()
        os._exit(self.code if isinstance(self.code, int) else 1)  # a message counts as 1


def _pass_on(number: int, frame: FrameType | None) -> None:
    for child in multiprocessing.active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGTERM)
