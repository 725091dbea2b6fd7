"""One run of a sweep as a process: ``python -m sl_detectron.sweep.run ARGS``.

It takes the command line of ``tools/train_net.py`` and ``--keep``, and does the same job. In
addition it

* ends when its parent ends, for any reason: it watches its standard input,
* holds a lock on its folder, so that no two processes train in it,
* writes ``result.json`` at the end, and only then removes checkpoints. A result with the same
  config is kept,
* copies its first round of label correction to ``--first-round FOLDER``, that of another run of the
  sweep, which is the same training.
"""

import argparse
import contextlib
import importlib
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from filelock import FileLock, Timeout

from ..cli import add_import_option, import_modules
from ..engine.launch import launch_job
from ..engine.rounds import train_net
from ..engine.setup import setup_cfg
from . import state
from .state import (
    fingerprint,
    has_checkpoint,
    read_result,
    rounds_of,
    same_config,
    write_json,
)

__all__ = ["main", "train_run"]

LOCK_POLL = 1.0  # seconds


def main(argv: list[str]) -> None:
    """Train the run that a command line of ``tools/train_net.py`` describes."""
    parser = default_argument_parser()
    # A traceback is for the log; the sweep shows its last line.
    parser.set_defaults(debug=True, dist_timeout=1800.0)
    parser.add_argument("--keep", choices=state.KEEP, default="all")
    parser.add_argument("--first-round", type=Path, metavar="FOLDER")
    add_import_option(parser)
    args = parser.parse_args(argv)
    # Slurm announces a time limit to all processes of a job; who started this one sends SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import_modules(args.imports)
    launch_job(train_run, setup_cfg(args.config_file, args.opts), args)


def train_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train, evaluate and write the result, unless there is one; on every rank.

    A run that was killed goes on from its checkpoint. One of another config starts anew: the sweep
    has asked for that. ``args.keep`` selects the checkpoints that stay.

    Raises:
        ValueError: the folder has a result of another config, which is not this one's to remove
    """
    folder = Path(cfg.OUTPUT_DIR)
    with _locked(folder):
        # Decided by rank 0 under its lock: another process may have finished the run meanwhile.
        same, finished, args.resume = comm.all_gather(_found(cfg, folder))[0]
        if finished and same:
            return
        if finished:
            raise ValueError(
                f"{folder / state.RESULT} belongs to another config: do two grids share a folder?"
            )
        if comm.is_main_process():
            if not args.resume:
                _clear(folder)
            # For the next start: detectron2's config.yaml is cut off by a kill while it is written.
            write_json(folder / state.BEGUN, {"fingerprint": fingerprint(cfg)})
        comm.synchronize()
        started = time.monotonic()

        def after_round(number: int, round_cfg: CfgNode, metrics: dict[str, Any]) -> None:
            if number == 1 and args.first_round:
                _share_round(round_cfg, metrics, started, args)

        metrics = train_net(cfg, args, after_round)
        if comm.is_main_process():
            _finish(folder, cfg, metrics, started, args)


def _share_round(
    cfg: CfgNode, metrics: dict[str, Any], started: float, args: argparse.Namespace
) -> None:
    """Copy a finished round to the run of the sweep that is the same training."""
    with _locked(args.first_round):
        if comm.is_main_process() and read_result(args.first_round) is None:
            _clear(args.first_round)
            shutil.copytree(cfg.OUTPUT_DIR, args.first_round, dirs_exist_ok=True)
            _finish(args.first_round, cfg, metrics, started, args)


def _finish(
    folder: Path,
    cfg: CfgNode,
    metrics: dict[str, Any],
    started: float,
    args: argparse.Namespace,
) -> None:
    result = {
        "metrics": metrics["bbox"],
        "seconds": round(time.monotonic() - started, 1),
        "resumed": args.resume,  # so seconds are those of the last part
        "fingerprint": fingerprint(cfg),
        "versions": _versions(),
    }
    write_json(folder / state.RESULT, result)
    # After it: a result that cannot be written, as on a full disk, loses no training.
    _discard_checkpoints(folder, args.keep)


def _found(cfg: CfgNode, folder: Path) -> tuple[bool, bool, bool]:
    """Whether what is there is of this config, is finished, and can be resumed."""
    same = same_config(cfg, folder)
    return same, read_result(folder) is not None, same and has_checkpoint(folder)


def _end_with_parent() -> None:
    """The parent holds the other end of a pipe and never writes: reading ends as it dies."""
    # Not sys.stdin.read: at its end the interpreter would wait for the stream's lock.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Rank 0 holds the lock. All wait for it together: a rank left alone would time out."""
    folder.mkdir(parents=True, exist_ok=True)
    # The system drops flock's lock when the process ends, also by SIGKILL; a soft lock would stay.
    lock = FileLock(folder / state.LOCK, timeout=LOCK_POLL, fallback_to_soft=False)
    is_main, told = comm.is_main_process(), False
    while True:
        with contextlib.suppress(Timeout):
            if is_main:
                lock.acquire()
        if comm.all_gather(lock.is_locked)[0]:
            break
        if is_main and not told:
            print(f"Waiting for another process that trains in {folder}", flush=True)
            told = True
    try:
        yield
    finally:
        lock.release()


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, so that logs and metrics are of this one alone."""
    for path in folder.iterdir():
        if path.name in (state.LOCK, state.RUN_LOG):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _discard_checkpoints(folder: Path, keep: str) -> None:
    for part in rounds_of(folder):
        if keep == "none":
            # An estimate before the first round has none.
            (part / "last_checkpoint").unlink(missing_ok=True)
        for path in part.glob("model_*.pth") if keep != "all" else ():
            if keep == "none" or path.name != "model_final.pth":
                path.unlink()


def _versions() -> dict[str, str]:
    packages = map(importlib.import_module, ("sl_detectron", "detectron2", "torch"))
    versions = {package.__name__: package.__version__ for package in packages}
    return {**versions, "python": platform.python_version()}


if __name__ == "__main__":
    main(sys.argv[1:])
