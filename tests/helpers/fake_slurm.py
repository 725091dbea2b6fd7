#!/usr/bin/env python3
"""sbatch, srun, sacct and scancel by the name it is called by, all nodes being this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

JOB_ID = "4242"


def sbatch(script: str) -> None:
    nodes = int(re.search(r"#SBATCH --nodes=(\d+)", Path(script).read_text())[1])
    own = {
        "SLURM_JOB_ID": JOB_ID,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NTASKS": str(nodes),
        "SLURM_JOB_NODELIST": ",".join(["localhost"] * nodes),
    }
    silent = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    subprocess.Popen(["bash", script], env={**os.environ, **own}, start_new_session=True, **silent)
    print(f"Submitted batch job {JOB_ID}")


def srun(*args: str) -> None:
    start = next(i for i, arg in enumerate(args) if "python" in arg)
    tasks = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        own = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0"}
        tasks.append(subprocess.Popen(args[start:], env={**os.environ, **own}))
    sys.exit(max(task.wait() for task in tasks))


def sacct(*args: str) -> None:
    print("JobID|State|NodeList")  # it does not know the job yet


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "sacct": sacct}[Path(sys.argv[0]).name](*sys.argv[1:])
