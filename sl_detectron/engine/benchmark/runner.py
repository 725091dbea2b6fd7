"""Train the cells of a grid that are not trained yet, and say how far it is."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from ..progress import iterations_done
from ..setup import setup_cfg
from .grid import Grid
from .jobs import CellJob, ProcessPool
from .plan import PlannedCell, explain_change, plan
from .state import CELL_LOG, FAILED, RESULT, read_result, write_json

__all__ = ["GRID_FILE", "KEEP", "RunSettings", "last_log_line", "run_grid"]

GRID_FILE = "grid.yaml"
KEEP = ("all", "final", "none")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """How cells are run.

    Attributes:
        num_jobs: cells at once on this machine
        num_gpus: of each cell on each machine, as in ``tools/train_net.py``
        threads: of each process; None: one on a CPU, the environment's choice on a GPU
        retry_failed: whether cells that failed earlier are run again
        rerun_changed: whether cells that finished with another config are run again
        keep: which checkpoints stay when a cell is finished: "all", "final" or "none"
    """

    num_jobs: int = 1
    num_gpus: int = 1
    threads: int | None = None
    retry_failed: bool = False
    rerun_changed: bool = False
    keep: str = "final"


def run_grid(
    grid: Grid, output: str | os.PathLike, settings: RunSettings = RunSettings()
) -> list[PlannedCell]:
    """Train what is missing of a grid. Killed at any moment, the same call goes on.

    Args:
        grid: from :func:`~sl_detectron.engine.benchmark.read_grid`
        output: folder for all; a copy of the grid, ``DETECTOR/METHOD/noise_N/seed_S/result.json``
        settings: how

    Returns:
        the cells that failed, now or earlier

    Raises:
        ValueError: a bad config, a data set that lacks a file, or a finished cell's config has
            changed
    """
    output = Path(output)
    cells = plan(grid, output)
    changed = [cell for cell in cells if cell.state == "changed"]
    if changed and not settings.rerun_changed:
        raise ValueError(
            f"{len(changed)} finished cells have another config now, first {changed[0].cell} "
            f"in {changed[0].folder}: {explain_change(changed[0])}. Train them again with "
            "--rerun-changed, or give another --output"
        )
    failed = [cell for cell in cells if cell.state == "failed" and not settings.retry_failed]
    waiting = [cell for cell in cells if cell.state != "finished" and cell not in failed]
    output.mkdir(parents=True, exist_ok=True)
    _write_text(output / GRID_FILE, grid.text)
    if waiting:
        _check_rows(waiting)
        finished = [cell for cell in cells if cell.state == "finished"]
        failed += _run(waiting, finished, settings)
    return failed


def _check_rows(cells: Iterable[PlannedCell]) -> None:
    """One cell of every row, so that a missing data set or device is said once and at once."""
    rows = {cell.cell.method: cell for cell in reversed(list(cells))}
    for method, cell in rows.items():
        try:
            setup_cfg(cell.config_file, [*cell.cell.opts, "OUTPUT_DIR", str(cell.folder)])
        except (ValueError, OSError) as error:
            raise ValueError(f"{method}: {error}") from error


def _run(
    waiting: list[PlannedCell], finished: list[PlannedCell], settings: RunSettings
) -> list[PlannedCell]:
    failed = []
    progress = _Progress(waiting, finished)
    with progress, ProcessPool(settings.num_jobs, settings.num_gpus) as pool:
        jobs: dict[Any, PlannedCell] = {pool.submit(_job(c, settings)): c for c in waiting}
        while jobs:
            time.sleep(1)
            for job in [job for job in jobs if job.done()]:
                cell = jobs.pop(job)
                if not _settle(cell, job, settings.keep):
                    failed.append(cell)
                progress.settled(cell)
            progress.update()
    return failed


def _job(cell: PlannedCell, settings: RunSettings) -> CellJob:
    threads = settings.threads
    if threads is None and not cell.cfg.MODEL.DEVICE.startswith("cuda"):
        threads = 1
    (cell.folder / FAILED).unlink(missing_ok=True)
    return CellJob(cell.folder, tuple(cell.argv(settings.num_gpus)), threads)


def _settle(cell: PlannedCell, job: Any, keep: str) -> bool:
    """Note how a cell ended; whether it ended well."""
    try:
        code = job.result()
    except Exception as error:  # the executor lost it
        code = f"{type(error).__name__}: {error}"
    if code == 0 and (cell.folder / RESULT).is_file():
        _discard_checkpoints(cell.folder, keep)
        return True
    write_json(cell.folder / FAILED, {"exit_code": code})
    return False


def _discard_checkpoints(folder: Path, keep: str) -> None:
    if keep == "all":
        return
    for path in folder.glob("model_*.pth"):
        if keep == "none" or path.name != "model_final.pth":
            path.unlink()


def last_log_line(folder: Path) -> str:
    """What a cell said last: of a failed one, its error."""
    with contextlib.suppress(OSError, IndexError):
        lines = (folder / CELL_LOG).read_text(errors="replace").strip().splitlines()
        return lines[-1].strip()
    return ""


class _Progress:
    """Iterations over all cells, as a bar on a terminal and as lines in a file."""

    def __init__(self, waiting: list[PlannedCell], finished: list[PlannedCell]):
        self._open = list(waiting)
        self._done = sum(cell.cfg.SOLVER.MAX_ITER for cell in finished)
        self._settled, self._total = len(finished), len(waiting) + len(finished)
        self._started = time.time()
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self._done + sum(cell.cfg.SOLVER.MAX_ITER for cell in waiting),
            initial=self._done,
            unit="it",
            dynamic_ncols=terminal,
            file=sys.stderr if terminal else _Lines(sys.stderr),
            mininterval=1 if terminal else 60,
        )

    def settled(self, cell: PlannedCell) -> None:
        self._open.remove(cell)
        self._done += cell.cfg.SOLVER.MAX_ITER
        self._settled += 1
        result = None if (cell.folder / FAILED).exists() else read_result(cell.folder)
        if result is None:
            said = f"FAILED, see {cell.folder / CELL_LOG}: {last_log_line(cell.folder)}"
        else:
            said = f"AP50 {result['metrics']['AP50']:.1f}, {result['seconds']:.0f} s"
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"[{self._settled}/{self._total}] {cell.cell}: {said}", file=sys.stderr)

    def update(self) -> None:
        running = sum(iterations_done(cell.folder, self._started) for cell in self._open)
        # A cell that starts anew takes back what it had done.
        self._bar.update(self._done + running - self._bar.n)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _Lines:
    """A file in which a bar does not overwrite itself, but adds lines."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            self._file.write(f"{line}\n")

    def flush(self) -> None:
        self._file.flush()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
