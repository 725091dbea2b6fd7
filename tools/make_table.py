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
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.sweep import make_tables, write_summary


def main(args: argparse.Namespace) -> None:
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    if "" in classes or len(set(classes)) < len(classes):
        raise ValueError(f"--classes must be different names a,b,c; got {args.classes!r}")
    if len(args.folder) > 1:
        if not args.output:
            raise ValueError("a summary of several sweeps needs --output, a folder for it")
        paths = write_summary(args.folder, args.output, classes)
    else:
        source = Path(args.folder[0])
        default = source.parent if source.suffix == ".csv" else source
        paths = make_tables(source, args.output or default, classes)
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
        "--output", help="folder for tables and plots; default: the given folder, if it is one"
    )
    parser.add_argument(
        "--classes", default="", help="a,b,c: classes to average over; default: all"
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
