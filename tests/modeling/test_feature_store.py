"""A store gives back what was written, or nothing; and keeps to its limit."""

import multiprocessing
import os

import pytest
import torch

from sl_detectron.modeling.feature_store import FeatureStore

FEATURES = [torch.arange(12.0).view(1, 3, 2, 2), torch.full((1, 5, 1, 1), 1 / 3)]
# Bytes of their file: a head and 17 numbers.
SIZE = 512 + 17 * 4


def key_of(number):
    return FeatureStore.key(torch.full((1, 3, 2, 2), float(number)))


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_key_is_of_shape_and_every_bit():
    image = torch.zeros(1, 3, 2, 4)
    others = [torch.zeros(1, 3, 4, 2), torch.zeros(3, 2, 4), -image]
    others += [image.index_put((*torch.tensor([[0], [2], [1], [3]]),), torch.tensor(1e-45))]
    keys = {FeatureStore.key(x) for x in [image, *others]}
    assert len(keys) == 5
    assert FeatureStore.key(image.mT.contiguous().mT) == FeatureStore.key(image)


def test_what_is_written_is_read_in_another_process(tmp_path):
    FeatureStore(tmp_path / "a" / "b", 2**20).write("trunk", key_of(0), FEATURES)
    other = FeatureStore(tmp_path / "a" / "b", 2**20)
    for ours, expected in zip(other.read("trunk", key_of(0)), FEATURES, strict=True):
        assert torch.equal(ours, expected)
    assert other.read("trunk", key_of(1)) is None
    assert other.read("other", key_of(0)) is None


DAMAGE = {
    "cut": lambda content: content[:-1],
    "cut in the head": lambda content: content[:100],
    "empty": lambda content: b"",
    "a bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "foreign": lambda content: os.urandom(len(content)),
    "another head": lambda content: b"[1]".ljust(512) + content[512:],
    "another shape": lambda content: content.replace(b"[1, 3, 2, 2]", b"[1, 3, 2, 3]"),
    "another trunk": lambda content: content.replace(b'"trunk"', b'"krunt"'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_named_and_replaced(kind, tmp_path, caplog):
    store = FeatureStore(tmp_path, 2**20)
    store.write("trunk", key_of(0), FEATURES)
    (path,) = files(tmp_path)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    assert store.read("trunk", key_of(0)) is None
    assert f"{path} is computed again" in caplog.text
    store.write("trunk", key_of(0), FEATURES)
    assert torch.equal(store.read("trunk", key_of(0))[1], FEATURES[1])


def test_a_full_store_is_read_and_grows_no_more(tmp_path, caplog):
    first, second = (FeatureStore(tmp_path, 2.5 * SIZE) for _ in range(2))
    first.write("trunk", key_of(0), FEATURES)
    second.write("other", key_of(1), FEATURES)
    for number in (2, 3):
        second.write("trunk", key_of(number), FEATURES)
        assert second.read("trunk", key_of(number)) is None
    assert [p.stat().st_size for p in files(tmp_path)] == [SIZE, SIZE]
    assert second.read("trunk", key_of(0)) is not None
    assert caplog.text.count("is full; raise its limit") == 1


def test_other_processes_count(tmp_path, monkeypatch):
    """The folder is read again while it is filled."""
    monkeypatch.setattr("sl_detectron.modeling.feature_store._BYTES_BETWEEN_LOOKS", SIZE)
    stores = [FeatureStore(tmp_path, 4 * SIZE) for _ in range(2)]
    for number in range(10):
        stores[number % 2].write("trunk", key_of(number), FEATURES)
    assert len(files(tmp_path)) == 4


def test_the_size_is_logged(tmp_path, caplog):
    FeatureStore(tmp_path, 2**30).write("trunk", key_of(0), [torch.zeros(1, 2**22)])
    with caplog.at_level("INFO"):
        FeatureStore(tmp_path, 2**31).read("trunk", key_of(1))
    assert f"{tmp_path}: 0.02 of at most 2.00 GiB; 1 images of trunk-float32" in caplog.text


def test_what_a_killed_process_left_is_removed(tmp_path):
    old, new = tmp_path / ".x.tmp", tmp_path / ".y.tmp"
    old.write_text("")
    new.write_text("")
    os.utime(old, (0, 0))
    FeatureStore(tmp_path, 2**20).read("trunk", key_of(0))
    assert files(tmp_path) == [new]


def test_a_failing_disk_stops_nothing(tmp_path, caplog, monkeypatch):
    store = FeatureStore(tmp_path, 2**20)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        store.write("trunk", key_of(0), FEATURES)
    store.write("trunk", key_of(1), FEATURES)
    assert caplog.text.count("No space left on device") == 1
    assert not files(tmp_path)


def _fill(folder, numbers):
    store = FeatureStore(folder, 2**24)
    for number in numbers:
        features = [torch.full((1, 1000), float(number))]
        store.write("trunk", key_of(number), features)
        found = store.read("trunk", key_of(number))
        assert found is not None
        assert torch.equal(found[0], features[0])


def test_processes_share_a_folder(tmp_path):
    """Four write and read the same files at once; each read finds whole ones."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(tmp_path, [*range(20)] * 5)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(files(tmp_path)) == 20
