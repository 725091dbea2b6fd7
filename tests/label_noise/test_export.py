"""Noise in annotation files: what loads from them, and that every byte comes back."""

import json

import pytest
from detectron2.data.datasets import load_coco_json

from helpers.label_noise_records import CLASSES, XML, coco_json, content
from sl_detectron.data import load_voc_dataset
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.edits import Edit, apply_edits, undo_edits
from sl_detectron.data.formats.manifest import changes_from_manifest, read_manifest
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.data.formats.voc_edits import voc_edits
from sl_detectron.label_noise import (
    BoxJitter,
    MissingAnnotations,
    SpuriousBoxes,
    SymmetricNoise,
    inject,
)
from sl_detectron.label_noise.export import export_noisy_coco, export_noisy_voc
from sl_detectron.label_noise.injection import apply_changes

ALL_NOISES = (
    SymmetricNoise(rate=0.5),
    BoxJitter(rate=0.5, magnitude=0.2),
    MissingAnnotations(rate=0.3),
    SpuriousBoxes(rate=0.4),
)


def write_devkit(root, xml):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "Annotations" / "a.xml").write_bytes(xml)
    (root / "JPEGImages" / "a.jpg").touch()
    return root


@pytest.mark.parametrize("seed", range(20))
def test_noisy_xml_loads_as_the_noise_in_memory(tmp_path, seed):
    root = write_devkit(tmp_path / "clean", XML)
    records = load_voc_dataset(root, "train", CLASSES)
    noises = [type(n)(**{**vars(n), "seed": seed}) for n in ALL_NOISES]
    noisy, changes = inject(records, noises, len(CLASSES))
    edits = [edit for group in voc_edits(XML, changes, CLASSES) for edit in group]
    edited = apply_edits(XML, edits)
    loaded = load_voc_dataset(write_devkit(tmp_path / "noisy", edited), "train", CLASSES)
    assert content(loaded) == content(noisy)
    assert undo_edits(edited, edits) == XML


