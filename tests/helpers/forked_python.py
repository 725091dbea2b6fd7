"""A program that stands in for Python where somebody else's code starts it, without imports."""

import json
import os
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from helpers.forked import CONTEXT, METHOD, Streams, run_module, start_server

# ``python -m MODULE ARGS``: sends its words, environment, folder and streams, and ends as told.
# submitit knows its controller, which imports little, by the number of the process.
PYTHON = """
import json, os, socket, sys
if "submitit.local._local" in sys.argv:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))
    socket.send_fds(server, [b"-"], [0, 1, 2])
    with server.makefile("rw") as file:
        print(json.dumps([sys.argv, dict(os.environ), os.getcwd()]), file=file, flush=True)
        code = int(file.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


class _ForPython(socketserver.StreamRequestHandler):
    """One start of ``PYTHON``."""

    def handle(self) -> None:
        _, files, *_ = socket.recv_fds(self.request, 1, 3)
        words, env, folder = json.loads(self.rfile.readline())
        module, *args = words[words.index("-m") + 1 :]
        with Streams(*files) as streams:
            what = words[0], module, args, env, folder, streams
            process = CONTEXT.Process(target=run_module, args=what)
            process.start()
        for file in files:
            os.close(file)
        process.join()
        self.wfile.write(f"{process.exitcode}\n".encode())


@contextmanager
def forked_python() -> Iterator[None]:
    """``sys.executable`` is a program for which the server forks, here and in what it runs.

    For code that starts ``python -m MODULE`` by itself. Signals do not reach what is run.
    """
    if METHOD == "spawn":
        yield
        return
    start_server()
    with (
        tempfile.TemporaryDirectory() as folder,
        socketserver.ThreadingUnixStreamServer(f"{folder}/socket", _ForPython) as server,
    ):
        path = Path(folder, "python")
        path.write_text(f"#!{sys.executable} -IS{PYTHON}")
        path.chmod(0o755)
        threading.Thread(target=server.serve_forever).start()
        try:
            with patch.object(sys, "executable", str(path)):
                yield
        finally:
            server.shutdown()
