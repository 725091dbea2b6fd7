"""Rankings of kinds against true annotations, by hand arithmetic."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances

from sl_detectron.audit.annotation_sets import MarkedObject
from sl_detectron.audit.compare import compare_sets
from sl_detectron.audit.kind_scoring import (
    Ranked,
    evaluate_kinds,
    kinds_table,
    write_kinds_evaluation,
)
from sl_detectron.audit.objectlab import objectlab_box_scores
from sl_detectron.audit.records import Suspect, SuspectList

A, FAR, AWAY, NEAR = (0, 0, 10, 10), (50, 50, 60, 60), (80, 80, 90, 90), (0, 0, 6, 10)


def objects(*boxes):
    return [MarkedObject(box, "cat", False, i) for i, box in enumerate(boxes)]


def suspects(*rows):
    listed = [
        Suspect(kind, score, "set", image, f"{image}.jpg", index=index, suggested_bbox=box)
        for kind, score, image, index, box in rows
    ]
    return SuspectList(("cat", "dog"), {}, tuple(sorted(listed, key=lambda s: -s.score)))


def evaluate(ours, given, true, kind, references=None):
    comparison = compare_sets(given, true)
    return evaluate_kinds(suspects(*ours), comparison, [kind], {kind: references or {}})[kind]


def test_missing_objects_are_found_once():
    given, true = {"x": objects(A)}, {"x": objects(A, FAR, AWAY, (20, 0, 30, 9))}
    rows = [(0.9, FAR), (0.8, (50, 50, 60, 59)), (0.7, AWAY), (0.1, A)]
    ours = [("missing_object", score, "x", -1, box) for score, box in rows]
    # An image that only the list has counts for nothing.
    ours.append(("missing_object", 1.0, "other", -1, A))
    lab = [Ranked("x", -1, 0.5, A), Ranked("x", -1, 0.4, FAR)]
    found = evaluate(ours, given, true, "missing_object", {"lab": lab})
    assert (found.num_ranked, found.num_wrong) == (4, 3)
    quality = found.scores["sl_detectron"]
    # Right, wrong, right, wrong: (1 / 1 + 2 / 3) / 3 of three objects; 3 of 4 pairs in order.
    assert quality.average_precision == pytest.approx((1 + 2 / 3) / 3)
    assert quality.auroc == pytest.approx(0.75)
    assert found.found == {"sl_detectron": 1, "lab": 0}
    assert found.scores["lab"].average_precision == pytest.approx(1 / 2 / 3)
    assert found.iou_after is None


def test_misplaced_boxes_and_what_moves_them():
    given, true = {"x": objects(NEAR, FAR)}, {"x": objects(A, FAR)}
    ours = [("misplaced_box", 0.8, "x", 0, (0, 0, 8, 10)), ("misplaced_box", 0.3, "x", 1, FAR)]
    found = evaluate(ours, given, true, "misplaced_box")
    assert (found.num_ranked, found.num_wrong) == (2, 1)
    assert found.scores["sl_detectron"].auroc == 1
    assert (found.iou_before, found.iou_after) == pytest.approx((0.6, 0.8))
    assert "from 0.600 to 0.800" in kinds_table({"misplaced_box": found})


def test_all_scores_are_of_the_same_annotations():
    """One that the detector has no answer for is not ranked by a reference either."""
    given = {"x": objects(NEAR, FAR, (20, 0, 26, 10))}
    true = {"x": objects(A, FAR, (20, 0, 30, 10))}
    ours = [("misplaced_box", 0.8, "x", 0, None), ("misplaced_box", 0.3, "x", 1, None)]
    lab = [Ranked("x", i, score) for i, score in enumerate((0.2, 0.1, 0.9))]
    found = evaluate(ours, given, true, "misplaced_box", {"lab": lab})
    assert found.num_wrong == 1
    assert found.scores["lab"] == found.scores["sl_detectron"]
    # Without suggestions there is nothing to say about them.
    assert found.iou_before is None


def test_nothing_to_tell_apart(tmp_path):
    found = evaluate([("no_object", 0.4, "x", 0, None)], *[{"x": objects(A)}] * 2, "no_object")
    assert found.scores == {}
    assert "no_object: 0 flaws" in kinds_table({"no_object": found})
    write_kinds_evaluation({"no_object": found}, tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["no_object"]["num_ranked"] == 1


def test_objectlab_scores_boxes():
    pytest.importorskip("cleanlab")
    annotations = [
        {"annotation_id": 4, "category_id": 0, "bbox": A},
        {"annotation_id": 5, "category_id": 1, "bbox": AWAY},
    ]
    records = [
        {"image_id": "empty", "annotations": []},
        {"image_id": "x", "annotations": annotations},
    ]
    boxes = torch.tensor([FAR, (0, 0, 7, 10), AWAY], dtype=torch.float32)
    found = Instances((99, 99), pred_boxes=Boxes(boxes))
    found.scores, found.pred_classes = torch.tensor([0.99, 0.98, 0.97]), torch.tensor([1, 0, 1])
    badly, overlooked = objectlab_box_scores(records, [found[:0], found], 2)
    assert badly[4] < badly[5] == pytest.approx(1.0)
    assert overlooked[0] == []
    # Class by class; what overlaps an annotation is no candidate.
    assert [tuple(box) for box, _ in overlooked[1]] == [(0, 0, 7, 10), FAR, AWAY]
    assert [quality == 1 for _, quality in overlooked[1]] == [True, False, True]
