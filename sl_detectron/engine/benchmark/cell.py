"""One cell of a benchmark as a process: ``python -m sl_detectron.engine.benchmark.cell ARGS``.

Its command line is that of ``tools/train_net.py``, and so is its job. Beyond that it

* ends when its parent does, however that ended: it watches its standard input,
* holds a lock on its folder, so that no two processes ever train in it,
* writes ``result.json`` last. A result with the same config is kept.
"""

import argparse
import contextlib
import fcntl
import importlib
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm

from ..setup import setup_cfg, train_net
from .state import CELL_LOG, LOCK, RESULT, fingerprint, read_result, write_json

__all__ = ["main", "train_cell"]

# A training that goes on from its checkpoint sees other batches than one that was never stopped,
# and the table would depend on when it was. So a half-done cell starts anew.
RESUME = False


def main(argv: list[str]) -> None:
    """Train the cell that a command line of ``tools/train_net.py`` describes."""
    args = default_argument_parser().parse_args(argv)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cfg = setup_cfg(args.config_file, args.opts)
    launch(
        train_cell,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args),
    )


def train_cell(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train, evaluate and write the result, unless there is one; on every rank.

    Args:
        cfg: from :func:`~sl_detectron.engine.setup_cfg`
        args: from detectron2's ``default_argument_parser``
    """
    folder = Path(cfg.OUTPUT_DIR)
    with _locked(folder) if comm.is_main_process() else contextlib.nullcontext():
        # Looked at under the lock of rank 0: another process may have finished the cell meanwhile.
        if comm.all_gather(_is_finished(cfg, folder))[0]:
            return
        args.resume = RESUME
        if comm.is_main_process() and not args.resume:
            _clear(folder)
        comm.synchronize()
        started = time.monotonic()
        metrics = train_net(cfg, args)
        if comm.is_main_process():
            result = {
                "metrics": metrics["bbox"],
                "seconds": round(time.monotonic() - started, 1),
                "fingerprint": fingerprint(cfg),
                "versions": _versions(),
            }
            write_json(folder / RESULT, result)


def _is_finished(cfg: CfgNode, folder: Path) -> bool:
    result = read_result(folder)
    return result is not None and result["fingerprint"] == fingerprint(cfg)


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


def _versions() -> dict[str, str]:
    return {
        "sl_detectron": importlib.import_module("sl_detectron").__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
