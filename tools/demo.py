#!/usr/bin/env python3
"""Train a Faster R-CNN with and without the SuperLoss on the toy set with 40 % wrong labels.

Prints AP, AP50 and AP75 of both and draws demo.png. Each run is what tools/train_net.py does with
configs/Toy/faster_rcnn.yaml and configs/Toy/faster_rcnn_superloss.yaml.

Example:
  tools/demo.py --output output/demo --seeds 0 1 2
"""

import argparse

from sl_detectron.engine.demo import run_demo


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output/demo", help="folder for everything it writes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one pair of runs each")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config options for all runs: KEY VALUE ..."
    )
    args = parser.parse_args()
    print(run_demo(args.output, args.seeds, args.opts))
    print(f"picture: {args.output}/demo.png")


if __name__ == "__main__":
    main()
