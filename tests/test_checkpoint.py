"""Checkpoints: whole or absent, read without running code, the previous one if one is damaged."""

import io
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from torch import nn

from sl_detectron.checkpoint import (
    SafeCheckpointer,
    atomic_write,
    check_checkpoint,
    last_checkpoint,
    read_checkpoint,
)


class Touch:
    """A pickle of it makes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class Shell:
    def __reduce__(self):
        return os.system, ("touch code_has_run",)


@pytest.mark.parametrize("suffix", [".pth", ".pyth", ".pkl"])
@pytest.mark.parametrize("how", ["torch", "pickle", "old_torch"])
@pytest.mark.parametrize("where", ["top", "deep"])
def test_code_is_refused_and_does_not_run(tmp_path, monkeypatch, suffix, how, where):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{suffix}"
    content = {"model": {"weight": torch.zeros(2)}, "extra": Shell()}
    content = content if where == "deep" else Shell()
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match=str(path)) as raised:
        read_checkpoint(path)
    assert len(str(raised.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_names_what_was_refused(tmp_path):
    torch.save({"model": Shell()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is refused .* a pickle with \w+\.system"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Touch("x")}))
    with pytest.raises(ValueError, match=r"a\.pkl is refused .* a pickle with pathlib"):
        read_checkpoint(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_model_zoos_pickles_of_arrays_load(tmp_path, protocol):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "zoo.pkl"
    content = {"model": {"weight": weight, "bias": weight[:, 0]}, "__author__": "a"}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    model = nn.Linear(3, 2)
    SafeCheckpointer(model).load(str(path))
    assert torch.equal(model.weight, torch.from_numpy(weight))


def test_pickles_of_tensors_and_numpy_scalars_load(tmp_path):
    """As common converters to detectron2 write them."""
    weight = torch.arange(6.0).reshape(2, 3)
    content = {"model": {"weight": weight, "bias": torch.ones(2)}, "__author__": "a"}
    path = tmp_path / "converted.pkl"
    path.write_bytes(pickle.dumps({**content, "epoch": np.float64(3)}))
    model = nn.Linear(3, 2)
    assert SafeCheckpointer(model).load(str(path))["epoch"] == 3
    assert torch.equal(model.weight, weight)


def test_code_in_a_tensor_of_a_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Storage:
        def __reduce__(self):
            buffer = io.BytesIO()
            torch.save(Shell(), buffer)
            return torch.storage._load_from_bytes, (buffer.getvalue(),)

    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Storage()}))
    with pytest.raises(ValueError, match=r"a\.pkl is refused"):
        read_checkpoint(tmp_path / "a.pkl")
    assert not (tmp_path / "code_has_run").exists()


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="this torch allows no numpy")
def test_what_a_hook_keeps_in_numpy_can_be_resumed(tmp_path):
    class Hook:
        best, history = np.float64(0.5), np.arange(3, dtype=np.int32)

        def state_dict(self):
            return {"best": self.best, "history": self.history, "name": np.str_("a")}

        def load_state_dict(self, state):
            self.loaded = state

    SafeCheckpointer(nn.Linear(3, 2), str(tmp_path), trainer=Hook()).save("model_0000001")
    hook = Hook()
    SafeCheckpointer(nn.Linear(3, 2), str(tmp_path), trainer=hook).resume_or_load("")
    assert hook.loaded["best"] == 0.5
    assert hook.loaded["history"].tolist() == [0, 1, 2]


def test_a_state_that_does_not_fit_is_no_damaged_file(tmp_path, caplog):
    for name, width in (("model_0000001", 2), ("model_0000003", 3)):
        model = nn.Linear(3, 2)
        parameters = list(model.parameters())[: width - 1]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        SafeCheckpointer(model, str(tmp_path), trainer=optimizer).save(name)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)  # as in the first one
    with pytest.raises(ValueError, match=r"model_0000003\.pth, which does not match"):
        SafeCheckpointer(model, str(tmp_path), trainer=optimizer).resume_or_load("")
    assert "going back" not in caplog.text


def test_ranks_that_cannot_read_what_the_first_one_reads_stop_all(tmp_path, monkeypatch):
    """Else each would go on from a checkpoint of its own."""
    save(tmp_path, "model_0000001", "model_0000003")
    answers = iter([[(tmp_path / "model_0000003.pth", "")] * 2, ["", "model_0000003.pth: I/O"]])
    monkeypatch.setattr(comm, "all_gather", lambda value: next(answers))
    with pytest.raises(ValueError, match=r"cannot resume: model_0000003\.pth: I/O"):
        SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).resume_or_load("")


def save(folder, *names, value=0.0):
    model = nn.Linear(3, 2)
    checkpointer = SafeCheckpointer(model, str(folder))
    for i, name in enumerate(names):
        nn.init.constant_(model.weight, value + i)
        checkpointer.save(name, iteration=i)
    return checkpointer


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "absent", "zeros at the end"])
def test_a_damaged_last_checkpoint_makes_way_for_the_one_before(tmp_path, damage, caplog):
    save(tmp_path, "model_0000001", "model_0000003", "model_0000005")
    last = tmp_path / "model_0000005.pth"
    data = last.read_bytes()
    damaged = {"cut": data[: len(data) // 2], "empty": b"", "noise": b"no" * 99}
    damaged["zeros at the end"] = data[:-200] + bytes(200)
    last.unlink() if damage == "absent" else last.write_bytes(damaged[damage])
    model = nn.Linear(3, 2)
    with caplog.at_level("WARNING", logger="sl_detectron"):
        extra = SafeCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert extra["iteration"] == 1
    assert model.weight[0, 0].item() == 1.0
    assert damage == "absent" or "falling back to the checkpoint before it" in caplog.text


def test_resumes_without_a_pointer(tmp_path):
    """Killed after the checkpoint was renamed, before the pointer was."""
    save(tmp_path, "model_0000001", "model_0000003")
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "model_best.pth").write_bytes(b"another one")
    checkpointer = SafeCheckpointer(nn.Linear(3, 2), str(tmp_path))
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1


def test_the_final_checkpoint_of_a_shorter_training_is_not_the_newest(tmp_path):
    save(tmp_path, "model_final", "model_0000007", "model_0000009")
    (tmp_path / "model_0000009.pth").write_bytes(b"")
    extra = SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).resume_or_load("", resume=True)
    assert extra["iteration"] == 1


@pytest.mark.parametrize("name", ["../other/model_0000003", "model_best", "model_final"])
def test_makes_no_other_checkpoint_the_final_one(tmp_path, name):
    folder, other = tmp_path / "own", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    save(folder, "model_final", "model_0000003", name)
    (folder / "last_checkpoint").write_text(f"{name}.pth")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    checkpointer = SafeCheckpointer(nn.Linear(3, 2), str(folder))
    checkpointer.resume_or_load("", resume=True)
    checkpointer.complete()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_makes_no_earlier_checkpoint_the_final_one(tmp_path):
    save(tmp_path, "model_0000001")
    checkpointer = SafeCheckpointer(nn.Linear(3, 2), str(tmp_path))
    checkpointer.resume_or_load("", resume=True)
    checkpointer.save("model_final", iteration=3)
    checkpointer.complete()
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 3


def test_does_not_start_anew_where_no_checkpoint_can_be_read(tmp_path):
    save(tmp_path, "model_0000001", "model_final")
    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot resume: .*model_final\.pth.*model_0000001\.pth"):
        SafeCheckpointer(nn.Linear(3, 2), str(tmp_path)).resume_or_load("", resume=True)


def test_what_a_killed_process_left_is_removed(tmp_path):
    save(tmp_path, "model_0000001")
    half, other = tmp_path / ".model_0000003.pth.tmp", tmp_path / ".notes.tmp"
    half.write_bytes(b"half")
    other.touch()
    model = nn.Linear(3, 2)
    # An evaluation, and a training that starts anew, may run beside the one that writes it.
    SafeCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    trainer = torch.optim.SGD(model.parameters(), lr=0.1)
    SafeCheckpointer(model, str(tmp_path), trainer=trainer).resume_or_load("", resume=False)
    assert half.exists()
    SafeCheckpointer(model, str(tmp_path), trainer=trainer).resume_or_load("", resume=True)
    assert [p.name for p in tmp_path.glob(".*")] == [other.name]


@pytest.fixture
def small_files():
    """No file of this process can grow over 4096 bytes; a write says so, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_takes_no_checkpoint_along(tmp_path, small_files):
    checkpointer = save(tmp_path, "model_0000001")
    checkpointer.model = nn.Linear(100, 100)
    with pytest.raises(OSError, match=r"cannot write \S*model_0000003\.pth: \S") as raised:
        checkpointer.save("model_0000003")
    assert len(str(raised.value).splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    read_checkpoint(tmp_path / "model_0000001.pth")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write \S*model\.pth: Not a directory"):
        save(tmp_path / "file", "model")


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_system_that_cannot_flush_a_folder_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError("Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_the_last_checkpoint_of_a_run_is_the_one_to_go_on_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the output of a training run"):
        last_checkpoint(tmp_path)
    checkpointer = save(tmp_path, "model_final", "model_0000001", "model_0000003")
    assert str(last_checkpoint(tmp_path)) == checkpointer.get_checkpoint_file()
    assert last_checkpoint(tmp_path).name == "model_0000003.pth"
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert last_checkpoint(tmp_path).name == "model_0000001.pth"
    for path in tmp_path.glob("model_0*"):
        path.unlink()
    assert last_checkpoint(tmp_path).name == "model_final.pth"


def test_addresses_and_no_weights_are_left_to_what_loads_them(tmp_path):
    (tmp_path / "zoo.pkl").touch()
    for path in ("", None, "detectron2://a.pkl", f"{tmp_path}/zoo.pkl?matching_heuristics=True"):
        check_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"^KEY: there is no checkpoint nowhere\.pth$"):
        check_checkpoint("nowhere.pth", "KEY")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint \S*nowhere\.pth"):
        SafeCheckpointer(nn.Linear(3, 2)).load(str(tmp_path / "nowhere.pth"))
