"""tools/train_net.py on the toy set with 64-pixel images; writes every loss to curve.jsonl.

driver.py [kill_at=ITERATION] [process_group=1] [num_gpus=N] [fork=1] [term_in_evaluation=1]
    [deterministic=1] ARGUMENTS OF train_net.py

fork=1: the ranks are forked, which saves them the imports.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch.multiprocessing

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tools"))

from sl_detectron.engine import finite  # noqa: E402
from sl_detectron.evaluation import VOCEvaluator  # noqa: E402
from sl_detectron.model_zoo import get_config_file  # noqa: E402

SMALL = ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
SMALL += ["MODEL.FPN.OUT_CHANNELS", "64"]
SMALL += ["MODEL.ROI_BOX_HEAD.FC_DIM", "32", "SOLVER.CHECKPOINT_PERIOD", "100000"]
SMALL += ["DATASETS.TEST", "()"]


def record_losses() -> None:
    check = finite.FiniteTrainer._check

    def recorded(self, losses):
        output = Path(os.environ["DRIVER_OUTPUT"])
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            with open(output / "curve.jsonl", "a") as file:
                file.write(json.dumps([self.iter, losses]) + "\n")
        if self.iter == int(os.environ["DRIVER_KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        check(self, losses)

    finite.FiniteTrainer._check = recorded


def signal_in_evaluation() -> None:
    """SIGTERM to the whole group at the first image of an evaluation, and time to act on it."""
    process = VOCEvaluator.process

    def processed(self, inputs, outputs):
        VOCEvaluator.process = process
        # By another process, as a scheduler is: its parent may end a worker.
        subprocess.run(["kill", "-TERM", "--", f"-{os.getpgrp()}"], check=False)
        time.sleep(1)
        process(self, inputs, outputs)

    VOCEvaluator.process = processed


def parse():
    words = sys.argv[1:]
    options = {"kill_at": -1, "process_group": 0, "num_gpus": 1, "term_in_evaluation": 0}
    options["deterministic"] = options["fork"] = 0
    while "=" in words[0]:
        key, _, value = words.pop(0).partition("=")
        options[key] = int(value)
    return options, words


options, words = parse()
# Here and not in main(): the processes that a launcher spawns import this file too.
record_losses()

if __name__ == "__main__":
    import train_net

    if options["process_group"]:
        os.setpgid(0, 0)
    if options["term_in_evaluation"]:
        signal_in_evaluation()
    if options["deterministic"]:
        # A warning for an operator that has no such form: not all of detectron2's have one.
        torch.use_deterministic_algorithms(True, warn_only=True)
    if options["fork"]:
        start = torch.multiprocessing.start_processes
        torch.multiprocessing.start_processes = partial(start, start_method="fork")
    torch.set_num_threads(1)
    at = words.index("--config-file") + 1
    words[at] = get_config_file(words[at])
    at = words.index("OUTPUT_DIR")
    # What ranks must know is not in their sys.argv.
    os.environ["DRIVER_OUTPUT"] = words[at + 1]
    os.environ["DRIVER_KILL_AT"] = str(options["kill_at"])
    ranks = ["--num-gpus", str(options["num_gpus"]), "--dist-url", "auto"]
    sys.argv = [sys.argv[0], *ranks, *words[:at], *SMALL, *words[at:]]
    sys.exit(train_net.cli())
