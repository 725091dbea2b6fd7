"""The bar over all runs of a sweep."""

import os

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
        progress.update()
        assert progress._bar.n == 80
        assert progress._bar.n - progress._bar.initial == 20
        progress.settled(other, Unfinished(other, "failed", "wrong"))
        progress.update()
        assert (progress._bar.n, progress._bar.total) == (80, 100)


def test_the_clock_of_the_file_system_may_lag(tmp_path):
    """What a run has written since the start counts, whatever time the file got."""
    (run, _) = plan(read_grid(write_tiny_grid(tmp_path / "grid.yaml", tmp_path, 100)), tmp_path)
    run.folder.mkdir(parents=True)
    metrics = run.folder / "metrics.json"
    metrics.write_text('{"iteration": 59}\n')
    with Progress([run], []) as progress:
        progress.update()
        assert progress._bar.n == 0  # an older run's, without a checkpoint
        metrics.write_text('{"iteration": 19}\n')
        os.utime(metrics, (0, 0))
        progress.update()
        assert progress._bar.n == 20
