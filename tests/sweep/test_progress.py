"""The bar over all runs of a sweep."""

import os
import time

from helpers.grid_cases import write_tiny_grid
from sl_detectron.sweep import read_grid
from sl_detectron.sweep.plan import plan
from sl_detectron.sweep.progress import Progress, Unfinished


def test_time_left_does_not_count_what_an_earlier_run_did(tmp_path):
    """A run half done and one that fails: neither is speed of this run."""
    grid_file = write_tiny_grid(tmp_path / "grid.yaml", tmp_path, 100)
    half, other = plan(read_grid(grid_file), tmp_path)
    for run in (half, other):
        run.folder.mkdir(parents=True)
    metrics = half.folder / "metrics.json"
    metrics.write_text('{"iteration": 59}\n')
    (half.folder / "last_checkpoint").write_text("model_0000059.pth")
    with Progress([half, other], []) as progress:
        metrics.write_text('{"iteration": 59}\n{"iteration": 79}\n')
        os.utime(metrics, (time.time() + 1, time.time() + 1))
        progress.update()
        assert progress._bar.n == 80
        assert progress._bar.n - progress._bar.initial == 20
        progress.settled(other, Unfinished(other, "failed", "wrong"))
        progress.update()
        assert (progress._bar.n, progress._bar.total) == (80, 100)
