"""How far a sweep is, and how its runs end, written to stderr."""

import json
import sys
from contextlib import AbstractContextManager
from typing import NamedTuple

from tqdm import tqdm

from ..engine.launch import iterations_done, metrics_stamp
from .plan import PlannedRun
from .state import RESULT, RUN_LOG, has_checkpoint

__all__ = ["Progress", "Unfinished"]


class Unfinished(NamedTuple):
    """A run without a result, and why in one line.

    It "failed", or was "stopped" by SIGTERM, and the same command goes on.
    """

    run: PlannedRun
    state: str
    why: str


class Progress(AbstractContextManager["Progress"]):
    """Iterations over all runs, as a bar on a terminal and as lines in a file."""

    def __init__(self, waiting: list[PlannedRun], finished: list[PlannedRun]):
        self._stamps = {run.folder: metrics_stamp(run.folder) for run in waiting}
        self._open = list(waiting)
        self._settled, self._total = len(finished), len(waiting) + len(finished)
        self._done = sum(run.cfg.SOLVER.MAX_ITER for run in finished)
        # Of half-done runs; the time left is reckoned from what is added to it.
        self._before = {
            run.folder: iterations_done(run.folder)
            for run in waiting
            if run.state != "changed" and has_checkpoint(run.folder)
        }
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self._done + sum(run.cfg.SOLVER.MAX_ITER for run in waiting),
            initial=self._done + sum(self._before.values()),
            unit="it",
            dynamic_ncols=terminal,
            file=sys.stderr if terminal else _Lines(),
            mininterval=1 if terminal else 60,
        )

    def settled(self, run: PlannedRun, end: Unfinished | None) -> None:
        """Note that a run has ended, and how if without a result."""
        self._open.remove(run)
        self._settled += 1
        planned = run.cfg.SOLVER.MAX_ITER
        done = planned if end is None else self._iterations(run)
        if end is None:
            result = json.loads((run.folder / RESULT).read_text())
            message = f"AP50 {result['metrics']['AP50']:.1f}, {result['seconds']:.0f} s"
        elif end.state == "failed":
            message = f"FAILED, see {run.folder / RUN_LOG}: {end.why}"
            self._bar.total -= planned - done  # what is left of a stopped run is for the next start
        else:
            message = f"stopped {end.why}"
        self._done += done
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"[{self._settled}/{self._total}] {run.run}: {message}", file=sys.stderr)

    def update(self) -> None:
        """Read how far the started runs are."""
        # A run that starts anew takes back what it had done.
        self._bar.update(self._done + sum(map(self._iterations, self._open)) - self._bar.n)

    def _iterations(self, run: PlannedRun) -> int:
        done = iterations_done(run.folder, self._stamps[run.folder])
        return done or self._before.get(run.folder, 0)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


class _Lines:
    """Stderr where a bar does not overwrite itself, but adds lines."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
