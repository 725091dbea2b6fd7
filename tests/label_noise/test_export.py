"""Noise in annotation files: what loads from them, and that every byte comes back."""

import json
import random

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sl_detectron.data import load_voc_dataset
from sl_detectron.data.formats.changes import Change
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.manifest import changes_from_manifest, read_manifest
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.data.formats.voc_edits import Edit, apply_edits, undo_edits, voc_edits
from sl_detectron.label_noise import (
    BoxJitter,
    MissingAnnotations,
    SpuriousBoxes,
    SymmetricNoise,
    inject,
)
from sl_detectron.label_noise.export import export_noisy_coco, export_noisy_voc
from sl_detectron.label_noise.injection import apply_changes
from sl_detectron.label_noise.stats import noise_statistics, statistics_table, uniformity_test

CLASSES = ["cat", "dog", "R&D", "zürich"]
ALL_NOISES = (
    SymmetricNoise(rate=0.5),
    BoxJitter(rate=0.5, magnitude=0.2),
    MissingAnnotations(rate=0.3),
    SpuriousBoxes(rate=0.4),
)
# Everything that a rewrite through a parser would lose.
XML = b"""<?xml version='1.0'  encoding="utf-8"?>\r
<annotation verified = "no" >
  <size><width>100</width><height >80</height></size>
  <!-- two <object> here -->
  <object><part><name>head</name><bndbox><xmin>5</xmin></bndbox></part>
    <name> R&amp;D\t</name><bndbox><xmax>40</xmax><xmin>1.5000000001</xmin>
    <ymin>2</ymin><ymax> 30 </ymax></bndbox></object><object>
    <name><![CDATA[cat]]></name><difficult>1</difficult>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>99</xmax><ymax>80</ymax></bndbox>
  </object>

</annotation>   """


def write_devkit(root, xml):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "Annotations" / "a.xml").write_bytes(xml)
    (root / "JPEGImages" / "a.jpg").touch()
    return root


def content(records):
    return [
        [(a["category_id"], [float(x) for x in a["bbox"]]) for a in record["annotations"]]
        for record in records
    ]


@given(
    pieces=st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5), st.binary(max_size=5)))
)
def test_edits_replace_and_come_back(pieces):
    """Any file is gaps and replaced parts; the result is put together by hand."""
    original, expected, edits = b"", b"", []
    for gap, old, new in pieces:
        edits.append(Edit(len(original) + len(gap), old, new))
        original, expected = original + gap + old, expected + gap + new
    assert apply_edits(original, edits) == expected
    restored = [Edit.from_json(json.loads(json.dumps(edit.to_json()))) for edit in edits]
    assert undo_edits(expected, restored) == original


@pytest.mark.parametrize(
    "edits",
    [
        [Edit(0, b"x", b"y")],
        [Edit(0, b"ab", b""), Edit(1, b"b", b"")],
        [Edit(2, b"cd", b"")],
    ],
)
def test_edits_that_do_not_fit_are_refused(edits):
    with pytest.raises(ValueError, match="at byte"):
        apply_edits(b"abc", edits)


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


def test_the_first_object_of_an_empty_annotation():
    xml = b"<annotation>\n\t<size/>\n</annotation>\n"
    change = Change("a", 0, "spurious", None, {"category_id": 1, "bbox": [0.0, 0.5, 9.0, 9.0]})
    edited = apply_edits(xml, voc_edits(xml, [change], CLASSES)[0])
    assert edited.startswith(b"<annotation>\n\t<size/>\n\t<object>\n\t\t<name>dog</name>")
    assert b"<xmin>1</xmin>\n\t\t\t<ymin>1.5</ymin>\n\t\t\t<xmax>9</xmax>" in edited
    assert edited.endswith(b"</object>\n</annotation>\n")


def test_a_change_of_another_file_is_refused():
    with pytest.raises(ValueError, match="only 2 objects"):
        voc_edits(XML, [Change("a", 2, "missing", {}, None)], CLASSES)


