#!/usr/bin/env python3
"""Draw labels with confidences and detections, corrected labels, or the training curves of runs.

Each image becomes one picture with panels side by side: the true labels (where
DATASETS.LABEL_NOISE is on), the labels used in training, the detections. Labels are red, "given
(true)", where they are wrong, orange where the SuperLoss's mean confidence is below 1, else green.
Detections are green for the true class, red for a wrong label that the detector has memorised,
orange for anything else. --first orders the images: as in the dataset (set), by most wrong labels
(wrong), or by least confidence (doubted).

--corrections draws labels as the last of several training rounds had them, --num of each kind:
mended, made wrong, and still wrong where label noise was on, else those that changed.

--curves draws loss, tau, sigma and AP50 over the iterations of one or more runs, finished or not.

Examples:
  The first 10 images of a training set with their noise:
    tools/visualize.py --config-file configs/Toy/faster_rcnn_superloss.yaml --num 10 \\
        --output pictures
  The least confident labels of a run, and what its detector finds there:
    tools/visualize.py --from-run output --first doubted --num 10 --output pictures
  Detections on a test set, in windows:
    tools/visualize.py --config-file my.yaml --checkpoint model_final.pth --dataset my_test --show
  Labels that a training in two rounds corrected, pictures/corrections.png:
    tools/visualize.py --corrections output --num 8 --output pictures
  Training curves of two runs in one picture, pictures/curves.png:
    tools/visualize.py --curves output/baseline output/superloss --output pictures
"""

import argparse
import sys
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.commands.corrections import run_corrections
from sl_detectron.commands.visualize import ORDERS, run_curves, run_visualize


def main(args: argparse.Namespace) -> None:
    if args.corrections:
        print(run_corrections(args))
    else:
        print(run_curves(args) if args.curves else run_visualize(args))


def cli() -> int:
    parser = tool_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", default="", help="a file, or a shipped config by name")
    source.add_argument(
        "--from-run",
        metavar="DIR",
        help="OUTPUT_DIR of a run; its config, audit and model are used",
    )
    source.add_argument(
        "--curves", nargs="+", metavar="RUN", help="OUTPUT_DIR of each run whose curves are drawn"
    )
    source.add_argument(
        "--corrections",
        metavar="RUN",
        help="OUTPUT_DIR of a run with CORRECTION.ROUNDS above 1 or CORRECTION.FROM_FEATURES",
    )
    parser.add_argument("--checkpoint", help="weights whose detections are drawn")
    parser.add_argument("--audit", metavar="FILE", help="label_audit.json with the confidences")
    parser.add_argument("--dataset", help="registered name; default: first of DATASETS.TRAIN")
    parser.add_argument("--num", type=int, default=20, help="number of pictures; default 20")
    parser.add_argument("--first", default="set", choices=ORDERS, help="which images come first")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="lowest score of a drawn detection; default 0.5",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--show", action="store_true", help="open a window for each picture")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config options")
    args = parser.parse_args()
    if not (args.output or args.show):
        parser.error("give --output DIR, --show, or both")
    if args.corrections and (args.show or not args.output):
        parser.error("--corrections writes a picture: give --output DIR, and no --show")
    given = {key for key, value in vars(args).items() if value != parser.get_default(key)}
    if args.curves and not given <= {"curves", "output", "show", "debug", "imports"}:
        parser.error("--curves takes --output, --show and nothing else")
    if args.corrections and not given <= {"corrections", "num", "output", "debug", "imports"}:
        parser.error("--corrections takes --num, --output and nothing else")
    return run_tool(main, args)


if __name__ == "__main__":
    sys.exit(cli())
