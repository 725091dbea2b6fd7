"""One cell of a benchmark as a process: ``python -m sl_detectron.engine.benchmark.cell ARGS``.

Its command line is that of ``tools/train_net.py`` with ``--keep``; so is its job. Beyond that it

* ends when its parent does, however that ended: it watches its standard input,
* holds a lock on its folder, so that no two processes ever train in it,
* writes ``result.json`` when all is done, and only then removes checkpoints. A result with the same
  config is kept.
"""

import argparse
import contextlib
import fcntl
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

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from ..launch import launch_job
from ..setup import setup_cfg, train_net
from .state import CELL_LOG, KEEP, LOCK, RESULT, differences, fingerprint, read_result, write_json

__all__ = ["main", "train_cell"]

# How a cell begins, as rank 0 decides for all.
FINISHED, RESUME, ANEW = "finished", "resume", "anew"


def main(argv: list[str]) -> None:
    """Train the cell that a command line of ``tools/train_net.py`` describes."""
    parser = default_argument_parser()
    # A traceback is for the log; the grid shows its last line.
    parser.set_defaults(debug=True, dist_timeout=1800.0)
    parser.add_argument("--keep", choices=KEEP, default="all")
    args = parser.parse_args(argv)
    # Slurm announces a time limit to all processes of a job; who started this one sends SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    launch_job(train_cell, setup_cfg(args.config_file, args.opts), args)


def train_cell(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train, evaluate and write the result, unless there is one; on every rank.

    A training that was killed goes on from its checkpoint, to the same result: the trainer sees to
    that. One with another config starts anew.

    Args:
        cfg: from :func:`~sl_detectron.engine.setup_cfg`
        args: from detectron2's ``default_argument_parser``, and which checkpoints to ``keep``
    """
    folder = Path(cfg.OUTPUT_DIR)
    with _locked(folder) if comm.is_main_process() else contextlib.nullcontext():
        # Looked at under the lock of rank 0: another process may have finished the cell meanwhile.
        beginning = comm.all_gather(_beginning(cfg, folder))[0]
        if beginning == FINISHED:
            return
        args.resume = beginning == RESUME
        if comm.is_main_process() and beginning == ANEW:
            _clear(folder)
        comm.synchronize()
        started = time.monotonic()
        metrics = train_net(cfg, args)
        if comm.is_main_process():
            result = {
                "metrics": metrics["bbox"],
                "seconds": round(time.monotonic() - started, 1),
                "resumed": args.resume,  # so seconds are those of the last part
                "fingerprint": fingerprint(cfg),
                "versions": _versions(),
            }
            write_json(folder / RESULT, result)
            # After it: a result that cannot be written, as on a full disk, loses no training.
            _discard_checkpoints(folder, args.keep)


def _beginning(cfg: CfgNode, folder: Path) -> str:
    result = read_result(folder)
    if result is not None and result["fingerprint"] == fingerprint(cfg):
        return FINISHED
    half_done = result is None and (folder / "last_checkpoint").is_file()
    return RESUME if half_done and not differences(cfg, folder) else ANEW


def _end_with_parent() -> None:
    """The parent holds the other end of a pipe and never writes: reading ends as it dies."""
    # Not sys.stdin.read: at its end the interpreter would wait for the stream's lock.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    # The system drops the lock when the process ends, also by SIGKILL.
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that trains in {folder}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear(folder: Path) -> None:
    """Remove what an earlier training left, so that logs and metrics are of this one alone."""
    for path in folder.iterdir():
        if path.name in (LOCK, CELL_LOG):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _discard_checkpoints(folder: Path, keep: str) -> None:
    if keep == "all":
        return
    if keep == "none":
        (folder / "last_checkpoint").unlink()
    for path in folder.glob("model_*.pth"):
        if keep == "none" or path.name != "model_final.pth":
            path.unlink()


def _versions() -> dict[str, str]:
    return {
        "sl_detectron": importlib.import_module("sl_detectron").__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
