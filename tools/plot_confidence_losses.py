#!/usr/bin/env python3
"""Draw the losses with a confidence side by side, as the SuperLoss paper does, and the SuperLoss.

First row: introspection, R2D2 reliability, DataParams and SuperLoss over the confidence and the
score. Second row: the size of their gradient by the score, which is what reaches the network. Third
row: confidence and value of the SuperLoss over (loss - tau) / lambda for several lambda.

Examples:
  tools/plot_confidence_losses.py --output figure.png
  tools/plot_confidence_losses.py --output figure.pdf --lambdas 0.1 1 10
"""

import argparse
import sys

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.plots import LAMBDAS, plot_confidence_losses


def main(args: argparse.Namespace) -> None:
    plot_confidence_losses(args.output, lambdas=args.lambdas)
    print(f"picture: {args.output}")


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument("--output", required=True, help="the picture: .png, .pdf or .svg")
    parser.add_argument(
        "--lambdas", type=float, nargs="+", default=LAMBDAS, help="of the third row"
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
