"""The toy set: real digits, disjoint splits, the same for a seed, complete or absent."""

import filecmp
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from sl_detectron.data import load_voc_dataset, make_toy_dataset, toy
from sl_detectron.data.toy import TOY_CLASS_NAMES, register_toy_datasets

FEW = {"train": 10, "test": 10}


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    return make_toy_dataset(tmp_path_factory.mktemp("toy") / "digits")


def test_loads_as_a_voc_devkit(whole_set):
    for split, num_images in toy.TOY_SPLITS.items():
        records = load_voc_dataset(whole_set, split, TOY_CLASS_NAMES)
        assert len(records) == num_images
        for record in records:
            assert record["annotations"]
            for annotation in record["annotations"]:
                x0, y0, x1, y1 = annotation["bbox"]
                assert annotation["bbox_mode"] == BoxMode.XYXY_ABS
                assert 0 <= x0 < x1 <= record["width"]
                assert 0 <= y0 < y1 <= record["height"]


def test_boxes_hold_the_ink(whole_set):
    """Digits are dark on a light ground: inside a box it is darker than around it."""
    for record in load_voc_dataset(whole_set, "train", TOY_CLASS_NAMES)[:20]:
        grey = np.asarray(Image.open(record["file_name"]).convert("L"), float)
        outside = np.ones(grey.shape, bool)
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = map(int, annotation["bbox"])
            outside[y0:y1, x0:x1] = False
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = map(int, annotation["bbox"])
            assert np.percentile(grey[y0:y1, x0:x1], 10) < np.percentile(grey[outside], 1)


def test_splits_share_no_digit(monkeypatch, tmp_path):
    drawn = {}
    compose = toy._compose

    def spy(rng, digits, labels, pool):
        drawn.setdefault(len(pool), set()).update(pool.tolist())
        return compose(rng, digits, labels, pool)

    monkeypatch.setattr(toy, "_compose", spy)
    monkeypatch.setattr(toy, "TOY_SPLITS", FEW)
    make_toy_dataset(tmp_path / "digits")
    train, test = drawn.values()
    assert not train & test
    assert len(train | test) == 1797


def test_same_seed_same_files(whole_set, tmp_path, monkeypatch):
    """The first images of each split, whatever its length."""
    monkeypatch.setattr(toy, "TOY_SPLITS", FEW)
    again = make_toy_dataset(tmp_path / "again")
    other = make_toy_dataset(tmp_path / "other", seed=1)
    names = [f"JPEGImages/train_{i:04d}.jpg" for i in range(10)]
    names += [f"Annotations/test_{i:04d}.xml" for i in range(10)]
    assert filecmp.cmpfiles(whole_set, again, names, shallow=False)[0] == names
    assert filecmp.cmpfiles(whole_set, other, names, shallow=False)[1] == names


def test_complete_or_absent(monkeypatch, tmp_path):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(toy, "_write_xml", fail)
    with pytest.raises(OSError, match="disk full"):
        make_toy_dataset(tmp_path / "digits")
    assert os.listdir(tmp_path) == []


def test_refuses_to_overwrite(whole_set):
    with pytest.raises(FileExistsError, match="remove it"):
        make_toy_dataset(whole_set)


def test_registered_set_is_made_when_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(toy, "TOY_SPLITS", {"train": 4, "test": 3})
    register_toy_datasets(tmp_path / "made", prefix="toy_when_loaded")
    try:
        assert not (tmp_path / "made").exists()
        assert len(DatasetCatalog.get("toy_when_loaded_train")) == toy.TOY_SPLITS["train"]
        metadata = MetadataCatalog.get("toy_when_loaded_test")
        assert metadata.thing_classes == list(TOY_CLASS_NAMES)
    finally:
        for split in toy.TOY_SPLITS:
            DatasetCatalog.remove(f"toy_when_loaded_{split}")
            MetadataCatalog.remove(f"toy_when_loaded_{split}")
