#!/usr/bin/env python3
"""Measure what large datasets cost: statistics, loader, audit, evaluation, ranks, training steps.

Every job runs in a process of its own on made data, at sizes from 100,000 to 10 million
annotations, and prints a table; all of them take some minutes on two cores. The last column is the
cost of an annotation at the largest size over that at the smallest one: 1 is linear.

Examples:
  tools/benchmark_scale.py
  The tables of the page on scale:
    tools/benchmark_scale.py --output docs/scale.md
  One job at another size:
    tools/benchmark_scale.py --jobs loader --annotations 5000000
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
from sl_detectron.commands.scale import PLAN, run_scale


def main(args: argparse.Namespace) -> None:
    output = None if args.output is None else Path(args.output)
    run_scale(args.jobs, args.annotations, output, partial(print, flush=True))


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--jobs", nargs="+", default=[], metavar="JOB", help=f"some of: {', '.join(PLAN)}"
    )
    parser.add_argument(
        "--annotations",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="numbers of annotations, or of detections",
    )
    parser.add_argument("--output", help="page whose tables are replaced")
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
