#!/usr/bin/env python3
"""Draw the labels of a dataset, what is known to be wrong in them, confidences and detections.

One picture an image, its panels side by side: the true labels (where DATASETS.LABEL_NOISE is on),
the labels that training sees, the detections. Labels: red "given (true)" where it is wrong, orange
where the SuperLoss's mean confidence is below 1, else green. Detections: green for the true class,
red for a wrong label that the detector has memorised, orange for anything else. Images come as in
the dataset (--first set), with most wrong labels first (wrong) or least confidence first (doubted).

Examples:
  The first 10 images of a training set with their noise:
    tools/visualize.py --config-file configs/Toy/faster_rcnn_superloss.yaml --num 10 \\
        --output pictures
  The least confident labels of a run, and what its detector finds there:
    tools/visualize.py --from-run output --first doubted --num 10 --output pictures
  Detections on a test set, in windows:
    tools/visualize.py --config-file my.yaml --checkpoint model_final.pth --dataset my_test --show
"""

import argparse
import sys
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.commands.visualize import ORDERS, run_visualize


def main(args: argparse.Namespace) -> None:
    print(run_visualize(args))


def cli() -> int:
    parser = tool_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", default="", help="a file, or a shipped config by name")
    source.add_argument(
        "--from-run",
        metavar="DIR",
        help="OUTPUT_DIR of a run: its config, audit and model",
    )
    parser.add_argument("--checkpoint", help="weights whose detections are drawn")
    parser.add_argument("--audit", metavar="FILE", help="label_audit.json with the confidences")
    parser.add_argument("--dataset", help="registered name; default the first of DATASETS.TRAIN")
    parser.add_argument("--num", type=int, default=20, help="of pictures; default 20")
    parser.add_argument("--first", default="set", choices=ORDERS, help="which images come first")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score of a detection; default 0.5"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--show", action="store_true", help="open a window for each")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config options")
    args = parser.parse_args()
    if not (args.output or args.show):
        parser.error("say where to: --output DIR, --show, or both")
    return run_tool(main, args)


if __name__ == "__main__":
    sys.exit(cli())
