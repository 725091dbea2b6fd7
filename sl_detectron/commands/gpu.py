"""The work of ``tools/gpu_report.py``: what tests measure on a GPU, a short real job, a report."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from tabulate import tabulate

from ..data.formats.voc_set import read_image_set
from ..data.formats.voc_xml import parse_voc_xml
from ..engine.launch import iterations_done
from ..files import write_json, write_text
from ..sweep.grid import METRICS, slug
from ..sweep.state import read_result

__all__ = ["FIGURES_VARIABLE", "Budget", "check_cuda", "fitting_iterations", "run_gpu_report"]

# A file to which each test of tests/gpu adds what it measures, a JSON object a line.
FIGURES_VARIABLE = "SL_DETECTRON_GPU_FIGURES"
R50 = "PascalVOC-Detection/faster_rcnn_R_50_FPN"
METHODS = {"baseline": f"{R50}.yaml", "SuperLoss": f"{R50}_superloss_noisy.yaml"}
NOISE = 0.4
# Seconds: a process that was told to end, a run beside its steps (start, evaluation), and the
# report. Below so many steps a job says nothing.
GRACE, RUN_OVERHEAD, REPORT, MIN_STEPS = 20.0, 60.0, 5.0, 20
# Of a step of the job, 16 images of 480 pixels, beside that of a step of the tests, 4 of 800; and
# where the tests did not measure it.
STEP_RATIO, STEP_SECONDS = 1.5, 0.5
STEP_FIGURE = "Faster R-CNN R50-FPN, float32, SuperLoss: step"


def check_cuda() -> None:
    """Raise ValueError, in one line, where torch sees no GPU."""
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise ValueError(
            f"no CUDA: torch {torch.__version__} ({build}) sees no GPU here; run this where "
            "nvidia-smi lists one, with a torch for its driver"
        )


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
        with subprocess.Popen(
            command, env={**os.environ, **env}, start_new_session=True
        ) as process:
            try:
                return process.wait(max(self.left - GRACE, 0))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            return None


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


def run_gpu_report(
    tests: Path,
    output: Path,
    work: Path,
    minutes: float,
    voc_root: Path | None,
    weights: str = "",
    iterations: int = 1000,
    opts: Sequence[str] = (),
) -> bool:
    """Run the tests of a GPU, then the job, and write ``<card>.json`` and ``<card>.md``.

    Args:
        tests: the folder tests/gpu of a clone; the job's tools are beside it
        output: folder of the report
        work: folder for all else
        minutes: for everything; what does not fit is left out, and the report says so
        voc_root: a folder in Pascal VOC's form for the job; None for no job
        weights: for the backbone; empty for a training from scratch
        iterations: of each run of the job, if they fit
        opts: config options of the runs, ``[KEY, VALUE, ...]``

    Returns:
        whether all tests passed and the job ended, or was not asked for

    Raises:
        ValueError: torch sees no GPU
        FileNotFoundError: the tests or the data are absent
    """
    check_cuda()
    budget = Budget(time.monotonic() + 60 * minutes - REPORT)
    if not tests.is_dir():
        raise FileNotFoundError(f"no {tests}: this tool runs in a clone of the repository")
    sets = _voc_entries(voc_root) if voc_root else []
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": _machine()}
    report["tests"], report["figures"] = _run_tests(tests, work, budget)
    steps = [f["value"] / 1e3 for f in report["figures"] if f["name"] == STEP_FIGURE]
    step = STEP_RATIO * steps[-1] if steps else STEP_SECONDS
    number = fitting_iterations(budget.left - GRACE, step, iterations) if sets else 0
    if number:
        grid = _grid(sets, weights, number, opts)
        report["job"] = _run_job(grid, tests.parents[1], work, budget)
    else:
        why = f"left out: {max(budget.left, 0):.0f} s were left" if sets else "not asked for"
        report["job"] = {"state": why, "runs": []}
    path = write_report(output, report)
    print(f"{to_markdown(report)}\nwritten: {path} and {path.with_suffix('.md')}", flush=True)
    finished = report["job"]["state"] == ("finished" if sets else "not asked for")
    return report["tests"]["exit_code"] == 0 and finished


def write_report(output: Path, report: Mapping[str, Any]) -> Path:
    """Write the report under the name of its card; returns the path of the JSON file."""
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{slug(report['machine']['card'])}.json"
    write_json(path, report, indent=1)
    write_text(path.with_suffix(".md"), to_markdown(report))
    return path


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    machine, tests, job = report["machine"], report["tests"], report["job"]
    others = ", ".join(f"{key} {value}" for key, value in machine.items() if key != "card")
    counts = ", ".join(f"{number} {state}" for state, number in tests["counts"].items())
    lines = [f"# {machine['card']}", "", others + ".", "", "## Tests", ""]
    state = "stopped at the end of the time" if tests["exit_code"] is None else "run to the end"
    lines += [f"{counts or 'No test ended'}; {state}, {tests['seconds']:.0f} s.", ""]
    lines += [f"- failed: {name}" for name in tests["failed"]]
    rows = [[f["name"], f"{f['value']:.4g}", f["unit"]] for f in report["figures"]]
    lines += ["", tabulate(rows, ["measured", "", "unit"], "github", disable_numparse=True), ""]
    lines += ["## Training", "", f"State: {job['state']}."]
    if job["runs"]:
        lines[-1] += (
            f" Faster R-CNN R50-FPN, {NOISE:.0%} wrong labels, {job['iterations']} iterations, "
            f"one seed; {job['weights']}."
        )
        rows = [
            [run["method"], run["iterations"], *(run["metrics"].get(m, "") for m in METRICS)]
            for run in job["runs"]
        ]
        lines += ["", tabulate(rows, ["method", "iterations", *METRICS], "github", ".1f")]
    return "\n".join(lines) + "\n"


def _machine() -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        driver = (done.stdout.strip().splitlines() or ["unknown"])[0]
    except (OSError, subprocess.TimeoutExpired):
        driver = "unknown"
    return {
        "card": torch.cuda.get_device_name(0),
        "driver": driver,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "GPUs": torch.cuda.device_count(),
    }


def _run_tests(
    tests: Path, work: Path, budget: Budget
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How the tests ended, and what they measured, as far as they came."""
    results, figures = work / "tests.xml", work / "figures.jsonl"
    for path in (results, figures):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["--durations=15", f"--junit-xml={results}", f"--rootdir={tests.parents[1]}"]
    command += ["-c", str(tests.parents[1] / ".pytest.ini"), str(tests)]
    started = time.monotonic()
    # Ctrl-C lets pytest write what it has.
    code = budget.run(command, {FIGURES_VARIABLE: str(figures)}, signal.SIGINT)
    ended: dict[str, Any] = {"exit_code": code, "seconds": round(time.monotonic() - started, 1)}
    counts, failed = _test_results(results)
    ended |= {"counts": counts, "failed": failed}
    lines = figures.read_text().splitlines() if figures.exists() else []
    return ended, [json.loads(line) for line in lines]


