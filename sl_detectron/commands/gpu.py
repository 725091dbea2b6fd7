"""The work of ``tools/gpu_report.py``: what tests measure on a GPU, a short real job, a report."""

import json
import math
import platform
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from tabulate import tabulate

from ..files import write_json, write_text
from ..sweep.grid import METRICS, slug
from .gpu_job import GRACE, NOISE, Budget, fitting_iterations, job_grid, run_job, voc_entries

__all__ = ["FIGURES_VARIABLE", "check_cuda", "run_gpu_report", "write_report"]

# A file to which each test of tests/gpu adds what it measures, a JSON object a line.
FIGURES_VARIABLE = "SL_DETECTRON_GPU_FIGURES"
REPORT = 5.0  # seconds for the report
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
        minutes: for everything; what does not fit is left out, and the report lists it
        voc_root: a folder in Pascal VOC's form for the job; None for no job
        weights: for the backbone; empty for a training from scratch
        iterations: of each run of the job, if they fit
        opts: config options of the runs, ``[KEY, VALUE, ...]``

    Returns:
        whether all tests passed and the job ended, or was not asked for

    Raises:
        ValueError: torch sees no GPU; minutes are not above 0
        FileNotFoundError: the tests or the data are absent
    """
    check_cuda()
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes must be a number above 0; got {minutes}")
    budget = Budget(time.monotonic() + 60 * minutes - REPORT)
    if not tests.is_dir():
        raise FileNotFoundError(f"no {tests}: this tool runs in a clone of the repository")
    sets = _sets(voc_root) if voc_root else []
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": _machine()}
    report["tests"], report["figures"] = _run_tests(tests, work, budget)
    steps = [f["value"] / 1e3 for f in report["figures"] if f["name"] == STEP_FIGURE]
    step = STEP_RATIO * steps[-1] if steps else STEP_SECONDS
    number = fitting_iterations(budget.left - GRACE, step, iterations) if sets else 0
    if number:
        grid = job_grid(sets, weights, number, opts)
        report["job"] = run_job(grid, tests.parents[1], work, budget)
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


def _sets(root: Path) -> list[dict[str, Any]]:
    try:
        return voc_entries(root)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; give the job a folder by --voc-root FOLDER, or leave it out by --no-job"
        ) from error


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
