"""Processes that pay for no imports: a server, started once, has them and forks for each."""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import IO
from unittest.mock import patch

import torch

from helpers import REPO

# Not sl_detectron: it registers datasets by the environment, which each process has its own of.
IMPORTS = ["detectron2.engine", "detectron2.model_zoo", "detectron2.evaluation"]
IMPORTS += ["torch.utils.tensorboard", "scipy.optimize"]
# A process that has asked for GPUs cannot be forked and use them.
METHOD = "spawn" if torch.cuda.is_available() else "forkserver"
CONTEXT = multiprocessing.get_context(METHOD)
multiprocessing.set_forkserver_preload(IMPORTS)
# Before a test changes it: the server takes it over for all that come later.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start_server() -> None:
    """Start the server unless it runs, or has forked this process: then it forks for it too."""
    if METHOD == "spawn" or multiprocessing.forkserver.get_inherited_fds() is not None:
        return
    with patch.dict(os.environ, ENVIRONMENT, clear=True):
        multiprocessing.forkserver.ensure_running()


@contextmanager
def forked_ranks(torn_down: bool = False) -> Iterator[None]:
    """The server forks the ranks of detectron2's ``launch``, which are new interpreters else.

    Args:
        torn_down: whether the interpreter of a rank that ends is torn down, as that of a new one
            is; what is forked ends without
    """
    start_server()
    start_all = torch.multiprocessing.start_processes

    def start(rank: Callable, *args: object, **kwargs: object) -> object:
        if "start_method" in kwargs:
            return start_all(rank, *args, **kwargs)
        with Streams(1, 2) as streams:
            place = sys.argv, {**os.environ}, os.getcwd()
            rank = partial(_run_rank, rank, place, streams, torn_down)
            return start_all(rank, *args, **kwargs, start_method=METHOD)

    with patch.object(torch.multiprocessing, "start_processes", start):
        yield


class ForPools(type(CONTEXT)):
    """A context for ``ProcessPoolExecutor``: processes have the environment of their parent."""

    def Process(self, target: Callable, args: tuple) -> multiprocessing.Process:
        start_server()
        place = sys.argv, {**os.environ}, os.getcwd()
        what = target, place, Streams(), False, *args
        return CONTEXT.Process(target=_run_rank, args=what)


class Streams(list):
    """Copies of open files that can be sent to a process."""

    def __init__(self, *numbers: int):
        super().__init__(Connection(os.dup(number)) for number in numbers)

    def take_over(self, first: int) -> None:
        """Make them those of this process from a number on."""
        for number, stream in enumerate(self, start=first):
            os.dup2(stream.fileno(), number)

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self:
            stream.close()


class Program:
    """As much of ``subprocess.Popen`` as tests use, for a Python file.

    Args:
        path: the file
        args: its arguments
        env: its environment
        joins: whether what it writes to stderr goes to stdout, as with ``stderr=STDOUT``
        folder: where it is run
        forks_runs: whether the runs of its sweeps are forked too, as by :func:`forked_runs`
    """

    def __init__(
        self,
        path: str | Path,
        args: list[str],
        env: dict[str, str],
        joins: bool = False,
        folder: Path = REPO,
        forks_runs: bool = False,
    ):
        self._output = tempfile.TemporaryDirectory()
        self._files = [Path(self._output.name, name) for name in ("out", "out" if joins else "err")]
        start_server()
        what = str(path), args, env, folder, self._files, forks_runs
        self._process = CONTEXT.Process(target=_run, args=what)
        self._process.start()
        self.pid = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill
        # A test that failed leaves none running, for which the end of the tests would wait.
        atexit.register(self.kill)

    @property
    def returncode(self) -> int | None:
        """Of the process once it has ended; below 0 is a signal that killed it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """What was written to stdout and stderr until its end."""
        self._process.join()
        atexit.unregister(self.kill)
        out, err = (path.read_text() if path.exists() else "" for path in self._files)
        return out, "" if self._files[0] == self._files[1] else err


class Run:
    """As much of ``subprocess.Popen`` as a sweep uses for ``python -m MODULE ARGUMENTS``."""

    def __init__(self, command: list[str], *, stdout: IO, env: dict[str, str], **pipes: object):
        expected = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
        assert pipes == {**expected, "start_new_session": True}
        _, flag, module, *args = command
        assert flag == "-m"
        start_server()
        stdin, self._stdin = CONTEXT.Pipe(duplex=False)
        with stdin, Streams(stdin.fileno(), stdout.fileno(), stdout.fileno()) as streams:
            what = sys.executable, module, args, env, os.getcwd(), streams
            self._process = CONTEXT.Process(target=run_module, args=what)
            self._process.start()
        self.pid = self._process.pid

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._stdin.close()
        self.wait()


@contextmanager
def forked_runs() -> Iterator[None]:
    """The server forks the runs of the sweeps of this process, which are new interpreters else."""
    from sl_detectron.sweep import jobs

    stand_in = SimpleNamespace(Popen=Run, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    with nullcontext() if METHOD == "spawn" else patch.object(jobs, "subprocess", stand_in):
        yield


def _run(
    path: str,
    args: list[str],
    env: dict[str, str],
    folder: Path,
    files: list[Path],
    forks_runs: bool,
) -> None:
    for number, file in enumerate(files, start=1):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    _become([path, *args], env, folder)
    sys.path.insert(0, os.path.dirname(path))
    with forked_ranks(), forked_runs() if forks_runs else nullcontext():
        runpy.run_path(path, run_name="__main__")


def _run_rank(
    rank: Callable,
    place: tuple[list[str], dict[str, str], str],
    streams: Streams,
    torn_down: bool,
    *args: object,
) -> None:
    streams.take_over(1)
    _become(*place)
    if not torn_down:
        rank(*args)
        return
    try:
        rank(*args)
        code = 0
    except SystemExit as end:
        code = end.code
    ctypes.pythonapi.Py_Exit(code)


def run_module(
    executable: str,
    module: str,
    args: list[str],
    env: dict[str, str],
    folder: str,
    streams: Streams,
) -> None:
    """``python -m MODULE ARGS``, in this process.

    Args:
        executable, module, args: what is started, by the path of which program
        env, folder: where
        streams: its standard input, output and error
    """
    streams.take_over(0)
    sys.stdin = os.fdopen(0, closefd=False)  # that of the start reads from nothing
    sys.executable = executable
    os.setsid()
    _become([module, *args], env, folder)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS") or os.cpu_count()))
    with forked_ranks():
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _become(argv: list[str], env: dict[str, str], folder: str | Path) -> None:
    """Take over arguments, environment and folder."""
    if METHOD == "forkserver":
        # Else this process would start a server that it could fork from, with all imports.
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = argv
