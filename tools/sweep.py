#!/usr/bin/env python3
"""Train detectors x methods x label noise x seeds; tools/make_table.py makes the tables.

Each run is a run of tools/train_net.py. The sweep may be killed at any moment: the same command
trains the missing runs and never repeats a finished one. Failed runs are listed at the end, and
skipped unless --retry-failed is given. Further exit codes: 1 if runs failed; 143 if SIGTERM stopped
the sweep or some runs. The sweep passes SIGTERM on to its runs, which end with a checkpoint.

Examples:
  The paper's Table 5 on 8 GPUs, one run on each:
    tools/sweep.py --config configs/Sweep/table5.yaml --output output/table5 --jobs 8
  Print its 72 commands:
    tools/sweep.py --config configs/Sweep/table5.yaml --output output/table5 --dry-run
  On Slurm, each run on one GPU, or each on two nodes of 8:
    tools/sweep.py --config configs/Sweep/table5.yaml --output output/table5 \\
        --executor slurm --slurm partition=gpu cpus_per_task=8 timeout_min=1440
    tools/sweep.py --config configs/Sweep/table5.yaml --output output/table5 --num-gpus 8 \\
        --executor slurm --slurm partition=gpu nodes=2 cpus_per_task=64
  The toy set on two CPU cores:
    tools/sweep.py --config configs/Sweep/toy.yaml --output output/toy --jobs 2
"""

import argparse
import shlex
import sys
from pathlib import Path

from tabulate import tabulate

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.engine.resume import STOPPED
from sl_detectron.model_zoo import find_config
from sl_detectron.sweep import read_grid, run_grid
from sl_detectron.sweep.cost import estimate
from sl_detectron.sweep.jobs import rank_args
from sl_detectron.sweep.plan import plan
from sl_detectron.sweep.state import KEEP, RUN_LOG


def main(args: argparse.Namespace) -> None:
    grid = read_grid(find_config(args.config), args.opts, args.scale_schedule)
    script = Path(sys.argv[0]).name.startswith("sl-")  # installed, without a checkout
    if args.dry_run:
        tool = ["sl-train"] if script else ["python", "tools/train_net.py"]
        tool += [word for module in args.imports for word in ("--import", module)]
        runs = plan(grid, args.output)
        for run in runs:
            print(shlex.join([*tool, *rank_args(args.num_gpus), *run.args]))
        # Apart from the commands, which a shell may read.
        print(estimate(runs, args.num_gpus), file=sys.stderr)
        return
    unfinished = run_grid(
        grid,
        args.output,
        num_jobs=args.jobs,
        num_gpus=args.num_gpus,
        threads=args.threads,
        retry_failed=args.retry_failed,
        rerun_changed=args.rerun_changed,
        keep=args.keep,
        executor=args.executor,
        cluster=args.slurm,
        imports=args.imports,
    )
    if unfinished:
        rows = [[str(c.run), state, why, c.folder / RUN_LOG] for c, state, why in unfinished]
        print(tabulate(rows, headers=["run", "state", "why", "log"]))
        if any(end.state == "failed" for end in unfinished):
            print("Train the failed runs again with --retry-failed.")
            sys.exit(1)
        sys.exit(STOPPED)
    make_table = "sl-make-table" if script else "tools/make_table.py"
    print(f"All {len(grid.runs)} runs are finished: {make_table} {args.output}")


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument("--config", required=True, metavar="GRID.yaml", help="file of the grid")
    parser.add_argument("--output", required=True, help="folder for all output")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands of all runs, and to stderr what they may cost on a GPU",
    )
    parser.add_argument(
        "--scale-schedule",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="multiply iterations, steps, warm-up and periods of all runs by this, e.g. by 0.25",
    )
    parser.add_argument(
        "--jobs", type=_count, help="parallel runs; default: 1 on this machine, no limit on Slurm"
    )
    parser.add_argument(
        "--num-gpus", type=_count, default=1, help="GPUs per run; on a CPU, processes per run"
    )
    parser.add_argument("--threads", type=_count, help="threads per process; default on a CPU: 1")
    parser.add_argument("--keep", choices=KEEP, default="final", help="which checkpoints to keep")
    parser.add_argument(
        "--executor",
        choices=("slurm", "local"),
        help="start runs through submitit; local starts all at once on this machine, to try it",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="submitit's parameters: partition, nodes, gpus_per_node, timeout_min, ...; not last "
        "where config options follow",
    )
    parser.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    parser.add_argument(
        "--rerun-changed", action="store_true", help="train runs again if their config changed"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="config options for all runs: KEY VALUE ..."
    )
    return run_tool(main, parser.parse_args())


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(cli())
