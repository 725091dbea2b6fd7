"""Runs as processes, on this machine; :mod:`.cluster` has the same through submitit.

Both pools have ``submit(jobs)``, whose handles have ``done()``, ``exit_code(handle)`` and
``stop()``.
"""

import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .state import RUN_LOG

__all__ = ["ProcessPool", "RunJob", "rank_args"]

RUN = ("-m", f"{__package__}.run")


def rank_args(num_gpus: int, machines: Sequence[str] = ()) -> list[str]:
    """The arguments of ``tools/train_net.py`` that say how many processes train.

    ``machines`` are those that say which of several machines this is.
    """
    if not machines and num_gpus > 1:
        # detectron2's default address is one for all trainings of a user.
        machines = ["--dist-url", "auto"]
    return ["--num-gpus", str(num_gpus), *machines]


@dataclass(frozen=True)
class RunJob:
    """The process of one run; what it prints is added to ``run.log`` in its folder.

    Attributes:
        args: of the run, but for the number of processes
        num_gpus: on each machine
        threads: of each process; None leaves that to the environment
    """

    folder: Path
    args: tuple[str, ...]
    num_gpus: int = 1
    threads: int | None = None

    @contextlib.contextmanager
    def start(
        self, env: Mapping[str, str] | None = None, machines: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen]:
        """The started process; leaving the context tells it to end, and waits for it.

        Args:
            env: additions to the environment
            machines: for :func:`rank_args`
        """
        command = [sys.executable, *RUN, *rank_args(self.num_gpus, machines), *self.args]
        # Unbuffered: what a killed run printed last is in its log.
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        if self.threads is not None:
            env["OMP_NUM_THREADS"] = str(self.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / RUN_LOG, "a") as log:
            print(f"$ {shlex.join(command)}", file=log, flush=True)
            with subprocess.Popen(
                command,
                # Nobody writes to this pipe: it closes, and the run ends, when this process does.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                # Ctrl-C is for the sweep; its runs end with it and do not count as failed.
                start_new_session=True,
            ) as process:
                yield process


class ProcessPool(contextlib.AbstractContextManager):
    """Up to ``num_jobs`` runs at once on this machine; leaving its context kills them all.

    Each run gets ``num_gpus`` of the machine's GPUs for itself; ValueError where they are too few.
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
        """Of a job that is done, negative after a signal; raises what kept it from starting."""
        return handle.result()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the runs by a signal, SIGTERM so with a checkpoint, and start no more."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._running:
            process.send_signal(number)  # does nothing where it has ended
        self._threads.shutdown()

    def _run(self, job: RunJob) -> int:
        slot = self._slots.get()
        try:
            with job.start(slot) as process:
                self._running.append(process)
                if self._closed:  # between the two, by another thread
                    process.kill()
                return process.wait()
        finally:
            self._slots.put(slot)

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


def _gpu_slots(num_jobs: int, num_gpus: int) -> list[dict[str, str]]:
    """What each of the runs that are trained at once adds to the environment."""
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
