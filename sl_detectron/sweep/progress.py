"""How far a grid is, and how its runs end, said on stderr."""

import json
import sys
import time
from typing import NamedTuple, TextIO

from tqdm import tqdm

from ..engine.progress import iterations_done
from .plan import PlannedRun
from .state import RESULT, RUN_LOG

__all__ = ["Progress", "Unfinished"]


class Unfinished(NamedTuple):
    """A run without a result.

    Attributes:
        run: which
        state: "failed", or "stopped": by SIGTERM, and the same command goes on
        why: in one line
    """

    run: PlannedRun
    state: str
    why: str


class Progress:
    """Iterations over all runs, as a bar on a terminal and as lines in a file.

    Args:
        waiting: the runs that are to be trained
        finished: those that are already
    """

    def __init__(self, waiting: list[PlannedRun], finished: list[PlannedRun]):
        self._open = list(waiting)
        self._done = sum(run.cfg.SOLVER.MAX_ITER for run in finished)
        self._settled, self._total = len(finished), len(waiting) + len(finished)
        self._started = time.time()
        # What earlier runs did of half-done runs; time left is reckoned from what this one does.
        self._before = {
            id(run): iterations_done(run.folder)
            for run in waiting
            if (run.folder / "last_checkpoint").is_file()
        }
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self._done + sum(run.cfg.SOLVER.MAX_ITER for run in waiting),
            initial=self._done,
            unit="it",
            dynamic_ncols=terminal,
            file=sys.stderr if terminal else _Lines(sys.stderr),
            mininterval=1 if terminal else 60,
        )

    def settled(self, run: PlannedRun, end: Unfinished | None) -> None:
        """Note that a run has ended, and how if without a result."""
        self._open.remove(run)
        self._settled += 1
        if end is None:
            result = json.loads((run.folder / RESULT).read_text())
            said = f"AP50 {result['metrics']['AP50']:.1f}, {result['seconds']:.0f} s"
        elif end.state == "failed":
            said = f"FAILED, see {run.folder / RUN_LOG}: {end.why}"
        else:
            said = f"stopped {end.why}"
        # What is left of a stopped run is for the next start; of a failed one nothing is left.
        planned = run.cfg.SOLVER.MAX_ITER
        done = planned if end is None else self._iterations(run)
        if end is not None and end.state == "failed":
            self._bar.total -= planned - done
        self._done += done
        with tqdm.external_write_mode(file=sys.stderr):
            print(f"[{self._settled}/{self._total}] {run.run}: {said}", file=sys.stderr)

    def update(self) -> None:
        """Look how far the runs are that run."""
        running = sum(map(self._iterations, self._open))
        # A run that starts anew takes back what it had done.
        self._bar.update(self._done + running - self._bar.n)

    def _iterations(self, run: PlannedRun) -> int:
        done = iterations_done(run.folder, self._started)
        before = self._before.get(id(run), 0)
        if before and done:
            # It is under way: no leap of the bar, which would promise too early an end.
            leap = min(done, self._before.pop(id(run)))
            self._bar.initial += leap
            self._bar.n += leap
            self._bar.last_print_n += leap
        return done

    def __enter__(self) -> "Progress":
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
