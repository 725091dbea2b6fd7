"""Datasets are read once in a run."""

import json

import pytest
from detectron2.data.datasets import register_coco_instances

from helpers.audit_cases import CLASSES, IMAGES, write_coco, write_devkit
from sl_detectron.data import datasets, register_voc_dataset


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_a_checked_set_is_read_once(tmp_path, kind):
    """The loader takes what the check has read, once, and not after a change of a file."""
    name, file = f"read_once_{kind}", tmp_path / "set.json"
    if kind == "coco":
        (tmp_path / "a.jpg").touch()
        register_coco_instances(name, {}, str(write_coco(file, ["a.jpg"])), str(tmp_path))
    else:
        root = write_devkit(tmp_path / "devkit", IMAGES)
        register_voc_dataset(name, root, "train", CLASSES)
        file = root / "Annotations" / "a.xml"
    wanted = datasets.load_dataset(name)
    checked = datasets.check_dataset(name, keep=True)
    assert checked == wanted
    assert datasets.load_dataset(name) is checked
    assert datasets.load_dataset(name) is not checked
    checked = datasets.check_dataset(name, keep=True)
    # Other settings may leave other annotations out.
    assert datasets.load_dataset(name, "skip") is not checked
    checked = datasets.check_dataset(name, keep=True)
    file.write_text(file.read_text() + "\n")
    assert datasets.load_dataset(name) is not checked
    checked = datasets.check_dataset(name, keep=True)
    datasets.forget_checked_datasets()
    assert datasets.load_dataset(name) is not checked


def test_a_set_that_is_read_once_still_warns(tmp_path, caplog):
    name = "read_once_with_flaws"
    path = write_coco(tmp_path / "set.json", ["a.jpg"])
    (tmp_path / "a.jpg").touch()
    data = json.loads(path.read_text())
    data["annotations"][1]["bbox"] = [500, 500, 5, 5]
    path.write_text(json.dumps(data))
    register_coco_instances(name, {}, str(path), str(tmp_path))
    checked = datasets.check_dataset(name, "skip", keep=True)
    assert "left out" not in caplog.text
    assert datasets.load_dataset(name, "skip") is checked
    assert "1 box left out" in caplog.text