BOX = "<xmin>{}</xmin><ymin>20</ymin><xmax>60</xmax><ymax>70</ymax>"
OBJECTS = {
    "an attribute with >": f"""<object a='>'><name b=">" c='>"'>cat</name>
        <bndbox>{BOX.format(5).replace("<xmin>", "<xmin d='>'>")}</bndbox></object >""",
    "two names": f"<object><name>cat</name><bndbox>{BOX.format(5)}</bndbox>"
    "<name>dog</name></object>",
    "two boxes": f"<object><name>cat</name><bndbox>{BOX.format(5)}</bndbox>"
    f"<bndbox>{BOX.format(7)}</bndbox></object>",
    "two corners": f"<object><name>cat</name><bndbox>{BOX.format(5)}<xmin>9</xmin></bndbox>"
    "</object>",
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("noises", [ALL_NOISES, [SymmetricNoise(rate=1.0), BoxJitter(rate=1.0)]])
def test_unusual_xml_loads_as_the_noise_in_memory(tmp_path, kind, noises):
    size = "<size><width>100</width><height>80</height></size>"
    xml = f"<annotation>{size}{OBJECTS[kind] * 6}</annotation>".encode()
    root = write_devkit(tmp_path / "clean", xml)
    export_noisy_voc(root, "train", tmp_path / "noisy", noises, CLASSES, "set")
    noisy, changes = inject(load_voc_dataset(root, "train", CLASSES), noises, len(CLASSES), "set")
    assert {"label", "box"} <= {change.what for change in changes}
    assert content(load_voc_dataset(tmp_path / "noisy", "train", CLASSES)) == content(noisy)
    restore_clean(tmp_path / "noisy", tmp_path / "restored")
    assert (tmp_path / "restored" / "Annotations" / "a.xml").read_bytes() == xml


def test_a_file_that_would_load_otherwise_stops_the_export(tmp_path, monkeypatch):
    root = write_devkit(tmp_path / "clean", XML)
    monkeypatch.setattr(
        "sl_detectron.data.formats.devkit.voc_edits", lambda *_: [[Edit(0, b"", b"")]]
    )
    with pytest.raises(ValueError, match=r"a\.xml: its layout is not understood"):
        export_noisy_voc(
            root, "train", tmp_path / "out", [SymmetricNoise(rate=1.0)], CLASSES, "set"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["clean"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("missing", [0.3, 0.95, 1.0])
def test_noisy_coco_json_loads_as_the_noise_in_memory(tmp_path, coco_name, indent, missing):
    clean = tmp_path / "clean.json"
    clean.write_bytes(coco_json(indent))
    noises = [SymmetricNoise(rate=0.5), BoxJitter(rate=0.5), SpuriousBoxes(rate=0.4)]
    noises.append(MissingAnnotations(rate=missing, seed=2))
    export_noisy_coco(CocoFile(clean), tmp_path / "out", noises, coco_name)
    records = load_coco_json(str(clean), "", coco_name)
    noisy, changes = inject(records, noises, len(CLASSES), coco_name)
    loaded = load_coco_json(str(tmp_path / "out" / "clean.json"), "", coco_name)
    assert {change.what for change in changes} >= {"missing"}
    assert content(loaded) == content(noisy)
    for a, b in zip(loaded, noisy):
        for x, y in zip(a["annotations"], b["annotations"]):
            assert x["segmentation"] == y["segmentation"]
    restored = restore_clean(tmp_path / "out", tmp_path / "restored")
    assert (restored / "clean.json").read_bytes() == clean.read_bytes()
    assert [path.name for path in restored.iterdir()] == ["clean.json"]


def test_what_is_not_noise_stays_in_a_coco_json(tmp_path):
    clean, out = tmp_path / "clean.json", tmp_path / "out"
    clean.write_bytes(coco_json(2))
    export_noisy_coco(CocoFile(clean), out, [SymmetricNoise(rate=0.5)], "set")
    before, after = (json.loads(path.read_bytes()) for path in (clean, out / "clean.json"))
    changed = sum(a != b for a, b in zip(before["annotations"], after["annotations"], strict=True))
    assert 0 < changed == len((out / "manifest.jsonl").read_text().splitlines())
    for annotation in (*before["annotations"], *after["annotations"]):
        del annotation["category_id"]
    assert after == before
    assert list(after) == list(before)


@pytest.mark.parametrize("name", ["clean.json", "original.json"])
def test_a_coco_copy_that_was_edited_is_not_restored(tmp_path, name):
    clean, out = tmp_path / "clean.json", tmp_path / "out"
    clean.write_bytes(coco_json(None))
    export_noisy_coco(CocoFile(clean), out, [SymmetricNoise(rate=0.5)], "set")
    (out / name).write_bytes((out / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match=rf"{name} changed since it was written"):
        restore_clean(out)
    assert (out / "original.json").is_file()


def test_added_boxes_have_the_fields_of_the_first_annotation_everywhere(tmp_path, coco_name):
    """In memory, in the file and in a replay, whichever annotation was hit."""
    polygon, keypoints = [[1, 1, 9, 1, 9, 9]], [5, 5, 2]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 80, "width": 100} for i in range(2)]
    annotations = [
        {"id": 2 * i + j, "image_id": i, "category_id": 1, "bbox": [1, 1, 8, 8], "iscrowd": 0}
        | ({"segmentation": polygon, "keypoints": keypoints} if i == j else {})
        for i in range(2)
        for j in range(2)
    ]
    categories = [{"id": 1, "name": "a", "keypoints": ["nose"]}]
    clean = tmp_path / "clean.json"
    parts = {"images": images, "categories": categories, "annotations": annotations}
    clean.write_text(json.dumps(parts))
    noises = [SpuriousBoxes(rate=1.0)]
    export_noisy_coco(CocoFile(clean), tmp_path / "out", noises, coco_name)
    records = load_coco_json(str(clean), "", coco_name)
    noisy, _ = inject(records, noises, 1, coco_name)
    lines = read_manifest(str(tmp_path / "out" / "manifest.jsonl"))
    replayed, _ = apply_changes(records, changes_from_manifest(lines, ["a"], coco_name), 1)
    loaded = load_coco_json(str(tmp_path / "out" / "clean.json"), "", coco_name)
    for record, with_masks in zip(noisy, (True, False)):
        for annotation in record["annotations"][2:]:
            assert ("segmentation" in annotation) == ("keypoints" in annotation) == with_masks
    assert [len(added) for added in added_fields(noisy)] == [2, 2]
    assert added_fields(noisy) == added_fields(replayed) == added_fields(loaded)


def added_fields(records):
    """What the third and later annotations carry; of invisible keypoints only that they are."""
    own = ("true_category_id", "keypoints")
    return [
        [
            ({k: v for k, v in a.items() if k not in own}, a.get("keypoints", [])[2::3])
            for a in record["annotations"][2:]
        ]
        for record in records
    ]
