"""How far a training is, seen from another process."""

import json
import os
from pathlib import Path

__all__ = ["iterations_done"]


def iterations_done(output: str | os.PathLike, since: float = 0.0) -> int:
    """The iterations that a run has written to its metrics file.

    Args:
        output: the run's ``OUTPUT_DIR``
        since: seconds since the epoch; a file last written before belongs to an older run

    Returns:
        their number, 0 before the first; detectron2 writes every 20 iterations
    """
    path = Path(output) / "metrics.json"
    try:
        if path.stat().st_mtime < since:
            return 0
        return int(json.loads(path.read_text().splitlines()[-1])["iteration"]) + 1
    except (OSError, ValueError, IndexError):  # not there yet, or caught in the middle of a write
        return 0
