"""Trainings as processes, on this machine; :mod:`.cluster` has the same through submitit.

Both pools have ``submit(jobs)``, whose handles have ``done()``, ``exit_code(handle)`` and
``stop()``.
"""

import os
import queue
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .state import RUN_LOG

__all__ = ["RunJob", "ProcessPool", "rank_args"]

RUN = ("-m", f"{__package__}.run")


def rank_args(num_gpus: int, machines: Sequence[str] = ()) -> list[str]:
    """The arguments of ``tools/train_net.py`` that say how many processes train.

    Args:
        num_gpus: on each machine
        machines: those that say which of several machines this is
    """
    if not machines and num_gpus > 1:
        # detectron2's default address is one for all trainings of a user.
        machines = ["--dist-url", "auto"]
    return ["--num-gpus", str(num_gpus), *machines]


@dataclass(frozen=True)
class RunJob:
    """The process of one run.

    Attributes:
        folder: of the run; what it prints is added to ``run.log`` there
        args: of the run, but for the number of processes
        num_gpus: on each machine
        threads: of one process on a CPU; None leaves that to the environment
    """

    folder: Path
    args: tuple[str, ...]
    num_gpus: int = 1
    threads: int | None = None

    def __call__(
        self,
        env: dict[str, str] | None = None,
        machines: Sequence[str] = (),
        on_start: Callable[[subprocess.Popen], Any] = lambda process: None,
    ) -> int:
        """Run it to its end.

        Args:
            env: additions to the environment
            machines: arguments that say which of several machines this is
            on_start: is given the process

        Returns:
            its exit code, negative after a signal
        """
        command = [sys.executable, *RUN, *rank_args(self.num_gpus, machines), *self.args]
        # Unbuffered: what a killed run said last is in its log.
        own = {"PYTHONUNBUFFERED": "1"}
        if self.threads is not None:
            own["OMP_NUM_THREADS"] = str(self.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / RUN_LOG, "a") as log:
            print(f"$ {shlex.join(command)}", file=log, flush=True)
            process = subprocess.Popen(
                command,
                # Nobody writes to this pipe: it closes, and the run ends, when this process does.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own, **(env or {})},
                # Ctrl-C is for the grid; its runs end with it and do not count as failed.
                start_new_session=True,
            )
            with process:  # closes the pipe in the end
                on_start(process)
                return process.wait()


class ProcessPool:
    """Up to ``num_jobs`` runs at once on this machine; leaving its context ends them all.

    Args:
        num_jobs: runs at once
        num_gpus: of each run; on a machine with GPUs every run gets its own; 0 for a CPU

    Raises:
        ValueError: there are GPUs, but too few
    """

    def __init__(self, num_jobs: int, num_gpus: int):
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for slot in _gpu_slots(num_jobs, num_gpus):
            self._slots.put(slot)
        self._running: list[subprocess.Popen] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(num_jobs)

    def submit(self, jobs: Sequence[RunJob]) -> "list[Future[int]]":
        """Queue jobs."""
        return [self._threads.submit(self._run, job) for job in jobs]

    def exit_code(self, handle: "Future[int]") -> int:
        """Of a job that is done; raises what kept it from starting."""
        return handle.result()

    def stop(self) -> None:
        """End the runs that run by SIGTERM, so with a checkpoint, and start no more."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.terminate()  # does nothing where it has ended
        self._threads.shutdown()

    def _run(self, job: RunJob) -> int:
        slot = self._slots.get()
        try:
            return job(slot, on_start=self._started)
        finally:
            self._slots.put(slot)

    def _started(self, process: subprocess.Popen) -> None:
        self._running.append(process)
        if self._closed:  # between the two, by another thread
            process.kill()

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.kill()  # does nothing where it has ended
        self._threads.shutdown()


def _gpu_slots(num_jobs: int, num_gpus: int) -> list[dict[str, str]]:
    """What each of the runs that run at once adds to the environment."""
    available, needed = torch.cuda.device_count(), num_jobs * num_gpus
    if available == 0 or num_gpus == 0 or num_jobs == 1:
        return [{}] * num_jobs
    if available < needed:
        raise ValueError(
            f"{num_jobs} runs at once on {num_gpus} GPUs each need {needed}, but torch sees "
            f"{available}; lower --jobs or --num-gpus"
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(available)))).split(",")
    starts = range(0, needed, num_gpus)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[i : i + num_gpus])} for i in starts]