def _test_results(path: Path) -> tuple[dict[str, int], list[str]]:
    """{state: number of tests}, and names with reasons of those that failed."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failed: list[str] = []
    if not path.exists():
        return {}, failed
    for case in ET.parse(path).iter("testcase"):
        bad = next((e for e in case if e.tag in ("failure", "error")), None)
        skipped = case.find("skipped") is not None
        counts["failed" if bad is not None else "skipped" if skipped else "passed"] += 1
        if bad is not None:
            reason = " ".join(bad.get("message", "").split())[:300]
            failed.append(f"{case.get('classname')}.{case.get('name')}: {reason}")
    return counts, failed


def _voc_entries(root: Path) -> list[dict[str, Any]]:
    """Entries of ``DATASETS.CUSTOM_VOC`` for training and test, by the splits that are there."""
    root = root if (root / "ImageSets").is_dir() else root / "VOC2007"
    entries: list[dict[str, Any]] = []
    for name, splits in {"gpu_train": ("trainval", "train"), "gpu_test": ("test", "val")}.items():
        there = [s for s in splits if (root / "ImageSets" / "Main" / f"{s}.txt").is_file()]
        split = (there or splits)[0]
        ids = read_image_set(root, split)
        entries.append({"NAME": name, "ROOT": str(root.resolve()), "SPLIT": split})
        annotations = (parse_voc_xml(root / "Annotations" / f"{i}.xml") for i in ids)
        names = {obj.name for annotation in annotations for obj in annotation.objects}
        classes = sorted({*names, *(entries[0].get("CLASSES", ()))})
        for entry in entries:
            entry["CLASSES"] = list(CLASS_NAMES) if names <= set(CLASS_NAMES) else classes
    return entries


def _grid(
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


def _run_job(grid: Mapping[str, Any], clone: Path, work: Path, budget: Budget) -> dict[str, Any]:
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
