#!/usr/bin/env python3
"""Train and evaluate a detector on (partly wrong) labels.

Examples:
  Train on the toy set on a CPU:
    tools/train_net.py --config-file configs/Toy/faster_rcnn_superloss.yaml
  Train on 8 GPUs with 40 % wrong labels:
    tools/train_net.py --num-gpus 8 \\
        --config-file configs/PascalVOC-Detection/faster_rcnn_R_50_FPN_superloss_noisy.yaml \\
        DATASETS.LABEL_NOISE.RATE 0.4
  Go on after an interruption: the same command with --resume.
  Evaluate a checkpoint:
    tools/train_net.py --eval-only --config-file CONFIG MODEL.WEIGHTS output/model_final.pth
"""

import sys

from detectron2.engine import default_argument_parser, launch

from sl_detectron.engine import setup_cfg, train_net


def main() -> int:
    parser = default_argument_parser(epilog=__doc__.split("\n", 2)[2])
    parser.description = __doc__.split("\n", 1)[0]
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    try:
        cfg = setup_cfg(args.config_file, args.opts)
        launch(
            train_net,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, args),
        )
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"train_net.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
