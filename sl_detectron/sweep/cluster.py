"""Runs as jobs of a Slurm cluster, through submitit.

With ``nodes=2`` submitit starts one task on each node of a job, and each tells detectron2's
``launch`` which of the machines it is. The nodes must share the output folder, on a file system
that has ``flock``.
"""

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .jobs import RunJob

__all__ = ["SubmititPool"]

# What submitit calls the same on all clusters; any other parameter is one of Slurm.
COMMON = (
    *("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"),
    *("nodes", "tasks_per_node"),
)
DEFAULTS = {"name": "sl_detectron", "timeout_min": 3 * 24 * 60}
FIRST_PORT, NUM_PORTS = 20_000, 10_000
# The run of this process, where it is a job.
_started: list[subprocess.Popen] = []


class SubmititPool(contextlib.AbstractContextManager):
    """Runs as submitit jobs; leaving its context cancels those that have not ended.

    Jobs of Slurm outlive this process if it is killed; those of a restarted sweep wait for them.

    Args:
        cluster: "slurm", or "local" for processes on this machine
        folder: for submitit's own files
        num_jobs: runs at once on Slurm; None for no limit. "local" starts all at once
        num_gpus: to ask for on each node, unless ``parameters`` do
        parameters: submitit's, each ``KEY=VALUE``, without its prefix ``slurm_``

    Raises:
        ValueError: an unknown parameter, a bad value, or Slurm is not there
        ImportError: submitit is not installed
    """

    def __init__(
        self,
        cluster: str,
        folder: Path,
        num_jobs: int | None,
        num_gpus: int,
        parameters: Sequence[str],
    ):
        try:
            import submitit
        except ImportError as error:
            raise ImportError("--executor needs submitit: pip install submitit") from error
        # None is as good as absent.
        values = {**DEFAULTS, "gpus_per_node": num_gpus or None, "array_parallelism": num_jobs}
        values |= map(_parse, parameters)
        values["tasks_per_node"] = 1  # detectron2 starts the processes of a node
        named = {k if k in COMMON else f"slurm_{k}": v for k, v in values.items()}
        try:
            self._executor = submitit.AutoExecutor(folder, cluster=cluster)
            self._executor.update_parameters(**named)
        except (NameError, TypeError, AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(f"submitit: {' '.join(str(error).split())}") from error
        self._handles: list[Any] = []

    def submit(self, jobs: Sequence[RunJob]) -> list[Any]:
        """Submit jobs, on Slurm as one array."""
        with self._executor.batch():
            self._handles = [self._executor.submit(_NodeJob(job)) for job in jobs]
        return self._handles

    def exit_code(self, handle: Any) -> int:
        """The first of its nodes that is not 0; raises what made submitit lose the job."""
        return next((code for code in handle.results() if code != 0), 0)

    def stop(self) -> None:
        """Cancel what has not ended; the same sweep goes on from the last checkpoints."""
        for handle in self._handles:
            if not handle.done():
                handle.cancel()

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class _NodeJob:
    """What one node of a job runs."""

    job: RunJob

    def __call__(self) -> int:
        import submitit

        node = submitit.JobEnvironment()
        machines: list[str] = []
        if node.num_nodes > 1:
            port = FIRST_PORT + int(node.raw_job_id) % NUM_PORTS
            machines += ["--num-machines", str(node.num_nodes), "--machine-rank", str(node.node)]
            machines += ["--dist-url", f"tcp://{node.hostnames[0]}:{port}"]
        with self.job.start(machines=machines) as process:
            _started.append(process)
            return process.wait()

    def checkpoint(self) -> Any:
        """End the run with a checkpoint before the job's time is over; submitit queues it again."""
        from submitit.helpers import DelayedSubmission

        for process in _started:
            process.terminate()
            # Not wait(), in which the signal may have found this thread already.
            with contextlib.suppress(ChildProcessError):  # it has ended
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(self)


def _parse(parameter: str) -> tuple[str, Any]:
    key, equals, value = parameter.partition("=")
    if not key or not equals:
        raise ValueError(
            f"--slurm takes KEY=VALUE; got {parameter!r}. Config options KEY VALUE go last, after "
            "another option: --slurm partition=gpu --output DIR SOLVER.MAX_ITER 100"
        )
    return key, yaml.safe_load(value)
