"""The work of ``tools/benchmark_scale.py``: jobs at several sizes, and their table."""

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import write_text
from .scale_figures import Figures
from .scale_jobs import JOBS

__all__ = ["PLAN", "run_scale", "with_table"]

# {job: (classes, sizes)}: minutes on two cores. LVIS has 1.27 million annotations.
PLAN: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "statistics": ((20, 80, 365, 1203), (100_000, 10_000_000)),
    "loader": ((80,), (100_000, 5_000_000)),
    "stock loader": ((80,), (100_000, 1_000_000)),
    "audit": ((1203,), (100_000, 1_270_000)),
    "ranks": ((1203,), (100_000, 1_270_000)),
    # Of detections.
    "evaluation": ((365,), (100_000, 5_000_000)),
    "COCO evaluation": ((365,), (100_000, 1_000_000)),
    # Of rounds.
    "toy steps": ((10,), (40,)),
    "steps": ((80,), (10,)),
}
BEGIN, END = "<!-- measured tables -->", "<!-- end -->"


def run_scale(
    jobs: Sequence[str], sizes: Sequence[int], output: Path | None, say: Callable[[str], None]
) -> None:
    """Run jobs one after the other, each in a fresh process; print tables and keep them.

    Args:
        jobs: keys of :data:`PLAN`; none for all
        sizes: numbers of annotations; none for those of the plan
        output: a page that has the marks between which the tables come; None for no page
        say: takes lines

    Raises:
        ValueError: an unknown job, a size below 1, or a page without marks
    """
    unknown = sorted({*jobs} - {*PLAN})
    if unknown:
        raise ValueError(f"there is no job {unknown[0]!r}; the jobs are {[*PLAN]}")
    if any(size < 1 for size in sizes):
        raise ValueError(f"a size must be at least 1; got {min(sizes)}")
    if output is not None:
        with_table(output.read_text(encoding="utf-8"), "", output)
    tables = []
    for job in jobs or PLAN:
        for num_classes in PLAN[job][0]:
            columns = sorted(sizes or PLAN[job][1])
            found = [_in_fresh_process(job, size, num_classes) for size in columns]
            tables.append(_table(job, num_classes, columns, found))
            say(tables[-1] + "\n")
    if output is not None:
        text = output.read_text(encoding="utf-8")
        write_text(output, with_table(text, "\n\n".join(tables), output))


def with_table(page: str, table: str, path: Path) -> str:
    """The page with a table between its marks.

    Raises:
        ValueError: it has no marks
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r} for the tables")
    return f"{head}{begin}\n\n{table}\n\n{end}{tail}"


def _in_fresh_process(job: str, size: int, num_classes: int) -> Figures:
    """Of which the peak memory is that of the job."""
    context = multiprocessing.get_context("spawn")
    # Logs of trainers and datasets would hide the tables.
    quiet: dict[str, Any] = {"initializer": logging.disable, "initargs": (logging.WARNING,)}
    with ProcessPoolExecutor(1, mp_context=context, **quiet) as pool:
        return pool.submit(JOBS[job], size, num_classes).result()


def _table(job: str, num_classes: int, sizes: Sequence[int], found: Sequence[Figures]) -> str:
    """Rows of figures by size; the last column compares the costs of an annotation."""
    rows = []
    for name, (_, unit) in found[-1].items():
        values = [figures[name][0] for figures in found]
        grows = unit in ("s", "MB") and len(sizes) > 1 and values[0] > 0
        ratio = values[-1] / sizes[-1] / (values[0] / sizes[0]) if grows else None
        shown = [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in values]
        rows.append([name, unit, *shown, "" if ratio is None else f"{ratio:.2f}"])
    headers = [f"{job}, {num_classes:,} classes", "", *(f"{size:,}" for size in sizes)]
    return tabulate(
        rows, [*headers, "an annotation, last / first"], "github", disable_numparse=True
    )
