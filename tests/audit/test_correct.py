"""Decisions, and the corrected copies that they make."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

from helpers.audit_cases import (
    CLASSES,
    EVIL,
    IMAGES,
    PROBABILITIES,
    make_audit,
    write_coco,
    write_devkit,
)
from sl_detectron.audit import apply_decisions, decisions_above, read_decisions
from sl_detectron.audit.correct import folder_names
from sl_detectron.audit.decisions import Decision, Decisions, write_decisions
from sl_detectron.data import load_voc_dataset
from sl_detectron.label_noise import SymmetricNoise
from sl_detectron.label_noise.export import export_noisy_voc

SOURCES = {"set": {"format": "voc", "root": "devkit", "split": "train"}}
DOG_A = Decision("set", "a", 1, (39, 9, 70, 50), "dog", "wrong", "cat")


def decided(root, *decisions, classes=CLASSES, **source):
    sources = {"set": {"format": "voc", "root": str(root), "split": "train", **source}}
    return Decisions(tuple(classes), sources, decisions)


def bytes_of(root):
    return {p.name: p.read_bytes() for p in sorted((root / "Annotations").iterdir())}


def test_only_the_name_changes(tmp_path):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    before = bytes_of(root)
    assert apply_decisions(decided(root, DOG_A), tmp_path / "out") == {"set": 1}
    after = bytes_of(tmp_path / "out" / "set")
    assert after["a.xml"] == before["a.xml"].replace(b"<name> dog </name>", b"<name> cat </name>")
    assert {n: after[n] for n in ("b.xml", "c.xml")} == {n: before[n] for n in ("b.xml", "c.xml")}
    assert bytes_of(root) == before
    line = json.loads((tmp_path / "out" / "set" / "corrections.jsonl").read_text())
    assert (line["image_id"], line["old"], line["new"]) == ("a", "dog", "cat")
    loaded = load_voc_dataset(tmp_path / "out" / "set", "train", CLASSES)
    assert [a["category_id"] for a in loaded[0]["annotations"]] == [0, 0]
    assert os.path.exists(loaded[0]["file_name"])


def test_boxes_go_and_markup_in_names_comes(tmp_path):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    gone = Decision("set", "c", 1, (19, 19, 79, 59), "cat", "wrong", None)
    evil = Decision("set", "c", 0, (2, 3, 40, 44), "dog", "wrong", EVIL)
    kept = Decision("set", "b", 0, (9, 9, 60, 50), EVIL, "right", None)
    assert apply_decisions(decided(root, gone, evil, kept), tmp_path / "out") == {"set": 2}
    records = load_voc_dataset(tmp_path / "out" / "set", "train", CLASSES)
    labels = [[CLASSES[a["category_id"]] for a in r["annotations"]] for r in records]
    assert labels == [["cat", "dog"], [EVIL], [EVIL, EVIL]]


def test_an_ignored_object_does_not_shift_the_others(tmp_path):
    objects = [("bird", (1, 1, 9, 9)), *IMAGES["a"]]
    root = write_devkit(tmp_path / "devkit", {"a": objects})
    apply_decisions(decided(root, DOG_A, other_classes="ignore"), tmp_path / "out")
    classes = ("bird", *CLASSES)
    (record,) = load_voc_dataset(tmp_path / "out" / "set", "train", classes)
    assert [classes[a["category_id"]] for a in record["annotations"]] == ["bird", "cat", "cat"]


def test_the_truth_makes_a_noisy_copy_clean_again_byte_for_byte(tmp_path):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    noisy_root = tmp_path / "noisy"
    export_noisy_voc(root, "train", noisy_root, [SymmetricNoise(rate=0.6)], CLASSES, "set")
    clean = load_voc_dataset(root, "train", CLASSES)
    noisy = load_voc_dataset(noisy_root, "train", CLASSES)
    decisions = [
        Decision(
            "set",
            record["image_id"],
            i,
            tuple(annotation["bbox"]),
            CLASSES[annotation["category_id"]],
            "wrong",
            CLASSES[true["category_id"]],
        )
        for record, truth in zip(noisy, clean)
        for i, (annotation, true) in enumerate(zip(record["annotations"], truth["annotations"]))
        if annotation["category_id"] != true["category_id"]
    ]
    assert decisions
    apply_decisions(decided(noisy_root, *decisions), tmp_path / "out")
    assert bytes_of(tmp_path / "out" / "set") == bytes_of(root)
    # The files that say how the noise was made are not of the corrected set.
    assert not (tmp_path / "out" / "set" / "manifest.jsonl").exists()


def test_coco_json(tmp_path):
    path = write_coco(tmp_path / "train.json", ["x.jpg", "y.jpg"])
    name = f"coco_{tmp_path.name}"
    sources = {name: {"format": "coco", "json_file": str(path)}}
    wrong = Decision(name, 11, 0, (5, 6, 25, 36), "cat", "wrong", EVIL)
    gone = Decision(name, 10, 1, (6, 6, 26, 36), "dog", "wrong", None)
    before = path.read_text()
    apply_decisions(Decisions(CLASSES, sources, (wrong, gone)), tmp_path / "out")
    assert path.read_text() == before
    corrected = tmp_path / "out" / name / "train.json"
    register_coco_instances(f"{name}_new", {}, str(corrected), str(tmp_path))
    records = {r["image_id"]: r["annotations"] for r in DatasetCatalog.get(f"{name}_new")}
    assert [a["category_id"] for a in records[10]] == [0]
    assert [a["category_id"] for a in records[11]] == [2, 1]
    data, old = json.loads(corrected.read_text()), json.loads(before)
    assert data["annotations"][1] == {**old["annotations"][2], "category_id": 7}
    assert {k: data[k] for k in ("images", "categories")} == {
        k: old[k] for k in ("images", "categories")
    }


def test_files_that_are_not_as_audited_are_named(tmp_path):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    for change in (
        {"given": "cat"},
        {"bbox": (39, 9, 70, 51)},
        {"index": 2},
    ):
        decision = Decision(**{**vars(DOG_A), **change, "label": EVIL})
        with pytest.raises(ValueError, match=r"a\.xml: annotation \d of image 'a' was audited as"):
            apply_decisions(decided(root, decision), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_output_and_sources_are_checked(tmp_path):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    with pytest.raises(ValueError, match="nothing to correct"):
        apply_decisions(decided(root), tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists"):
        apply_decisions(decided(root, DOG_A), root)
    with pytest.raises(ValueError, match="is inside"):
        apply_decisions(decided(root, DOG_A), root / "new")
    with pytest.raises(FileNotFoundError, match="'set' is no longer at"):
        apply_decisions(decided(tmp_path / "gone", DOG_A), tmp_path / "out")
    other = Decisions(CLASSES, {"set": {"format": "other"}}, (DOG_A,))
    with pytest.raises(ValueError, match="neither a VOC devkit"):
        apply_decisions(other, tmp_path / "out")


def test_a_name_of_a_set_does_not_leave_the_output(tmp_path):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    name = "../../evil"
    decision = Decision(**{**vars(DOG_A), "dataset": name})
    sources = {name: {"format": "voc", "root": str(root), "split": "train"}}
    apply_decisions(Decisions(CLASSES, sources, (decision,)), tmp_path / "deep" / "er" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"devkit", "deep"}
    assert len(list((tmp_path / "deep" / "er" / "out").iterdir())) == 1


@pytest.mark.parametrize("names", [("a/b", "a_b", "A_B"), ("", "."), ("x", "x-2", "x/")])
def test_names_that_make_one_folder_make_several(tmp_path, names):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    source = {"format": "voc", "root": str(root), "split": "train"}
    decisions = tuple(Decision(**{**vars(DOG_A), "dataset": name}) for name in names)
    counts = apply_decisions(
        Decisions(CLASSES, dict.fromkeys(names, source), decisions), tmp_path / "out"
    )
    assert counts == dict.fromkeys(names, 1)
    folders = folder_names(names)
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    for folder in folders.values():
        assert (tmp_path / "out" / folder / "corrections.jsonl").is_file()


def test_files_with_other_classes_are_named(tmp_path):
    """With another class list than that of the training an index means another object."""
    root = write_devkit(tmp_path / "devkit", {**IMAGES, "d": [("bird", (1, 1, 9, 9))]})
    message = r"do not fit dataset 'set': .*d\.xml: class 'bird' is not in the class list"
    with pytest.raises(ValueError, match=message):
        apply_decisions(decided(root, DOG_A), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    decisions = decided(root, DOG_A, classes=(*CLASSES, "bird"))
    assert apply_decisions(decisions, tmp_path / "out") == {"set": 1}


@pytest.mark.parametrize("link", ["JPEGImages", "JPEGImages/more/even_more"])
def test_output_inside_of_a_linked_folder_is_refused(tmp_path, link):
    root = write_devkit(tmp_path / "devkit", IMAGES)
    images = tmp_path / "store" / "images"
    (images / "deeper").mkdir(parents=True)
    if link == "JPEGImages":
        for file in (root / link).iterdir():
            file.rename(images / file.name)
        (root / link).rmdir()
    (root / link).parent.mkdir(exist_ok=True)
    (root / link).symlink_to(images)
    (images / "loop").symlink_to(images)
    for out in (images / "out", images / "deeper" / "out"):
        with pytest.raises(ValueError, match=r"is inside .* by a link to .*images, which is only"):
            apply_decisions(decided(root, DOG_A), out)
        assert not out.exists()
    assert apply_decisions(decided(root, DOG_A), tmp_path / "store" / "out") == {"set": 1}


def test_threshold(tmp_path):
    audit = make_audit(tmp_path, PROBABILITIES, f"threshold_{tmp_path.name}")
    (decision,) = decisions_above(audit, 0.9).decisions
    assert (decision.image_id, decision.index, decision.label) == ("a", 1, "cat")
    assert len(decisions_above(audit, 0.51).decisions) == 2
    for threshold in (0.5, 1.1):
        with pytest.raises(ValueError, match="threshold"):
            decisions_above(audit, threshold)


def test_decisions_round_trip(tmp_path):
    decisions = Decisions(CLASSES, SOURCES, (DOG_A,))
    write_decisions(decisions, tmp_path / "decisions.json")
    assert read_decisions(tmp_path / "decisions.json") == decisions


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset", "other", "dataset must be one of"),
        ("dataset", ["set"], "dataset must be one of"),
        ("image_id", None, "image_id must be"),
        ("image_id", "../../secret", "image_id must be an integer or a plain relative name"),
        ("image_id", "./a", "image_id must be"),
        ("image_id", "/etc/passwd", "image_id must be"),
        ("bbox", [10**400, 1, 2, 3], "bbox must be four numbers"),
        ("index", -1, "index must be"),
        ("bbox", [1, 2, 3], "bbox must be four numbers"),
        ("bbox", "1234", "bbox must be four numbers"),
        ("given", "horse", "given must be one of"),
        ("verdict", "maybe", "verdict must be one of"),
        ("label", "horse", "label must be null or one of"),
    ],
)
def test_bad_entries_are_named(tmp_path, key, value, message):
    path = tmp_path / "decisions.json"
    write_decisions(Decisions(CLASSES, SOURCES, (DOG_A,)), path)
    data = json.loads(path.read_text())
    data["decisions"][0][key] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"decisions\[0\]: {message}"):
        read_decisions(path)
    del data["decisions"][0][key]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"decisions\[0\] needs the keys"):
        read_decisions(path)


def test_other_files_and_double_entries_are_named(tmp_path):
    path = tmp_path / "decisions.json"
    write_decisions(Decisions(CLASSES, SOURCES, (DOG_A, DOG_A)), path)
    with pytest.raises(ValueError, match="has two decisions on"):
        read_decisions(path)
    deep = "[" * 100_000
    twice = '{"version": 1, "classes": ["cat", "cat"], "sources": {}, "decisions": []}'
    for text in ("", "[]", "{}", '{"version": 2}', deep, twice):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a file of decisions"):
            read_decisions(path)
    with pytest.raises(FileNotFoundError, match="no file of decisions"):
        read_decisions(tmp_path / "none.json")


@pytest.mark.parametrize(
    "source",
    [
        None,
        {"format": ["voc"]},
        {"format": "voc"},
        {"format": "coco"},
        {"format": "voc", "root": 5},
        {"format": "voc", "root": "devkit"},
    ],
)
def test_sources_are_checked(tmp_path, source):
    path = tmp_path / "decisions.json"
    write_decisions(Decisions(CLASSES, {"set": source}, ()), path)
    with pytest.raises(ValueError, match=r"is not a file of decisions: .*source 'set'"):
        read_decisions(path)
