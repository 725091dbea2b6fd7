"""A training that is killed or told to stop goes on as if it had never been."""

import os
import signal
import time

import pytest
import torch

from helpers.trainings import (
    FASTER_RCNN,
    RETINANET,
    assert_equal,
    curve,
    few_test_images,
    run,
    start,
    wait_for_iteration,
)

NUM_ITERS = 8


def assert_checkpoints_are_whole(output):
    for path in output.glob("*.pth"):
        assert "model" in torch.load(path, weights_only=True)
    assert not list(output.glob(".*.tmp"))


FAST = ("SOLVER.AMP.ENABLED", True, "MODEL.ROI_HEADS.MATRIX_ROI_ALIGN", True)


@pytest.mark.parametrize(
    ("config", "ranks", "more"),
    [
        (FASTER_RCNN, 1, ()),
        (FASTER_RCNN, 2, ()),
        (FASTER_RCNN, 1, FAST),
        pytest.param(RETINANET, 1, (), marks=pytest.mark.long),
        pytest.param(RETINANET, 2, FAST, marks=pytest.mark.long),
    ],
)
def test_resumed_losses_equal_the_uninterrupted_ones(toy_env, tmp_path, config, ranks, more):
    """Bit for bit: crops, flips, an evaluation on the way, corrected labels, other workers."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    opts = ["SOLVER.MAX_ITER", NUM_ITERS, "INPUT.CROP.ENABLED", True]
    opts += ["INPUT.RANDOM_FLIP", "horizontal", "TEST.EVAL_PERIOD", 4]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 4, *few_test_images(toy_env), *more]
    opts += ["MODEL.SUPERLOSS.CORRECTION.START", 0.25, "MODEL.SUPERLOSS.CORRECTION.PERIOD", 2]
    code, printed = run(toy_env, config, whole, *opts, num_gpus=ranks, fork=1)
    assert code == 0, printed
    code, printed = run(toy_env, config, parts, *opts, kill_at=5, num_gpus=ranks, fork=1)
    # A rank that is killed is reported by the launcher.
    assert code == (-signal.SIGKILL if ranks == 1 else 2), printed
    assert max(curve(parts)) == 5
    opts += ["DATALOADER.NUM_WORKERS", 1]
    # As a user resumes: in an interpreter with another hash seed. Once; test_long_run.py has
    # one for a single process too.
    env = {**toy_env, "PYTHONHASHSEED": "7"}
    how = {"resume": True, "num_gpus": ranks, "fork": 1, "fresh": ranks == 2}
    code, printed = run(env, config, parts, *opts, **how)
    assert code == 0, printed
    assert "Starting training from iteration 4" in printed
    assert curve(parts) == curve(whole)
    final = [torch.load(p / "model_final.pth", weights_only=True) for p in (whole, parts)]
    assert_equal(*final)


@pytest.mark.parametrize(("final", "ranks"), [("absent", 1), ("of a shorter training", 2)])
def test_a_kill_between_the_last_two_checkpoints_loses_neither(toy_env, tmp_path, final, ranks):
    """They are written one after the other, and the second is the one that users look for."""
    opts = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, *few_test_images(toy_env)]
    code, printed = run(toy_env, RETINANET, tmp_path, *opts, num_gpus=ranks, fork=1)
    assert code == 0, printed
    path = tmp_path / "model_final.pth"
    whole = torch.load(path, weights_only=True)
    path.unlink()
    if final != "absent":
        (tmp_path / "model_0000001.pth").rename(path)
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    code, printed = run(toy_env, RETINANET, tmp_path, *opts, resume=True, num_gpus=ranks, fork=1)
    assert code == 0, printed
    assert max(curve(tmp_path)) == 3
    assert_equal(torch.load(path, weights_only=True), whole)
    assert (tmp_path / "last_checkpoint").read_text() == path.name


def test_the_checkpoint_has_every_running_state(toy_env, tmp_path):
    code, printed = run(toy_env, RETINANET, tmp_path, "SOLVER.MAX_ITER", 2)
    assert code == 0, printed
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    state = checkpoint["trainer"]["hooks"]["ResumeState"]
    (rank,) = state["ranks"]
    assert {"python", "numpy", "torch"} <= rank["rng"].keys()
    (normalizer,) = rank["normalizers"].values()
    assert normalizer != 100  # detectron2's initial value
    assert any(key.endswith("threshold.mean") for key in checkpoint["model"])
    assert checkpoint["annotation_tracker"]["sums"].sum() > 0


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), 2])
def test_sigterm_ends_a_training_with_a_checkpoint(toy_env, tmp_path, workers):
    """Of the step that it was in; the whole process group is told, as schedulers do."""
    opts = ["SOLVER.MAX_ITER", 10_000, "DATALOADER.NUM_WORKERS", workers]
    process = start(toy_env, RETINANET, tmp_path, *opts, fresh=True, process_group=1)
    wait_for_iteration(process, tmp_path, 3)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate()
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    (path,) = tmp_path.glob("*.pth")
    last = max(curve(tmp_path))
    assert path.name == f"model_{last:07d}.pth" == (tmp_path / "last_checkpoint").read_text()
    assert_checkpoints_are_whole(tmp_path)
    code, printed = run(toy_env, RETINANET, tmp_path, "SOLVER.MAX_ITER", last + 2, resume=True)
    assert code == 0, printed
    assert f"Starting training from iteration {last + 1}" in printed


def test_sigterm_in_an_evaluation_counts_after_it(toy_env, tmp_path):
    """The whole group is told, with detectron2's own test loader and its two workers."""
    opts = ["SOLVER.MAX_ITER", 10_000, "DATALOADER.NUM_WORKERS", 2, "TEST.EVAL_PERIOD", 2]
    code, printed = run(
        *(toy_env, RETINANET, tmp_path, *opts, *few_test_images(toy_env)),
        fresh=True,
        process_group=1,
        term_in_evaluation=1,
    )
    assert code == 143, printed
    assert "Traceback" not in printed
    # The first is from before the evaluation, which may have failed.
    names = ["model_0000001.pth", "model_0000002.pth"]
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == names
    assert (tmp_path / "last_checkpoint").read_text() == names[1]
    assert '"bbox/AP50"' in (tmp_path / "metrics.json").read_text()


