"""Two sets of annotations of the same images, by hand."""

import json

import pytest

from sl_detectron.audit.annotation_sets import MarkedObject, read_annotation_set
from sl_detectron.audit.compare import (
    compare_sets,
    comparison_table,
    write_comparison,
)

A, FAR, AWAY = (0, 0, 10, 10), (50, 50, 60, 60), (80, 80, 90, 90)
SHORT = (0, 0, 8, 10)  # IoU 0.8 with A
SHORTER = (0, 0, 6, 10)  # IoU 0.6 with A


def objects(*rows):
    return [MarkedObject(box, label, bool(crowd), i) for i, (box, label, *crowd) in enumerate(rows)]


def kinds_of(given, true):
    comparison = compare_sets({"x": objects(*given)}, {"x": objects(*true)})
    return [(d.kind, d.given, d.true) for d in comparison.differences]


def test_each_kind():
    assert kinds_of([(SHORT, "cat")], [(A, "cat")]) == []
    assert kinds_of([(SHORTER, "cat")], [(A, "cat")]) == [("misplaced_box", 0, 0)]
    assert kinds_of([(SHORT, "dog")], [(A, "cat")]) == [("wrong_class", 0, 0)]
    both = [("wrong_class", 0, 0), ("misplaced_box", 0, 0)]
    assert kinds_of([(SHORTER, "dog")], [(A, "cat")]) == both
    assert kinds_of([], [(A, "cat")]) == [("missing_object", -1, 0)]
    assert kinds_of([(FAR, "cat")], []) == [("no_object", 0, -1)]
    assert kinds_of([(SHORT, "cat"), (A, "cat")], [(A, "cat")]) == [("duplicate", 0, -1)]
    # Of two boxes in one place, that of the class is the pair.
    assert kinds_of([(A, "dog"), (A, "cat")], [(A, "cat")]) == [("duplicate", 0, -1)]
    # Below IoU 0.5 they are two objects.
    apart = [("no_object", 0, -1), ("missing_object", -1, 0)]
    assert kinds_of([((0, 0, 4, 10), "cat")], [(A, "cat")]) == apart


def test_pairs_are_of_the_largest_sum():
    """The best pair, 1 and 0 of IoU 11 / 12, would leave one of 8 / 14; others sum up to more."""
    given = [((4, 0, 14, 10), "cat"), ((2, 0, 14, 10), "cat")]
    true = [((3, 0, 14, 10), "cat"), ((0, 0, 12, 10), "cat")]
    assert kinds_of(given, true) == [("misplaced_box", 1, 1)]


def test_crowds_are_no_objects():
    crowd = ((40, 40, 99, 99), "cat", True)
    assert kinds_of([(FAR, "cat")], [crowd]) == []
    assert kinds_of([crowd], [(FAR, "cat"), (A, "cat")]) == [("missing_object", -1, 1)]


def test_noise_in_memory_has_known_pairs():
    """A box that noise moved far is off, not missing here and without an object there."""
    far = (9, 9, 19, 19)  # IoU 0.005 with A
    true = {"x": objects((A, "cat"), (FAR, "dog"), (AWAY, "cat"), (A, "cat"))}
    moved = MarkedObject(far, "dog", False, 0, origin=(A, "cat"))
    added = MarkedObject((60, 60, 70, 70), "cat", False, 2, origin=(None, ""))
    given = {"x": [moved, MarkedObject(FAR, "dog", False, 1), added]}
    # The second cat at A is missing: an origin is found once.
    known = [("wrong_class", 0, 0), ("misplaced_box", 0, 0), ("no_object", 2, -1),
             ("missing_object", -1, 2), ("missing_object", -1, 3)]  # fmt: skip
    found = compare_sets(given, true, known=True)
    assert [(d.kind, d.given, d.true) for d in found.differences] == known
    assert found.num_matched == 2
    # An added box that happens to lie on a missing object is one of it.
    lying = [*given["x"][:2], MarkedObject(AWAY, "cat", False, 2, origin=(None, ""))]
    found = compare_sets({"x": lying}, true, known=True)
    assert [(d.kind, d.true) for d in found.differences] == [*((k, 0) for k, *_ in known[:2]),
                                                             ("missing_object", 3)]  # fmt: skip


def test_objects_of_classes_that_a_set_has_not_are_not_missing():
    given = {"x": objects((A, "cat"))}
    true = {"x": objects((A, "tiger"), (FAR, "dog"), (AWAY, "zebra"))}
    comparison = compare_sets(given, true, ["cat", "dog"])
    found = [(d.kind, d.true_label) for d in comparison.differences]
    assert found == [("wrong_class", "tiger"), ("missing_object", "dog")]
    assert (comparison.num_other, comparison.other) == (1, ("zebra",))
    assert "1 unmatched true annotations are of classes" in comparison_table(comparison)
    assert compare_sets(given, true).num_other == 0


def test_images_of_one_set_are_counted(tmp_path):
    given = {"x": objects((A, "cat"), (FAR, "cat")), "y": objects((A, "cat"))}
    true = {"x": objects((A, "cat"), (AWAY, "cat"), ((70, 0, 80, 9), "dog")), "z": []}
    comparison = compare_sets(given, true)
    assert (comparison.images, comparison.only_given, comparison.only_true) == (
        *(("x",), ("y",), ("z",)),
    )
    assert (comparison.num_given, comparison.num_true, comparison.num_matched) == (2, 3, 1)
    table = comparison_table(comparison)
    assert "missing_object  2         66.7 %   of 3 true annotations" in table
    assert "1 images are in the given set only, as 'y'" in table
    write_comparison(comparison, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "differences.json").read_text())["differences"]
    assert [row["kind"] for row in rows] == ["no_object", "missing_object", "missing_object"]
    lines = (tmp_path / "out" / "differences.csv").read_text().splitlines()
    assert lines[1] == "1,no_object,x,0.0,1,-1,cat,,50,50,60,60,,,,"
    with pytest.raises(ValueError, match="no image in common"):
        compare_sets({"x": []}, {"z": []})


XML = """<annotation><size><width>99</width><height>99</height></size>
<object><name>cat</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax></bndbox></object></annotation>
"""


def test_voc_and_coco_are_read_alike(tmp_path):
    """VOC counts pixels from 1, and the last one belongs to the box."""
    (tmp_path / "voc" / "Annotations").mkdir(parents=True)
    (tmp_path / "voc" / "Annotations" / "x.xml").write_text(XML)
    coco = {
        "images": [{"id": 7, "file_name": "some/x.png", "width": 99, "height": 99}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 10, 10], "iscrowd": 0,
             "area": 100}
        ],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    expected = {"x": [MarkedObject(A, "cat", False, 0)]}
    voc, other = (read_annotation_set(tmp_path / name) for name in ("voc", "coco.json"))
    assert {**voc} == {**other} == expected
    coco["images"].append({"id": 8, "file_name": "other/x.png", "width": 99, "height": 99})
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="2 images have a file 'x'"):
        read_annotation_set(tmp_path / "coco.json")
    with pytest.raises(FileNotFoundError, match=r"no COCO json at .*gone\.json"):
        read_annotation_set(tmp_path / "gone.json")
    with pytest.raises(FileNotFoundError, match="has no Annotations"):
        read_annotation_set(tmp_path)
    (tmp_path / "voc" / "Annotations" / "x.xml").write_text(XML.replace("<xmax>10<", "<xmax>x<"))
    with pytest.raises(ValueError, match=r"x\.xml: object 0"):
        read_annotation_set(tmp_path / "voc")
