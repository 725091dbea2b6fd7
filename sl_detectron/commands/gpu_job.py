"""A short real training on a GPU: Faster R-CNN R50-FPN with and without the SuperLoss."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ..data.formats.voc_set import read_image_set
from ..data.formats.voc_xml import parse_voc_xml
from ..engine.launch import iterations_done
from ..engine.resume import STOPPED
from ..files import write_text
from ..sweep.grid import slug
from ..sweep.state import read_result

__all__ = ["NOISE", "Budget", "fitting_iterations", "job_grid", "run_job", "voc_entries"]

R50 = "PascalVOC-Detection/faster_rcnn_R_50_FPN"
METHODS = {"baseline": f"{R50}.yaml", "SuperLoss": f"{R50}_superloss_noisy.yaml"}
NOISE = 0.4
# Seconds: a process that was told to end, and a run beside its steps (start, evaluation). Below so
# many steps a job says nothing.
GRACE, RUN_OVERHEAD, MIN_STEPS = 20.0, 60.0, 20


@dataclass
class Budget:
    """Seconds that are left until a deadline of :func:`time.monotonic`."""

    deadline: float

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, command: Sequence[str], env: Mapping[str, str], number: int) -> int | None:
        """Run a process to its end, or to the deadline.

        Args:
            command: that prints to our output
            env: additions to the environment
            number: the signal at the deadline; who does not end by it is killed

        Returns:
            the exit code; None where the deadline ended it
        """
        with (
            _sigterm_ends_it(),
            subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True) as process,
        ):
            try:
                return process.wait(max(self.left - GRACE, 0))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            finally:  # also where this process is interrupted: nothing that it started goes on
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return None


@contextmanager
def _sigterm_ends_it() -> Iterator[None]:
    """SIGTERM, which would end this process alone, as an error that unwinds it."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(STOPPED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fitting_iterations(left: float, step: float, wanted: int) -> int:
    """How many of the iterations that are wanted each of both runs can have; 0 for no job.

    Args:
        left: seconds for all
        step: seconds of one

    Example:
        >>> fitting_iterations(left=400, step=0.5, wanted=1000)
        280
        >>> fitting_iterations(left=120, step=0.5, wanted=1000)
        0
    """
    fitting = int((left / len(METHODS) - RUN_OVERHEAD) / step)
    return min(fitting, wanted) if fitting >= MIN_STEPS else 0


def voc_entries(root: Path) -> list[dict[str, Any]]:
    """Entries of ``DATASETS.CUSTOM_VOC`` for training and test, by the splits that are there."""
    root = root if (root / "ImageSets").is_dir() else root / "VOC2007"
    entries, names = [], set()
    for name, splits in {"gpu_train": ("trainval", "train"), "gpu_test": ("test", "val")}.items():
        there = [s for s in splits if (root / "ImageSets" / "Main" / f"{s}.txt").is_file()]
        split = (there or splits)[0]
        ids = read_image_set(root, split)
        entries.append({"NAME": name, "ROOT": str(root.resolve()), "SPLIT": split})
        annotations = (parse_voc_xml(root / "Annotations" / f"{i}.xml") for i in ids)
        names |= {obj.name for annotation in annotations for obj in annotation.objects}
    classes = list(CLASS_NAMES) if names <= set(CLASS_NAMES) else sorted(names)
    return [{**entry, "CLASSES": classes} for entry in entries]


def job_grid(
    sets: Sequence[Mapping[str, Any]], weights: str, iterations: int, opts: Sequence[str]
) -> dict[str, Any]:
    """A grid of :mod:`sl_detectron.sweep`: two methods, one seed."""
    steps = (round(0.7 * iterations), round(0.9 * iterations))
    shared: list[Any] = ["DATASETS.CUSTOM_VOC", json.dumps(sets), "MODEL.WEIGHTS", weights]
    shared += ["DATASETS.TRAIN", "('gpu_train',)", "DATASETS.TEST", "('gpu_test',)"]
    shared += ["MODEL.ROI_HEADS.NUM_CLASSES", len(sets[0]["CLASSES"])]
    shared += ["SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", str(steps)]
    shared += ["SOLVER.WARMUP_ITERS", max(iterations // 10, 1), "TEST.EVAL_PERIOD", 0]
    shared += ["INPUT.MIN_SIZE_TRAIN", "(480,)", "INPUT.MIN_SIZE_TEST", 480]
    shared += ["DATALOADER.NUM_WORKERS", min(os.cpu_count() or 1, 8)]
    if not weights:
        shared += ["MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0]
        shared += ["MODEL.RESNETS.STRIDE_IN_1X1", False]
        shared += ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
        shared += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 5.0]
    methods = {name: {"config": config} for name, config in METHODS.items()}
    detectors = {"Faster R-CNN": methods}
    shared = [*map(str, shared), *opts]
    return {"noise": [NOISE], "seeds": [0], "opts": shared, "detectors": detectors}


def run_job(grid: Mapping[str, Any], clone: Path, work: Path, budget: Budget) -> dict[str, Any]:
    """Train what the grid has, until the deadline at the latest."""
    path, folder = work / "grid.yaml", work / f"job_{os.getpid()}"
    write_text(path, yaml.safe_dump(dict(grid)))
    command = [sys.executable, str(clone / "tools" / "sweep.py"), "--config", str(path)]
    command += ["--output", str(folder), "--keep", "none"]
    started = time.monotonic()
    code = budget.run(command, {}, signal.SIGTERM)
    state = "stopped at the end of the time" if code is None else "finished"
    options = dict(zip(grid["opts"][::2], grid["opts"][1::2]))
    runs = []
    for log in sorted(folder.rglob("run.log")):
        result = read_result(log.parent)
        metrics = result["metrics"] if result else {}
        method = next((m for m in METHODS if slug(m) in log.parts), log.parent.name)
        done = min(iterations_done(log.parent), int(options["SOLVER.MAX_ITER"]))
        runs.append({"method": method, "iterations": done, "metrics": metrics})
        if not result and code is not None:
            state = f"failed with exit code {code}, see {log}"
            print(re.sub(r"(?m)^", "  ", log.read_text()[-3000:]), flush=True)
    return {
        "state": state if code in (0, None) or "failed" in state else f"failed, exit code {code}",
        "seconds": round(time.monotonic() - started, 1),
        "iterations": int(options["SOLVER.MAX_ITER"]),
        "weights": options["MODEL.WEIGHTS"] or "from scratch",
        "runs": runs,
    }
