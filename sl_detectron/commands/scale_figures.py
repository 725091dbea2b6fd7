"""Seconds and memory of a process, as Linux counts them.

Seconds are those of the processor, unless a figure says otherwise; memory is above what the process
had before.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["MB", "Figures", "measured", "own_bytes", "peak_bytes", "status_bytes"]

# {what: (value, unit)}
Figures = dict[str, tuple[float, str]]
MB = 2.0**20


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    return status_bytes("self", "VmHWM")


def status_bytes(process: str, key: str, file: str = "status") -> int:
    """Bytes that Linux says about a process."""
    try:
        lines = Path("/proc", process, file).read_text().splitlines()
        return 1024 * sum(int(x.split()[1]) for x in lines if x.startswith(f"{key}:"))
    except FileNotFoundError as error:
        raise ValueError(f"memory is measured on Linux only: {error}") from error


def own_bytes(pid: int | None) -> int:
    """Memory of a process that it shares with no other."""
    keys = ("Private_Clean", "Private_Dirty")
    return sum(status_bytes(str(pid), key, "smaps_rollup") for key in keys)


@contextmanager
def measured(figures: Figures, name: str) -> Iterator[None]:
    """Add the seconds that a block takes on the processor."""
    start = time.process_time()
    yield
    figures[name] = (time.process_time() - start, "s")
