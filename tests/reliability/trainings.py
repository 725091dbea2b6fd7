"""Trainings in processes of their own, which can be killed."""

import subprocess
import sys
import time
from pathlib import Path

from conftest import REPO

DRIVER = Path(__file__).parent / "driver.py"
RETINANET, FASTER_RCNN = "Toy/retinanet_superloss.yaml", "Toy/faster_rcnn_superloss.yaml"


def start(env, config, output, *opts, resume=False, **driver):
    """A training in a process of its own; ``driver``: what driver.py does to it."""
    words = [f"{key}={value}" for key, value in driver.items()]
    command = [sys.executable, str(DRIVER), *words, "--config-file", config]
    command += ["--resume"] if resume else []
    return subprocess.Popen(
        [*command, "OUTPUT_DIR", str(output), *map(str, opts)],
        env=env,
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*args, **kwargs):
    process = start(*args, **kwargs)
    printed, _ = process.communicate()
    return process.returncode, printed


def wait_for_iteration(process, output, iteration):
    file = output / "curve.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) <= iteration:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