def coco_json(indent, num_annotations=60):
    rng = random.Random(0)
    images = [{"id": 7 * i, "file_name": f"{i}.jpg", "height": 80, "width": 100} for i in range(9)]
    categories = [{"id": i, "name": n} for i, n in zip((11, 3, 8, 90), CLASSES)]
    annotations = []
    for i in range(num_annotations):
        x, y, w, h = (round(rng.uniform(2, 40), 2) for _ in range(4))
        annotation = {
            "id": 1000 - i,
            "bbox": [x, y, w, h],
            "category_id": rng.choice(categories)["id"],
            "note": 'a "bbox": [1, 2] and ] } , in a string é',
            "image_id": rng.choice(images[1:])["id"],
            "iscrowd": int(i % 11 == 0),
            "segmentation": [[x, y, x + w, y, x, y + h]] if i % 7 else [[1, 2]],
        }
        annotations.append(annotation)
    info = {"annotations": [{"bbox": 0}]}
    parts = {"info": info, "annotations": annotations, "images": images, "categories": categories}
    return json.dumps(parts, indent=indent, ensure_ascii=False).encode()


@pytest.fixture
def coco_name():
    yield "noise_files_coco"
    MetadataCatalog.remove("noise_files_coco")


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
            "image 1 has no such key",
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
            '"annotations": [{"image_id": 7, "category_id": 1, "id": "5"}]}',
            r"annotations\[0\] of image 7 needs an integer id; got '5'",
        ),
    ],
)
def test_bad_coco_json_is_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.json.*{message}"):
        CocoFile(tmp_path / "bad.json").records()


def test_statistics_by_hand():
    annotations = [{"category_id": c} for c in (0, 0, 1, 1)]
    annotations.append({"category_id": 1, "iscrowd": 1})
    changes = [
        Change("a", 0, "label", 0, 1),
        Change("a", 2, "missing", {"category_id": 1, "bbox": []}, None),
        Change("a", 3, "box", [], []),
        Change("a", 5, "spurious", None, {"category_id": 2, "bbox": []}),
    ]
    records = [{"image_id": "a", "annotations": annotations}]
    statistics = noise_statistics(records, changes, 3)
    assert statistics.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert statistics.counts == {"label": 1, "box": 1, "missing": 1, "spurious": 1}
    assert statistics.num_annotations == 4
    assert statistics.label_rate == 0.25
    np.testing.assert_array_equal(statistics.label_rate_per_class, [0.5, 0.0, np.nan])
    rows = [row.split("|")[1:-1] for row in statistics_table(statistics, "xyz").splitlines()[2:]]
    assert [[cell.strip() for cell in row][:5] for row in rows] == [
        ["x", "2", "1", "0", "0"],
        ["y", "2", "0", "1", "0"],
        ["z", "0", "0", "0", "1"],
        ["total", "4", "1", "1", "1"],
    ]


def test_uniformity_against_scipy():
    counts = np.random.default_rng(0).poisson(30, size=(6, 6))
    counts[4] = 0
    rows = [stats.chisquare(np.delete(counts[i], i)) for i in (0, 1, 2, 3, 5)]
    statistic, dof, p = uniformity_test(counts)
    assert statistic == pytest.approx(sum(row.statistic for row in rows))
    assert dof == 5 * 4
    assert p == pytest.approx(stats.chi2.sf(statistic, dof), rel=1e-9)


def test_uniformity_finds_a_class_that_is_never_drawn():
    """The mistake of ``randint(0, K - 1)``: the last class is out of reach."""
    rng = np.random.default_rng(0)
    confusion = np.zeros((20, 20), int)
    for true in range(20):
        others = [c for c in range(19) if c != true]
        confusion[true] = np.bincount(rng.choice(others, 200), minlength=20)
    assert uniformity_test(confusion)[2] < 1e-6


def test_uniformity_needs_three_classes():
    with pytest.raises(ValueError, match="at least 3 classes"):
        uniformity_test(np.ones((2, 2)))
    assert uniformity_test(np.eye(3)) == (0.0, 0, 1.0)
