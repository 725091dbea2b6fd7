"""The training loader: what it keeps in memory, other data after a resume, broken images."""

import gc
import logging
import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.samplers import InferenceSampler
from PIL import Image

from sl_detectron.data import TrainLoader


class Record(dict):
    """A record that can be watched."""


def test_records_do_not_stay_in_memory_beside_their_copy():
    records = [Record(image_id=0, width=2, height=1)]
    seen = weakref.ref(records[0])
    loader = TrainLoader(records, lambda r: r, 1, seed=0)
    del records
    gc.collect()
    assert seen() is None
    assert next(iter(loader))[0]["image_id"] == 0


@pytest.mark.parametrize("change", ["labels", "aspect_ratio_grouping", "sampler"])
def test_a_resume_on_other_data_warns(change, caplog):
    caplog.set_level(logging.WARNING)

    def loader(changed=False, **options):
        records = [{"image_id": i, "width": 2, "height": 1} for i in range(4)]
        if changed and change == "aspect_ratio_grouping":
            options["aspect_ratio_grouping"] = False
        if changed and change == "sampler":
            options["make_sampler"] = lambda seed: InferenceSampler(4)
        made = TrainLoader(records, lambda r: r, 2, seed=0, **options)
        made.annotations = SimpleNamespace(fingerprint=8 if changed and change == "labels" else 7)
        return made

    loader().load_state_dict(loader().state_dict())
    assert not caplog.records
    loader(changed=True).load_state_dict(loader().state_dict())
    assert f"{change} was" in caplog.text


def test_a_broken_image_is_skipped_by_a_key(tmp_path, caplog):
    """In its place comes another one, the same in every run."""
    records = make_images(tmp_path)
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")

    def ids(**options):
        loader = TrainLoader(records, mapper, 2, seed=0, **options)
        return [[s["image_id"] for s in batch] for batch, _ in zip(loader, range(6))]

    with pytest.raises(ValueError, match=r"image 2, \S*2\.png: .*BROKEN_IMAGES"):
        ids()
    first = ids(broken_images="skip")
    assert first == ids(broken_images="skip", num_workers=2)
    seen = {i for batch in first for i in batch}
    assert seen == {0, 1, 3, 4}
    assert len(re.findall(r"Skipped image 2", caplog.text)) == 1


def test_nothing_but_broken_images_ends_in_an_error(tmp_path):
    records = make_images(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    loader = TrainLoader(records, mapper, 2, seed=0, broken_images="skip")
    message = "10 images in a row could not be used; the last: .*; repair the images$"
    with pytest.raises(ValueError, match=message) as caught:
        next(iter(loader))
    assert "BROKEN_IMAGES" not in str(caught.value)


def make_images(folder):
    for i in range(5):
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    record = {"width": 32, "height": 32, "annotations": []}
    return [{**record, "image_id": i, "file_name": str(folder / f"{i}.png")} for i in range(5)]


def test_a_resumed_loader_takes_over_the_seed():
    """Also a drawn one, which no config holds."""
    records = [{"image_id": i, "width": 2, "height": 1} for i in range(20)]

    def batches(loader):
        return [batch for batch, _ in zip(loader, range(4))]

    first, other = (TrainLoader(records, lambda r: r["image_id"], 4, seed=s) for s in (5, 6))
    state = first.state_dict()
    expected = batches(first)
    assert batches(TrainLoader(records, lambda r: r["image_id"], 4, seed=6)) != expected
    other.load_state_dict(state)
    assert batches(other) == expected
