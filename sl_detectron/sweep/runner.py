"""Train the runs of a grid that are not trained yet, and report how far it is."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..engine.resume import STOPPED
from ..engine.setup import check_cfg
from ..files import write_text
from .cluster import SubmititPool
from .grid import Grid
from .jobs import ProcessPool
from .plan import PlannedRun, explain_change, plan, shared_first_rounds
from .progress import Progress, Unfinished
from .state import FAILED, GRID_FILE, OPTIONS_FILE, RESULT, RUN_LOG, write_json

__all__ = ["run_grid"]


def run_grid(
    grid: Grid,
    output: str | os.PathLike,
    *,
    num_jobs: int | None = None,
    num_gpus: int = 1,
    threads: int | None = None,
    retry_failed: bool = False,
    rerun_changed: bool = False,
    keep: str = "final",
    executor: str | None = None,
    cluster: Sequence[str] = (),
    imports: Sequence[str] = (),
) -> list[Unfinished]:
    """Train what is missing of a grid. Killed at any moment, the same call goes on.

    Args:
        grid: from :func:`~sl_detectron.sweep.read_grid`
        output: folder for all; a copy of the grid, ``DETECTOR/METHOD/noise_N/seed_S/result.json``
        num_jobs: runs at once; None: one on this machine, all on Slurm
        num_gpus: of each run on each machine, as in ``tools/train_net.py``
        threads: of each process; None: one on a CPU, the environment's choice on a GPU
        retry_failed: whether runs that failed earlier are trained again
        rerun_changed: whether runs that finished with another config are trained again
        keep: which checkpoints stay when a run is finished: "all", "final" or "none"
        executor: None for processes of this one; "slurm" or "local" for submitit
        cluster: submitit's parameters, each KEY=VALUE
        imports: modules that each run imports, as ``--import`` of the tools; this process has to

    Returns:
        the runs that failed, now or earlier, and those that were stopped

    Raises:
        ValueError: a bad config, a dataset that lacks a file, an argument without effect, the
            config of a finished or half-done run has changed, or ``output`` has finished runs of
            another grid
        SystemExit: with 143 after SIGTERM, 130 after Ctrl-C; runs on this machine have checkpoints
    """
    if cluster and executor is None:
        raise ValueError("--slurm needs --executor slurm; without it runs start on this machine")
    if num_jobs is not None and executor == "local":
        raise ValueError(
            "--executor local starts all runs at once; drop --jobs or --executor local"
        )
    output = Path(output)
    runs = plan(grid, output)
    waiting, unfinished = _choose(runs, retry_failed, rerun_changed)
    _refuse_another_grid(runs, output)
    if executor != "slurm":  # there the data may be on the nodes only
        _check_methods(waiting)
    gpus = num_gpus if any(run.on_gpu for run in waiting) else 0
    # Before anything is removed or written: it may be refused, as where there is no Slurm.
    pool: ProcessPool | SubmititPool | None = None
    if waiting and executor:
        pool = SubmititPool(executor, output / "submitit", num_jobs, gpus, cluster)
    elif waiting:
        pool = ProcessPool(num_jobs or 1, gpus)
    for run in waiting:
        (run.folder / FAILED).unlink(missing_ok=True)
        if run.state == "changed":
            # Now, so that no table shows old results as those of the new config.
            (run.folder / RESULT).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / GRID_FILE, grid.text)
    write_text(output / OPTIONS_FILE, json.dumps({"opts": grid.opts, "scale": grid.scale}) + "\n")
    if pool is not None:
        pairs = _with_first_rounds(waiting)
        with pool, Progress(waiting, [run for run in runs if run.state == "finished"]) as progress:
            handles = pool.submit(
                [run.job(keep, num_gpus, threads, imports, first) for run, first in pairs]
            )
            unfinished += _train(dict(zip(handles, pairs)), pool, progress)
    return unfinished


def _with_first_rounds(waiting: list[PlannedRun]) -> list[tuple[PlannedRun, PlannedRun | None]]:
    """The runs to start, each with the run that it trains in passing."""
    shared = shared_first_rounds(waiting)
    passed = {run.folder for run in shared.values()}
    return [(run, shared.get(run.folder)) for run in waiting if run.folder not in passed]


def _choose(
    runs: list[PlannedRun], retry_failed: bool, rerun_changed: bool
) -> tuple[list[PlannedRun], list[Unfinished]]:
    """What is to be trained, and what failed and is left alone."""
    changed, failed, waiting = (
        [run for run in runs if run.state == state] for state in ("changed", "failed", "open")
    )
    if changed and not rerun_changed:
        raise ValueError(
            f"{len(changed)} finished or half-done runs have a different config now, first "
            f"{changed[0].run} in {changed[0].folder}: {explain_change(changed[0])}. Train them "
            "again with --rerun-changed, or give another --output"
        )
    waiting += changed
    if retry_failed:
        return waiting + failed, []
    return waiting, [Unfinished(run, "failed", _explain_failure(run.folder)) for run in failed]


def _refuse_another_grid(runs: list[PlannedRun], output: Path) -> None:
    """Finished runs that the grid does not have would vanish from the tables without a word."""
    # The depth of Run.folder.
    finished = {path.parent for path in output.glob(f"*/*/noise_*/seed_*/{RESULT}")}
    others = sorted(finished - {run.folder for run in runs})
    if others:
        raise ValueError(
            f"{output} has {len(others)} finished runs that are not in this grid, first "
            f"{others[0]}. Give another --output, or move them away"
        )


def _check_methods(runs: list[PlannedRun]) -> None:
    """One run of every method, so that a missing dataset or device is reported once and at once."""
    methods = {run.run.method: run for run in runs}
    for method, run in tqdm(methods.items(), "datasets", leave=False, unit="method", disable=None):
        try:
            check_cfg(run.cfg)
        except (ValueError, OSError) as error:
            raise ValueError(f"{method}: {error}") from error


def _train(
    running: dict[Any, tuple[PlannedRun, PlannedRun | None]],
    pool: ProcessPool | SubmititPool,
    progress: Progress,
) -> list[Unfinished]:
    """Wait for the runs by their handles in the pool; see :func:`_with_first_rounds`."""
    unfinished = []
    with _noting_signals() as signals:
        while running:
            time.sleep(1)
            if signals:
                pool.stop()
                name = signal.Signals(signals[0]).name
                print(f"Stopped by {name}; the same command goes on.", file=sys.stderr)
                raise SystemExit(128 + signals[0])  # as a shell would say it
            for handle in [handle for handle in running if handle.done()]:
                run, first = running.pop(handle)
                ends = [(run, _settle(run, pool, handle))]
                if first:
                    ends.append((first, _settle_first(first, *ends[0])))
                for ended, end in ends:
                    progress.settled(ended, end)
                    unfinished += [end] if end else []
            progress.update()
    return unfinished


@contextlib.contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """SIGTERM or Ctrl-C that came, for a loop to read; a second Ctrl-C acts at once."""
    signals: list[int] = []

    def note(number: int, frame: object) -> None:
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Python lets only the main thread handle signals.
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settle(run: PlannedRun, pool: ProcessPool | SubmititPool, handle: Any) -> Unfinished | None:
    """Note how a run ended, if it has no result."""
    try:
        code: int | str = pool.exit_code(handle)
    except Exception as error:  # the executor lost it
        code = f"{type(error).__name__}: {error}"
    if code == 0 and (run.folder / RESULT).is_file():
        return None
    # The second: before the first iteration, or in the evaluation, which starts anew.
    if code in (STOPPED, -signal.SIGTERM):
        return Unfinished(run, "stopped", "by SIGTERM; the same command goes on")
    write_json(run.folder / FAILED, {"exit_code": code})
    return Unfinished(run, "failed", _explain_failure(run.folder))


def _settle_first(first: PlannedRun, run: PlannedRun, end: Unfinished | None) -> Unfinished | None:
    """The same of the run that ``run``, which ended so, should have trained in passing."""
    if (first.folder / RESULT).is_file():
        return None
    return Unfinished(first, end.state if end else "stopped", f"as the first round of {run.run}")


def _explain_failure(folder: Path) -> str:
    """Why a run failed, in one line: the last that it printed, or what ended it."""
    try:
        code = json.loads((folder / FAILED).read_text())["exit_code"]
    except (ValueError, KeyError, TypeError):
        return f"{folder / FAILED} is damaged"
    if isinstance(code, str):
        return code
    if code < 0:
        return f"killed by signal {-code}"
    with contextlib.suppress(OSError, IndexError):
        return (folder / RUN_LOG).read_text(errors="replace").strip().splitlines()[-1].strip()
    return f"exit code {code}; {RUN_LOG} is gone or empty"
