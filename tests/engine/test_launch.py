"""Several processes: one state, equal to one process with the same batch; a dead one ends all."""

import argparse
import atexit
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from helpers.detectors import build, make_batch, on_resnet_18, run_ranks, small_config
from helpers.forked import CONTEXT, start_server
from helpers.trainings import RETINANET, start, wait_for_iteration
from sl_detectron.data import TrainLoader
from sl_detectron.engine.finite import FiniteTrainer
from sl_detectron.engine.launch import setup_job
from sl_detectron.engine.resume import any_rank
from sl_detectron.engine.trainer import distribute

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

NUM_STEPS = 3
# One of four images has no object: with four ranks, that is the whole batch of one.
NUM_OBJECTS = (3, 0, 1, 4)


def config():
    """A detector whose losses are sums over images: no batch statistics, RoIs up to the limit."""
    cfg = on_resnet_18(small_config("standard", superloss=True))
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.SUPERLOSS.CLS.TAU = "ExpAvg"
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    return cfg


def train(folder: Path) -> None:
    """Some steps of all images, by as many ranks as there are; saves what each has in the end."""
    torch.set_num_threads(1)
    rank, world_size = comm.get_rank(), comm.get_world_size()
    model = build(config())
    # Sampling of RoIs must not depend on the rank: the first ones instead of random ones.
    torch.randperm = lambda n, **kwargs: torch.arange(n, device=kwargs.get("device"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = [make_batch(NUM_OBJECTS, seed=step)[rank::world_size] for step in range(NUM_STEPS)]
    trainer = FiniteTrainer(distribute(model), batches, optimizer)
    trainer.train(0, NUM_STEPS)
    torch.save(model.state_dict(), folder / f"{rank}_of_{world_size}.pt")


@pytest.mark.parametrize("num", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_end_with_the_weights_of_one_process(tmp_path, num):
    run_ranks(train, num, tmp_path)
    # Not in this process: it changes torch.
    start_server()
    alone = CONTEXT.Process(target=train, args=(tmp_path,))
    alone.start()
    alone.join()
    assert alone.exitcode == 0
    one = torch.load(tmp_path / "0_of_1.pt", weights_only=True)
    states = [torch.load(tmp_path / f"{r}_of_{num}.pt", weights_only=True) for r in range(num)]
    assert any(key.endswith("threshold.mean") for key in one)
    for key, value in one.items():
        for state in states[1:]:
            assert torch.equal(state[key], states[0][key]), key
        torch.testing.assert_close(states[0][key], value, rtol=1e-4, atol=1e-5, msg=key)


def positions(folder: Path, num_batches: int) -> None:
    records = [{"image_id": i, "width": 2, "height": 1 + i % 3} for i in range(20)]
    torch.set_num_threads(1)
    loader = TrainLoader(
        records, lambda r: (r["image_id"], torch.rand(()).item()), 4, aspect_ratio_grouping=False,
        seed=7,
    )  # fmt: skip
    batches = [batch for batch, _ in zip(loader, range(num_batches))]
    torch.save(batches, folder / f"{comm.get_rank()}_of_{comm.get_world_size()}.pt")


def test_ranks_share_the_batches_and_augmentations_of_one_process(tmp_path):
    positions(tmp_path, 6)
    run_ranks(positions, 2, tmp_path, 6)
    one = torch.load(tmp_path / "0_of_1.pt", weights_only=True)
    ranks = [torch.load(tmp_path / f"{r}_of_2.pt", weights_only=True) for r in range(2)]
    for whole, *parts in zip(one, *ranks):
        assert sorted(whole) == sorted(sample for part in parts for sample in part)


def nan_on_one_rank(folder: Path) -> None:
    torch.set_num_threads(1)

    class Diverges(torch.nn.Linear):
        def forward(self, batch):
            bad = comm.get_rank() == 1
            loss = super().forward(torch.ones(1)).sum()
            return {"loss_good": loss, "loss_bad": loss * (float("nan") if bad else 1)}

    model = Diverges(1, 1)
    trainer = FiniteTrainer(distribute(model), [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    before = model.weight.detach().clone()
    try:
        trainer.train(0, 1)
    except FloatingPointError as error:
        (folder / f"{comm.get_rank()}.txt").write_text(str(error))
    assert torch.equal(model.weight, before)


def test_a_nan_on_one_rank_stops_all_with_its_report(tmp_path):
    run_ranks(nan_on_one_rank, 2, tmp_path)
    reports = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert reports[0] == reports[1]
    assert re.match(r"iteration 0, rank 1: loss_bad is nan; images", reports[0])
    assert "loss_good" not in reports[0]


class Notes:
    """Writes a file when it is deleted: kept in sys.modules, as the interpreter is torn down."""

    def __init__(self, path: Path):
        self.write = os.write  # os is torn down, too
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT)

    def __del__(self):
        self.write(self.file, b"torn down")


def end_as(folder: Path, end: str) -> None:
    rank = comm.get_rank()
    sys.modules["notes"] = Notes(folder / f"{rank}_deleted")
    atexit.register((folder / f"{rank}_handler").write_text, "called")
    atexit.register(sys.stdout.write, f"said {rank}\n")
    if end != "done" and rank == 0:
        time.sleep(3600)  # until the launcher ends it
    if end == "stopped":
        sys.exit(143)
    if end == "diverged":
        raise FloatingPointError("loss_cls is nan")


@pytest.mark.parametrize("end", ["done", "stopped", "diverged"])
def test_ranks_end_before_the_interpreter_is_torn_down(tmp_path, capfd, end):
    """In which gloo's threads may abort a process that has done all its work."""
    if end == "done":
        run_ranks(end_as, 2, tmp_path, end, torn_down=True)
    else:
        with pytest.raises(SystemExit) as ended:
            run_ranks(end_as, 2, tmp_path, end, debug=False, torn_down=True)
        assert ended.value.code == {"stopped": 143, "diverged": 2}[end]
    printed = capfd.readouterr().out
    for rank in (0, 1) if end == "done" else (1,):
        assert f"said {rank}" in printed
        assert (tmp_path / f"{rank}_handler").read_text() == "called"
        assert (tmp_path / f"{rank}_deleted").read_text() == ""


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_dies_stops_the_others(tmp_path, toy_env, victim):
    process = start(toy_env, RETINANET, tmp_path, "SOLVER.MAX_ITER", 10_000, num_gpus=2, fork=1)
    wait_for_iteration(process, tmp_path, 2)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[victim], signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == 2, printed
    line = printed.strip().splitlines()[-1]
    assert re.search(r"error: rank \d (was killed by SIGKILL|lost)", line), printed
    assert not any(is_alive(pid) for pid in ranks)


def children(pid: int) -> list[int]:
    """The ranks of a launcher, in the order of their start."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def silent_rank(folder: Path) -> None:
    if comm.get_rank() == 1:
        (folder / "asleep").touch()
        time.sleep(3600)
    any_rank(True)


def test_a_rank_that_hangs_is_waited_for_no_longer_than_the_timeout(tmp_path):
    with pytest.raises(Exception, match=r"(?i)timed? ?out"):
        run_ranks(silent_rank, 2, tmp_path, timeout=5)
    # From where the rank hangs: to start the processes takes as long as it takes.
    waited = time.time() - (tmp_path / "asleep").stat().st_mtime
    assert 4 < waited < 30


def test_the_log_file_keeps_the_traceback_that_the_console_leaves_out(tmp_path, capsys):
    cfg = small_config("standard", superloss=True)
    cfg.OUTPUT_DIR = str(tmp_path)
    setup_logger.cache_clear()
    parent = logging.getLogger("detectron2")
    before, parent.handlers = parent.handlers, []
    try:
        setup_job(cfg, argparse.Namespace(debug=False, config_file="", opts=[]))
        try:
            raise ValueError("a bug\nof two lines")
        except ValueError:
            logging.getLogger("detectron2.engine.train_loop").exception("Exception during %s:", "a")
    finally:
        parent.handlers = before
        setup_logger.cache_clear()
    printed = "".join(capsys.readouterr())
    assert "Traceback" not in printed
    assert "Exception during a: a bug of two lines" in printed
    assert "Traceback" in (tmp_path / "log.txt").read_text()
