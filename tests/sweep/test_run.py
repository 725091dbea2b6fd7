"""The process of one run: its lock, its result and what it removes."""

import argparse
import contextlib
import subprocess
import sys
import threading

import pytest
from detectron2.config import CfgNode

from sl_detectron.sweep import run as run_module


@pytest.mark.parametrize("full_disk", [True, False])
def test_checkpoints_go_only_when_the_result_is_there(full_disk, tmp_path, monkeypatch):
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path)})
    args = argparse.Namespace(keep="none", resume=False, first_round=None)

    def train_net(cfg, args, after_round):
        for name in ("model_0000001.pth", "model_final.pth", "last_checkpoint"):
            (tmp_path / name).touch()
        return {"bbox": {}}

    def write_json(path, data):
        if path.name == "result.json":
            raise OSError("no space left")

    monkeypatch.setattr(run_module, "train_net", train_net)
    if full_disk:
        monkeypatch.setattr(run_module, "write_json", write_json)
    with pytest.raises(OSError, match="no space") if full_disk else contextlib.nullcontext():
        run_module.train_run(cfg, args)
    left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    kept = {"model_0000001.pth", "model_final.pth", "last_checkpoint"}
    assert left == (kept if full_disk else {"result.json", "begun.json"})


def test_waits_for_who_trains_in_the_folder_and_takes_over_when_it_is_killed(
    tmp_path, monkeypatch, capsys
):
    """The file stays behind, the lock does not."""
    monkeypatch.setattr(run_module, "LOCK_POLL", 0.05)
    holds = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", holds, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        # So that the other one holds the lock for some of our tries.
        threading.Timer(0.5, other.kill).start()
        with run_module._locked(tmp_path):
            assert other.wait() < 0
    assert (tmp_path / ".lock").exists()
    assert capsys.readouterr().out.count("Waiting for another process that trains in") == 1


@pytest.mark.parametrize("keep", ["none", "final"])
def test_rounds_of_label_correction(tmp_path, monkeypatch, keep):
    """A run that is killed in its first round goes on there; then its checkpoints go too."""
    cfg = CfgNode({"OUTPUT_DIR": str(tmp_path)})
    args = argparse.Namespace(keep=keep, resume=False, first_round=None)
    resumed = []
    names = {"model_0000001.pth", "model_final.pth", "last_checkpoint"}

    def train_net(cfg, args, after_round):
        resumed.append(args.resume)
        (tmp_path / "round_0").mkdir(exist_ok=True)
        (tmp_path / "round_0" / "class_targets.pth").touch()
        for folder in (tmp_path / "round_1", tmp_path):
            folder.mkdir(exist_ok=True)
            for name in names:
                (folder / name).touch()
            if len(resumed) == 1:
                raise KeyboardInterrupt
        return {"bbox": {}}

    monkeypatch.setattr(run_module, "train_net", train_net)
    with pytest.raises(KeyboardInterrupt):
        run_module.train_run(cfg, args)
    run_module.train_run(cfg, args)
    assert resumed == [False, True]
    kept = names - {"model_0000001.pth"} if keep == "final" else set()
    for folder in (tmp_path / "round_1", tmp_path):
        assert names & {path.name for path in folder.iterdir()} == kept
    # An estimate before the first round has no checkpoint, and stays.
    assert (tmp_path / "round_0" / "class_targets.pth").is_file()
