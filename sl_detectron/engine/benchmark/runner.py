"""Train the cells of a grid that are not trained yet, and say how far it is."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from ...files import write_text
from ..progress import iterations_done
from ..resume import STOPPED
from ..setup import setup_cfg
from .cluster import SubmititPool
from .grid import Grid, Method
from .jobs import CellJob, ProcessPool
from .plan import STATES, PlannedCell, explain_change, plan
from .state import CELL_LOG, FAILED, GRID_FILE, RESULT, read_result, write_json

__all__ = ["RunSettings", "run_grid"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """How cells are run.

    Attributes:
        num_jobs: cells at once; None: one on this machine, all on Slurm
        num_gpus: of each cell on each machine, as in ``tools/train_net.py``
        threads: of each process; None: one on a CPU, the environment's choice on a GPU
        retry_failed: whether cells that failed earlier are run again
        rerun_changed: whether cells that finished with another config are run again
        keep: which checkpoints stay when a cell is finished: "all", "final" or "none"
        executor: None for processes of this one; "slurm" or "local" for submitit
        cluster: submitit's parameters, each KEY=VALUE
    """

    num_jobs: int | None = None
    num_gpus: int = 1
    threads: int | None = None
    retry_failed: bool = False
    rerun_changed: bool = False
    keep: str = "final"
    executor: str | None = None
    cluster: tuple[str, ...] = ()


def run_grid(
    grid: Grid, output: str | os.PathLike, settings: RunSettings = RunSettings()
) -> list[tuple[PlannedCell, str]]:
    """Train what is missing of a grid. Killed at any moment, the same call goes on.

    Args:
        grid: from :func:`~sl_detectron.engine.benchmark.read_grid`
        output: folder for all; a copy of the grid, ``DETECTOR/METHOD/noise_N/seed_S/result.json``
        settings: how

    Returns:
        the cells that failed, now or earlier, and those that were stopped; and why, in a line

    Raises:
        ValueError: a bad config, a data set that lacks a file, or a finished cell's config has
            changed
    """
    output = Path(output)
    cells = plan(grid, output)
    by_state = {s: [c for c in cells if c.state == s] for s in STATES}
    if by_state["changed"] and not settings.rerun_changed:
        _refuse(by_state["changed"])
    waiting, failed = [*by_state["open"], *by_state["changed"]], []
    if settings.retry_failed:
        waiting += by_state["failed"]
    else:
        failed = [(cell, _explain_failure(cell.folder)) for cell in by_state["failed"]]
    if settings.executor != "slurm":  # there the data may be on the nodes only
        _check_rows(waiting)
    for cell in by_state["changed"]:
        # Now, so that no table shows old results as those of the new config.
        (cell.folder / RESULT).unlink()
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / GRID_FILE, grid.text)
    if waiting:
        with (
            _pool(waiting, output, settings) as pool,
            _Progress(waiting, by_state["finished"]) as progress,
        ):
            failed += _run(waiting, settings, pool, progress)
    return failed


def _refuse(changed: list[PlannedCell]) -> NoReturn:
    first = changed[0]
    raise ValueError(
        f"{len(changed)} finished cells have another config now, first {first.cell} in "
        f"{first.folder}: {explain_change(first)}. Train them again with --rerun-changed, or give "
        "another --output"
    )


def _check_rows(cells: Iterable[PlannedCell]) -> None:
    """One cell of every row, so that a missing data set or device is said once and at once."""
    rows: dict[Method, PlannedCell] = {}
    for cell in cells:
        rows.setdefault(cell.cell.method, cell)
    for method, cell in rows.items():
        try:
            setup_cfg(cell.config_file, [*cell.cell.opts, "OUTPUT_DIR", str(cell.folder)])
        except (ValueError, OSError) as error:
            raise ValueError(f"{method}: {error}") from error


def _pool(
    cells: list[PlannedCell], output: Path, settings: RunSettings
) -> ProcessPool | SubmititPool:
    if settings.executor is None:
        return ProcessPool(settings.num_jobs or 1, settings.num_gpus)
    on_gpu = any(_on_gpu(cell) for cell in cells)
    gpus = settings.num_gpus if on_gpu else 0
    folder = output / "submitit"
    return SubmititPool(settings.executor, folder, settings.num_jobs, gpus, settings.cluster)


def _run(
    waiting: list[PlannedCell],
    settings: RunSettings,
    pool: ProcessPool | SubmititPool,
    progress: "_Progress",
) -> list[tuple[PlannedCell, str]]:
    failed = []
    for cell in waiting:
        (cell.folder / FAILED).unlink(missing_ok=True)
    running: dict[Any, PlannedCell] = dict(
        zip(pool.submit([_job(cell, settings) for cell in waiting]), waiting)
    )
    while running:
        time.sleep(1)
        for handle in [handle for handle in running if handle.done()]:
            cell = running.pop(handle)
            why = _settle(cell, pool, handle)
            if why:
                failed.append((cell, why))
            progress.settled(cell, why)
        progress.update()
    return failed


def _job(cell: PlannedCell, settings: RunSettings) -> CellJob:
    threads = settings.threads
    if threads is None and not _on_gpu(cell):
        threads = 1
    args = ("--keep", settings.keep, *cell.args)
    return CellJob(cell.folder, args, settings.num_gpus, threads)


def _on_gpu(cell: PlannedCell) -> bool:
    return cell.cfg.MODEL.DEVICE.startswith("cuda")


def _settle(cell: PlannedCell, pool: ProcessPool | SubmititPool, handle: Any) -> str:
    """Note how a cell ended; why, if not well."""
    code: int | str
    try:
        code = pool.exit_code(handle)
    except Exception as error:  # the executor lost it
        code = f"{type(error).__name__}: {error}"
    if code == 0 and (cell.folder / RESULT).is_file():
        return ""
    if code == STOPPED:
        return "stopped by SIGTERM after a checkpoint; the same command goes on"
    write_json(cell.folder / FAILED, {"exit_code": code})
    return _explain_failure(cell.folder)


def _explain_failure(folder: Path) -> str:
    """Why a cell failed, in one line: the last that it said, or what ended it."""
    code = json.loads((folder / FAILED).read_text())["exit_code"]
    if isinstance(code, str):
        return code
    if code < 0:
        return f"killed by signal {-code}"
    lines = (folder / CELL_LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1].strip()


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

    def settled(self, cell: PlannedCell, why: str) -> None:
        """Note that a cell has ended; ``why`` it did not end well, if so."""
        self._open.remove(cell)
        self._done += cell.cfg.SOLVER.MAX_ITER
        self._settled += 1
        result = None if why else read_result(cell.folder)
        if result is None:
            said = f"FAILED, see {cell.folder / CELL_LOG}: {why}"
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
