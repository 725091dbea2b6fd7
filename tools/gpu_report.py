#!/usr/bin/env python3
"""Test and measure the package on a GPU, and train a short real job.

Runs the tests of tests/gpu, then Faster R-CNN R50-FPN with and without the SuperLoss on a set in
Pascal VOC's form with 40 % wrong labels, with a schedule that fits the time. Writes a report named
after the card, <card>.json and <card>.md, also if a test fails. Exit code 1: a test or the job
failed, or did not finish.

Examples:
  tools/gpu_report.py --minutes 20 --voc-root datasets/VOC2007
  The tests alone, in at most ten minutes:
    tools/gpu_report.py --minutes 10 --no-job
  From given weights, half the learning rate:
    tools/gpu_report.py --weights R-50.pkl SOLVER.BASE_LR 0.01
"""

import argparse
import os
import sys
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
from sl_detectron.commands.gpu import run_gpu_report

REPO = Path(__file__).resolve().parents[1]


def main(args: argparse.Namespace) -> None:
    passed = run_gpu_report(
        REPO / "tests" / "gpu",
        Path(args.output),
        Path(args.work),
        args.minutes,
        None if args.no_job else Path(args.voc_root),
        args.weights,
        args.iterations,
        args.opts,
    )
    if not passed:
        sys.exit(1)


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="time for everything")
    parser.add_argument("--output", default=str(REPO / "docs" / "results" / "gpu"))
    parser.add_argument("--work", default="output/gpu", help="folder for logs and checkpoints")
    parser.add_argument(
        "--voc-root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        help="a folder in Pascal VOC's form, or one that has VOC2007; default: "
        "$DETECTRON2_DATASETS or datasets",
    )
    parser.add_argument("--no-job", action="store_true", help="run the tests only")
    parser.add_argument("--weights", default="", help="weights of the backbone; default: random")
    parser.add_argument("--iterations", type=int, default=1000, help="at most, for each run")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config options for both runs: KEY VALUE ..."
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
