"""COCO json files: read as detectron2 reads them, bad ones named."""

import json

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pycocotools import mask

from helpers.label_noise_records import coco_json, content
from sl_detectron.data.formats import coco_json as coco_json_module
from sl_detectron.data.formats.coco_in_order import in_order
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.flaws import Flaws


def test_coco_records_are_detectron2s(tmp_path, coco_name):
    path = tmp_path / "clean.json"
    path.write_bytes(coco_json(None))
    coco = CocoFile(path)
    loaded = load_coco_json(str(path), "", coco_name)
    assert coco.class_names == MetadataCatalog.get(coco_name).thing_classes
    assert content(coco.records()) == content(loaded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not a COCO json"),
        ("{}", "is not a COCO json: KeyError.'categories'"),
        (
            '{"categories": [{"id": 1, "name": "a"}], "images": [{"id": 1}], "annotations": []}',
            r"images\[0\] needs an id and a file_name; got {'id': 1}",
        ),
        (
            '{"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "images": [], '
            '"annotations": []}',
            r"categories: class names must be a list of different names; got \['a', 'a'\]",
        ),
        (
            '{"categories": [{"id": 1, "name": "a"}], "images": [], '
            '"annotations": [{"image_id": 7, "category_id": 1}]}',
            r"annotations\[0\] of image 7 needs an integer id; got None",
        ),
        (
            '{"categories": [{"id": 1, "name": "a"}], "images": [], '
            '"annotations": [{"image_id": 7, "category_id": 1, "id": "x"}]}',
            r"annotations\[0\] of image 7 needs an integer id; got 'x'",
        ),
    ],
)
def test_bad_coco_json_is_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
        CocoFile(tmp_path / "bad.json").records()


def odd_annotations():
    """One annotation in order, and one for each oddity that the short cut must not pass over."""
    fine = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0}
    changes = [
        {},
        {"bbox": [1.5, 2, 10.0, 20.5], "area": 205.0},
        {"iscrowd": 1},
        {"iscrowd": True},
        {"iscrowd": "1"},
        {"area": 100},
        {"area": None},
        {"area": float("nan")},
        {"bbox": [0, 0, 64, 48], "area": 3072},
        {"bbox": [30, 2, 40, 20], "area": 800},
        {"bbox": [-1, 2, 10, 20]},
        {"bbox": [0.1, 0.1, 0.5, 0.5], "area": 0.25},
        {"bbox": [0, 0, 1, 1], "area": 1},
        {"bbox": [3, 3, 0, 5]},
        {"bbox": [500, 3, 5, 5]},
        {"bbox": [True, 2, 10, 20]},
        {"bbox": ["1", 2, 10, 20]},
        {"bbox": [1, 2, 10]},
        {"bbox": [1, 2, float("inf"), 20]},
        {"ignore": 1},
        {"ignore": None},
        {"image_id": "1"},
        {"image_id": 1.0},
        {"image_id": 9},
        {"category_id": 7},
        {"category_id": "1"},
        {"id": 1},
        {"id": "70"},
        {"segmentation": []},
        {"segmentation": None},
        {"segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"segmentation": [[1, 2]]},
        {"segmentation": [[1, 2, 9, 4, 5, 6.5]], "area": 17.5},
        {"segmentation": [[1, 2, 9, 4, 5, 6.5]], "area": float("nan")},
        {"segmentation": [[1, 2, 9, 4, 5, 6.5], [1, 2]], "area": 17.5},
        {"segmentation": [[1, 2, 9, 4, 5, float("nan")]]},
        {"segmentation": [[1, 2, 9, 4, 5, True]]},
        {"segmentation": [[1, 2, 9, 4, 5, 2**2000]]},
        {"segmentation": [[1, 2, 9, 4, 5, float("-inf")]]},
        {"segmentation": {"counts": [3072], "size": [48, 64]}},
        {"segmentation": "none"},
        {"bbox": [1, 2, 10, 2**2000]},
        {"area": 2**2000},
        {"id": 2**40},
        {"image_id": [1]},
        {"extra": "kept"},
    ]
    return [{**fine, "id": i + 1, **change} for i, change in enumerate(changes)]


@pytest.mark.parametrize("number", range(len(odd_annotations())))
def test_the_short_cut_reads_what_the_whole_check_reads(tmp_path, monkeypatch, number):
    """Records, plain form, flaws and notes are those of a reader without it."""
    image = {"id": 1, "file_name": "a.jpg", "height": 48, "width": 64}
    odd = odd_annotations()
    data = {"images": [image], "categories": [{"id": 1, "name": "cat"}]}
    data["annotations"] = [odd[0], odd[number], odd[1]] if number else odd[:1]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(data))

    def read():
        flaws = Flaws("set", "skip")
        file = CocoFile(path, "none://images", flaws=flaws)
        found = [(what, str(error)) for what, error in flaws.found]
        texts = [flaws.summary(text) for text in flaws.notes]
        # Through json: True equals 1, and is another value in a file.
        return json.dumps([file.records(), file.plain(), found, texts]), file.is_plain()

    ours = read()
    monkeypatch.setattr(coco_json_module, "in_order", lambda entries, *_: [False] * len(entries))
    assert ours == read()


def test_most_annotations_take_the_short_cut():
    """Those with polygons too, as COCO's: else a large file would take minutes."""
    fine = odd_annotations()[0]
    polygons = {"segmentation": [[1, 2, 9, 4, 5, 6.5]], "area": 17.5}
    entries = [fine, {**fine, "id": 2, **polygons}, {**fine, "id": 3, "image_id": 9}]
    images = {1: {"width": 64, "height": 48}}
    assert [*in_order(entries, images, {1}, ())] == [True, True, False]
    assert [*in_order([], images, {1}, ())] == []


def test_dataset_dicts_are_those_of_detectron2(tmp_path, coco_name):
    """Polygons of three points and more, RLE in either form, and keypoints included."""
    image = {"file_name": "a.jpg", "height": 48, "width": 64}
    fine = odd_annotations()[0]
    triangle = [1, 2, 9, 4, 5, 6.5]
    rle = mask.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
    changes = [
        {"category_id": 7},
        {"image_id": 1, "segmentation": [triangle, [1, 2]]},
        {"segmentation": {"counts": [3000, 72], "size": [48, 64]}, "iscrowd": 1},
        {"segmentation": {**rle, "counts": rle["counts"].decode()}, "iscrowd": 1},
        {"segmentation": [], "keypoints": [3, 4, 2, 0, 0, 0]},
        {"keypoints": []},
    ]
    annotations = [{**fine, "id": i, "image_id": 2, **c} for i, c in enumerate(changes)]
    data = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 1, "name": "cat"}],
        "images": [{"id": 2, **image}, {"id": 1, **image}, {"id": 3, **image}],
        "annotations": annotations,
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(data))
    loaded = load_coco_json(str(path), "folder", coco_name)
    file = CocoFile(path, "none://images", flaws=Flaws("set", "skip"))
    ours = file.dataset_dicts("folder")
    # One RLE is of bytes and the other of text.
    assert json.dumps(ours, default=bytes.decode) == json.dumps(loaded, default=bytes.decode)
    assert sum(len(record["annotations"]) for record in ours) >= 5
    # Nothing is shared that a second call would change.
    assert json.dumps(file.dataset_dicts("folder"), default=bytes.decode) == json.dumps(
        ours, default=bytes.decode
    )
