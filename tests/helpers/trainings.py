"""Trainings in processes of their own, which can be killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from helpers import REPO
from helpers.forked import Program
from sl_detectron.data.toy import TOY_CLASS_NAMES

DRIVER = Path(__file__).with_name("driver.py")
RETINANET, FASTER_RCNN = "Toy/retinanet_superloss.yaml", "Toy/faster_rcnn_superloss.yaml"


def start(env, config, output, *opts, resume=False, fresh=False, **driver):
    """A training in a process of its own; ``driver``: what driver.py does to it.

    ``fresh``: in a new interpreter as in use, not forked with the imports done.
    """
    words = [f"{key}={value}" for key, value in driver.items()]
    args = [*words, "--config-file", config, *(["--resume"] if resume else [])]
    args += ["OUTPUT_DIR", str(output), *map(str, opts)]
    if fresh:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([sys.executable, str(DRIVER), *args], env=env, cwd=REPO, **pipes)
    return Program(DRIVER, args, env, joins=True)


def train_net(env, *args):
    """tools/train_net.py in its own process, to its end."""
    path = REPO / "tools" / "train_net.py"
    program = Program(path, [*map(str, args)], env)
    printed = program.communicate()
    return subprocess.CompletedProcess([path, *args], program.returncode, *printed)


def run(*args, **kwargs):
    process = start(*args, **kwargs)
    printed, _ = process.communicate()
    return process.returncode, printed


def wait_for_iteration(process, output, iteration):
    file = output / "curve.jsonl"
    while not file.exists() or len(file.read_text().splitlines()) <= iteration:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def few_test_images(env):
    """Options: three images of the toy set as the test set."""
    return ["DATASETS.CUSTOM_VOC", [toy_split(env, "few", "test", 3)], "DATASETS.TEST", "('few',)"]


def toy_split(env, name, of, num_images):
    """An entry of CUSTOM_VOC: the first images of a split of the toy set."""
    root = Path(env["DETECTRON2_DATASETS"], "toy_digits")
    splits = root / "ImageSets" / "Main"
    names = (splits / f"{of}.txt").read_text().splitlines()[:num_images]
    (splits / f"{name}.txt").write_text("\n".join(names))
    return {"NAME": name, "ROOT": str(root), "SPLIT": name, "CLASSES": list(TOY_CLASS_NAMES)}


def curve(output):
    """{iteration: losses}; an iteration that was run again must have had the same losses."""
    losses = {}
    for line in (output / "curve.jsonl").read_text().splitlines():
        iteration, values = json.loads(line)
        assert losses.setdefault(iteration, values) == values
    return losses


def assert_equal(a, b):
    """All of two checkpoints: weights, tau, momentum, tracker, normalizers, random states."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    else:
        assert a == b or (a != a and b != b)  # nan: AP of a class without objects
