#!/usr/bin/env python3
"""Train and evaluate a detector on (partly wrong) labels.

Examples:
  Train on the toy set on a CPU:
    tools/train_net.py --config-file configs/Toy/faster_rcnn_superloss.yaml
  Train on 8 GPUs with 60 % wrong labels:
    tools/train_net.py --num-gpus 8 \\
        --config-file configs/PascalVOC-Detection/faster_rcnn_R_50_FPN_superloss_noisy.yaml \\
        DATASETS.LABEL_NOISE.RATE 0.6
  Go on after an interruption: the same command with --resume.
  Train a LazyConfig, a Python file; options are KEY=VALUE:
    tools/train_net.py --config-file configs/LazyConfig/toy_faster_rcnn_superloss.py \\
        train.max_iter=100
  Evaluate a checkpoint:
    tools/train_net.py --eval-only --config-file CONFIG MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import sys
from typing import Any

from sl_detectron.cli import describe, run_tool  # first: it quiets detectron2's import

# isort: split
from detectron2.engine import default_argument_parser, launch

from sl_detectron.engine import setup_cfg, setup_lazy_cfg, train_lazy_net, train_net
from sl_detectron.model_zoo import find_config


def main(args: argparse.Namespace) -> None:
    cfg: Any
    args.config_file = find_config(args.config_file)
    if args.config_file.endswith(".py"):
        cfg, job = setup_lazy_cfg(args.config_file, args.opts), train_lazy_net
    else:
        cfg, job = setup_cfg(args.config_file, args.opts, args.eval_only), train_net
    launch(
        job,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(cfg, args),
    )


def cli() -> int:
    parser = default_argument_parser()
    describe(parser, __doc__)
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
