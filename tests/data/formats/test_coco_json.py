"""COCO json files: read as detectron2 reads them, bad ones named."""

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from helpers.label_noise_records import coco_json, content
from sl_detectron.data.formats.coco_json import CocoFile


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
