#!/usr/bin/env python3
"""Train a Faster R-CNN with and without the SuperLoss on digits with 40 % wrong labels; compare.

Prints AP, AP50 and AP75 of both, and with several seeds the difference, paired by seed. Writes
demo.json, the metrics of every run, and demo.png, the wrong labels beside the detections. --report
also writes report.html, one page with all of this, training curves and the most suspect labels.
The runs equal those of tools/train_net.py with configs/Toy/faster_rcnn.yaml and
configs/Toy/faster_rcnn_superloss.yaml.

Examples:
  tools/demo.py --report
  tools/demo.py --output output/demo --seeds 0 1 2
  tools/demo.py --seeds 0 1 2 --output output/longer SOLVER.MAX_ITER 1000 SOLVER.STEPS "(700,900)"
"""

import argparse
import sys

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.commands.demo import REPORT, run_demo


def main(args: argparse.Namespace) -> None:
    print(run_demo(args.output, args.seeds, args.opts, args.report))
    print(f"picture: {args.output}/demo.png")
    if args.report:
        print(f"report: {args.output}/{REPORT}")


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument("--output", default="output/demo", help="folder for all output")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="one pair of runs per seed"
    )
    parser.add_argument(
        "--report", action="store_true", help="write report.html, a page that needs no server"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config options for all runs: KEY VALUE ..."
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
