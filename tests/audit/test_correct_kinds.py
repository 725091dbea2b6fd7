"""Decisions of every kind in VOC XML and COCO json: what they change, and that it comes back."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.audit_cases import CLASSES, IMAGES, write_coco, write_devkit
from sl_detectron.audit import apply_decisions, decisions_above, read_decisions
from sl_detectron.audit.decisions import Decision, Decisions, write_decisions
from sl_detectron.audit.records import Suspect, SuspectList
from sl_detectron.data import load_voc_dataset
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.restore import restore_clean

CAT, DOG, EVIL = CLASSES
CAT_A = ("set", "a", 0, (4, 5, 30, 40), CAT, "wrong")
DOG_A = ("set", "a", 1, (39, 9, 70, 50), DOG, "wrong")
MOVED = Decision(*CAT_A, CAT, (6.4, 7.5, 31.6, 41), "misplaced_box")
GONE = Decision(*DOG_A, None, None, "no_object")
ADDED = Decision("set", "b", -1, None, None, "wrong", DOG, (70.2, 1, 90, 20), "missing_object")
KEPT = replace(ADDED, verdict="right", label=None, box=(1, 1, 9, 9))


def voc(root, *decisions):
    sources = {"set": {"format": "voc", "root": str(root), "split": "train"}}
    return Decisions(CLASSES, sources, decisions)


def objects(root):
    """(class, box) of each object, by image."""
    return {
        r["image_id"]: [(CLASSES[a["category_id"]], tuple(a["bbox"])) for a in r["annotations"]]
        for r in load_voc_dataset(root, "train", CLASSES)
    }


def files(root):
    folders = os.walk(root, followlinks=True)
    paths = (Path(parent, name) for parent, _, names in folders for name in names)
    return {path.relative_to(root): path.read_bytes() for path in paths}


@pytest.fixture
def root(tmp_path):
    return write_devkit(tmp_path / "devkit", IMAGES)


def test_voc_of_every_kind_and_back(root, tmp_path):
    before, clean = files(root), objects(root)
    out = tmp_path / "out"
    assert apply_decisions(voc(root, MOVED, GONE, ADDED, KEPT), out) == {"set": 3}
    # Whole pixels, and no wider than the image.
    assert objects(out / "set") == {
        "a": [(CAT, (6, 8, 32, 41))],
        "b": [*clean["b"], (DOG, (70, 1, 80, 20))],
        "c": clean["c"],
    }
    xml = (root / "Annotations/b.xml").read_bytes()
    new = (out / "set/Annotations/b.xml").read_bytes()
    # An object more behind the others, and no byte else.
    end = xml.index(b"</object>") + len(b"</object>")
    assert new.startswith(xml[:end])
    assert new.endswith(xml[end:])
    restored = restore_clean(out / "set", tmp_path / "restored")
    assert files(restored) == files(root) == before
    assert {p.name for p in restored.iterdir()} == {p.name for p in root.iterdir()}


def test_an_object_is_added_once(root, tmp_path):
    """Reports of two detectors suggest it with other edges; the page saves what both decided."""
    again = replace(ADDED, box=(69.0, 1, 90, 21))
    other_class, other_place = replace(again, label=CAT), replace(ADDED, box=(1, 40, 20, 55))
    decisions = voc(root, ADDED, again, other_class, other_place, replace(ADDED, image_id="c"))
    assert apply_decisions(decisions, tmp_path / "out") == {"set": 4}
    new, clean = objects(tmp_path / "out" / "set"), objects(root)
    added = new["b"][len(clean["b"]) :]
    assert added == [(DOG, (70, 1, 80, 20)), (DOG, (1, 40, 20, 55)), (CAT, (69, 1, 80, 21))]
    assert len(new["c"]) == len(clean["c"]) + 1


def test_a_class_and_a_box_of_one_annotation(root, tmp_path):
    relabelled = Decision(*CAT_A, DOG)
    both = voc(root, MOVED, relabelled)
    assert apply_decisions(both, tmp_path / "out") == {"set": 1}
    assert objects(tmp_path / "out/set")["a"][0] == (DOG, (6, 8, 32, 41))
    # What goes needs no class.
    gone = replace(relabelled, label=None, kind="duplicate")
    apply_decisions(voc(root, MOVED, relabelled, gone), tmp_path / "gone")
    assert [name for name, _ in objects(tmp_path / "gone/set")["a"]] == [DOG]
    other = replace(MOVED, label=EVIL)
    with pytest.raises(ValueError, match=r"'a' of 'set', annotation 0: one decision makes it"):
        apply_decisions(voc(root, relabelled, other), tmp_path / "none")
    with pytest.raises(ValueError, match="nothing to correct"):
        apply_decisions(voc(root, Decision(*CAT_A, CAT, None, "no_object")), tmp_path / "none")


@pytest.mark.parametrize("indent", [None, 1])
def test_coco_of_every_kind_and_back(tmp_path, indent):
    path = write_coco(tmp_path / "train.json", ["x.jpg", "y.jpg", "z.jpg"])
    data = json.loads(path.read_text())
    # An image without annotations; a mask, whose area is not that of the box.
    data["annotations"] = data["annotations"][:4]
    data["annotations"][2] |= {"segmentation": [[5, 6, 25, 6, 25, 36]], "area": 300}
    text = json.dumps(data, indent=indent).replace("600", "600.00")
    path.write_text(text)
    place = {"dataset": "set", "image_id": 10}
    decisions = [
        replace(MOVED, **place, bbox=(5, 6, 25, 36), box=(6.004, 7.5, 31.126, 41)),
        replace(GONE, **place, bbox=(6, 6, 26, 36)),
        replace(MOVED, dataset="set", image_id=11, bbox=(5, 6, 25, 36), box=(0, 0, 9, 9)),
        replace(ADDED, dataset="set", image_id=12),
    ]
    sources = {"set": {"format": "coco", "json_file": str(path)}}
    out = tmp_path / "out"
    assert apply_decisions(Decisions(CLASSES, sources, (*decisions,)), out) == {"set": 4}
    new = json.loads((out / "set/train.json").read_text())
    moved, masked, dog, added = new["annotations"]
    assert moved == {**data["annotations"][0], "bbox": [6, 7.5, 25.13, 33.5], "area": 25.13 * 33.5}
    assert masked == {**data["annotations"][2], "bbox": [0, 0, 9, 9]}
    assert dog == data["annotations"][3]
    assert added["image_id"] == 12
    assert (added["bbox"], added["category_id"]) == ([70.2, 1, 9.8, 19], 5)
    assert added["id"] > max(a["id"] for a in data["annotations"])
    assert {k: v for k, v in new.items() if k != "annotations"} == {
        k: v for k, v in data.items() if k != "annotations"
    }
    CocoFile(out / "set/train.json")
    assert path.read_text() == text
    restored = restore_clean(out / "set", tmp_path / "restored")
    assert files(restored) == {path.relative_to(tmp_path): text.encode()}


def test_what_has_changed_is_not_restored(root, tmp_path):
    apply_decisions(voc(root, GONE), tmp_path / "out")
    path = tmp_path / "out/set/Annotations/a.xml"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=r"a\.xml changed since it was written: its SHA-256 is"):
        restore_clean(tmp_path / "out/set", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_corrected_twice(root, tmp_path):
    apply_decisions(voc(root, GONE), tmp_path / "one")
    once = tmp_path / "one/set"
    apply_decisions(voc(once, MOVED), tmp_path / "two")
    back = restore_clean(tmp_path / "two/set", tmp_path / "back")
    assert files(back / "Annotations") == files(once / "Annotations")
    assert files(restore_clean(once, tmp_path / "first") / "Annotations") == files(
        root / "Annotations"
    )


def test_what_does_not_fit_the_files_is_named(root, tmp_path):
    for decision, message in (
        (replace(ADDED, image_id="z"), r"z\.xml: image 'z' is not in the set 'train'"),
        (replace(ADDED, box=(80, 60, 99, 99)), r"has no area in image 'b' of 80 x 60 pixels"),
        (replace(MOVED, bbox=(4, 5, 30, 44)), r"annotation 0 of image 'a' was audited as 'cat'"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_decisions(voc(root, decision), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def suspect(kind, score, **more):
    return Suspect(kind, score, "set", "a", "a.jpg", **more)


def test_above_a_threshold_suggestions_of_every_kind_count():
    of = {"annotation_id": 0, "index": 0, "label": CAT, "bbox": (4, 5, 30, 40)}
    box = (1, 2, 3, 4)
    listed = (
        suspect("missing_object", 0.9, suggested_label=DOG, suggested_bbox=box),
        suspect("wrong_class", 0.8, suggested_label=DOG, **of),
        suspect("misplaced_box", 0.8, suggested_label=CAT, suggested_bbox=box, **of),
        suspect("no_object", 0.8, suggested_label=CAT, **of),
        suspect("duplicate", 0.8, suggested_label=CAT, suggested_bbox=box, **of),
        suspect("no_object", 0.7, suggested_label=CAT, **of),
    )
    decisions = decisions_above(SuspectList(CLASSES, {}, listed), 0.8).decisions
    assert [(d.kind, d.index, d.given, d.label, d.box) for d in decisions] == [
        ("missing_object", -1, None, DOG, box),
        ("wrong_class", 0, CAT, DOG, None),
        ("misplaced_box", 0, CAT, CAT, box),
        ("no_object", 0, CAT, None, None),
        ("duplicate", 0, CAT, None, None),
    ]


def test_a_threshold_of_classes_is_above_a_half():
    """Below it the given class is the more probable one; other scores have no such meaning."""
    missing = suspect("missing_object", 0.3, suggested_label=DOG, suggested_bbox=(1, 2, 3, 4))
    (decision,) = decisions_above(SuspectList(CLASSES, {}, (missing,)), 0.2).decisions
    assert decision.label == DOG
    both = SuspectList(CLASSES, {}, (missing, suspect("wrong_class", 0.9)))
    with pytest.raises(ValueError, match=r"must be in \(0\.5, 1\]; got 0\.2"):
        decisions_above(both, 0.2)
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]; got 0"):
        decisions_above(SuspectList(CLASSES, {}, ()), 0)


def test_files_of_decisions_hold_every_kind(root, tmp_path):
    path = tmp_path / "decisions.json"
    decisions = voc(root, MOVED, GONE, ADDED, KEPT, Decision(*CAT_A, DOG))
    write_decisions(decisions, path)
    assert read_decisions(path) == decisions
    # Those of before there were kinds.
    data = json.loads(path.read_text())
    data["decisions"] = data["decisions"][4:]
    for key in ("kind", "box"):
        del data["decisions"][0][key]
    path.write_text(json.dumps(data))
    assert read_decisions(path).decisions == (Decision(*CAT_A, DOG),)
    write_decisions(voc(root, ADDED, ADDED), path)
    with pytest.raises(ValueError, match="has two decisions on"):
        read_decisions(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "kind must be one of"),
        ({"index": 0}, "index must be -1 for a missing object"),
        ({"bbox": [1, 2, 3, 4]}, "bbox must be None for a missing object"),
        ({"given": "cat"}, "given must be None for a missing object"),
        ({"label": None}, "label must be one of"),
        ({"box": None}, "box must be four numbers x0 < x1, y0 < y1 for a missing object"),
        ({"box": [5, 1, 5, 9]}, "box must be four numbers x0 < x1"),
        ({"kind": "misplaced_box"}, "index must be an integer from 0"),
    ],
)
def test_a_missing_object_is_checked(root, tmp_path, changes, message):
    path = tmp_path / "decisions.json"
    write_decisions(voc(root, ADDED), path)
    data = json.loads(path.read_text())
    data["decisions"][0] |= changes
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"decisions\[0\]: {message}"):
        read_decisions(path)