def test_sigterm_to_the_launcher_stops_all_ranks_at_one_step(toy_env, tmp_path):
    opts = ["SOLVER.MAX_ITER", 10_000, "DATALOADER.NUM_WORKERS", 0]
    process = start(toy_env, RETINANET, tmp_path, *opts, num_gpus=2)
    wait_for_iteration(process, tmp_path, 3)
    process.terminate()
    printed, _ = process.communicate()
    assert process.returncode == 143, printed
    assert "Traceback" not in printed
    (path,) = tmp_path.glob("*.pth")
    state = torch.load(path, weights_only=True)["trainer"]
    ranks = state["hooks"]["ResumeState"]["ranks"]
    assert len(ranks) == 2
    assert ranks[0]["normalizers"] != ranks[1]["normalizers"]  # each of its own images
    assert_checkpoints_are_whole(tmp_path)


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_and_resumed(toy_env, tmp_path, num_kills):
    """SIGKILL after a random time, again and again: nothing is half-written, nothing is lost."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    num_iters = 6 * num_kills
    opts = ["SOLVER.MAX_ITER", num_iters, "SOLVER.CHECKPOINT_PERIOD", 2]
    code, printed = run(toy_env, RETINANET, whole, *opts)
    assert code == 0, printed
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_kills):
        seen = len((parts / "curve.jsonl").read_text().splitlines()) if parts.exists() else 0
        process = start(toy_env, RETINANET, parts, *opts, resume=True)
        wait_for_iteration(process, parts, seen + 1)
        time.sleep(float(torch.rand((), generator=generator)) / 2)
        process.kill()
        process.communicate()
        for path in parts.glob("*.pth"):
            assert "model" in torch.load(path, weights_only=True)
        pointer = parts / "last_checkpoint"
        assert not pointer.exists() or (parts / pointer.read_text()).is_file()
    code, printed = run(toy_env, RETINANET, parts, *opts, resume=True)
    assert code == 0, printed
    assert curve(parts) == curve(whole)
    assert_checkpoints_are_whole(parts)
