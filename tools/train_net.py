#!/usr/bin/env python3
"""Train and evaluate a detector on noisy or clean labels.

Examples:
  Train on the toy set on a CPU:
    tools/train_net.py --config-file configs/Toy/faster_rcnn_superloss.yaml
  Train on 8 GPUs with 60 % wrong labels:
    tools/train_net.py --num-gpus 8 \\
        --config-file configs/PascalVOC-Detection/faster_rcnn_R_50_FPN_superloss_noisy.yaml \\
        DATASETS.LABEL_NOISE.RATE 0.6
  Resume after an interruption: the same command with --resume. On SIGTERM, which schedulers send
  before they stop a job, a training run writes a checkpoint and ends with exit code 143.
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
from detectron2.engine import default_argument_parser

from sl_detectron.engine import launch_job, setup_cfg, train_net
from sl_detectron.engine.lazy import setup_lazy_cfg, train_lazy_net
from sl_detectron.model_zoo import find_config


def main(args: argparse.Namespace) -> None:
    cfg: Any
    args.config_file = find_config(args.config_file)
    if args.config_file.endswith(".py"):
        cfg, job = setup_lazy_cfg(args.config_file, args.opts), train_lazy_net
    else:
        cfg, job = setup_cfg(args.config_file, args.opts, args.eval_only), train_net
    launch_job(job, cfg, args)


def cli() -> int:
    parser = default_argument_parser()
    describe(parser, __doc__)
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=1800,
        metavar="SECONDS",
        help="time after which a process that does not answer is an error; default 1800",
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
