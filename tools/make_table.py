#!/usr/bin/env python3
"""Make tables and plots of a sweep: table.html, table.md, table.tex, CSV, ap50.png.

The tables show mean and standard deviation over seeds, published numbers if the grid has any, and
the differences from the baseline and the controls, paired by seed. Unfinished runs are shown as
missing. The command may run during the sweep.

Examples:
  tools/make_table.py output/table5
  One summary of the differences over the sets and detectors of several sweeps:
    tools/make_table.py output/voc output/deeppcb --output output/summary
  Means over some classes, where a test set has few objects of the others:
    tools/make_table.py output/voc --classes car,person,cat
  The tables of published runs, from a runs.csv that has the sweep's grid.yaml beside it:
    tools/make_table.py docs/results/toy/runs.csv --output output/tables
"""

import argparse
import sys

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.sweep import make_tables, write_summary


def main(args: argparse.Namespace) -> None:
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    if "" in classes or len(set(classes)) < len(classes):
        raise ValueError(f"--classes must be different names a,b,c; got {args.classes!r}")
    several = len(args.folder) > 1
    if not args.output and (several or args.folder[0].endswith(".csv")):
        # The default would write over the published runs.
        what = "a summary of several sweeps" if several else f"the tables of {args.folder[0]}"
        raise ValueError(f"--output must name a folder for {what}")
    if several:
        paths = write_summary(args.folder, args.output, classes)
    else:
        paths = make_tables(args.folder[0], args.output or args.folder[0], classes)
    for path in paths:
        print(path)


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "folder",
        nargs="+",
        help="--output of tools/sweep.py, or a runs.csv of this tool that has the sweep's "
        "grid.yaml and options.json beside it; for several, only a summary over all is written",
    )
    parser.add_argument(
        "--output", help="folder for tables and plots; default: the given folder of a sweep"
    )
    parser.add_argument(
        "--classes", default="", help="a,b,c: classes to average over; default: all"
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
