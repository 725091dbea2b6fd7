"""The ranked list of all kinds: of a pass by hand, and as files."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from sl_detectron.audit.kinds import KINDS
from sl_detectron.audit.records import LabelAudit
from sl_detectron.audit.score_annotations import AnnotationScores
from sl_detectron.audit.suspects import find_suspects, read_suspects, write_suspects
from sl_detectron.data.annotation_ids import AnnotationTable, number_annotations

A, LEFT, FAR = (0, 0, 10, 10), (0, 0, 6, 10), (50, 50, 60, 60)


def record(image_id, *annotations):
    rows = [
        {"bbox": [*box], "bbox_mode": 0, "category_id": k, **more} for box, k, more in annotations
    ]
    return {"image_id": image_id, "file_name": f"{image_id}.jpg", "annotations": rows}


def found(*rows):
    boxes, scores, classes = zip(*rows) if rows else ((), (), ())
    boxes = torch.tensor([*boxes], dtype=torch.float32).reshape(-1, 4)
    fields = {"scores": torch.tensor([*scores]), "pred_classes": torch.tensor([*classes]).long()}
    return Instances((99, 99), pred_boxes=Boxes(boxes), **fields)


@pytest.fixture
def table():
    first = record("a", (LEFT, 0, {}), (FAR, 1, {"iscrowd": 1}), (A, 0, {}))
    sets = number_annotations({"no_such_set": [first, record("b", (FAR, 1, {}))]})
    return AnnotationTable.of(sets)


@pytest.fixture
def scores():
    # Annotation 3 has two samples: background by the better one, the box by their weights 3 to 1.
    ids = torch.tensor([0, 2, 3, 3])
    return AnnotationScores(
        ids, torch.zeros(4), torch.zeros(4, 2),
        [found(((52, 52, 58, 58), 0.9, 1)), found((A, 0.7, 1))],
        background=torch.tensor([0.25, 0.0, 0.25, 0.75]),
        boxes=torch.tensor([A, A, FAR, (50, 50, 64, 60)], dtype=torch.float32),
    )  # fmt: skip


AUDIT = LabelAudit(("cat", "dog"), {}, ())


def test_a_list_by_hand(table, scores):
    suspects = find_suspects(table, scores, AUDIT, KINDS)
    by_kind = {k: [s for s in suspects.suspects if s.kind == k] for k in KINDS}
    assert by_kind["wrong_class"] == []
    # The detection in the crowd region of "a" is no object that is missing.
    (missing,) = by_kind["missing_object"]
    assert (missing.score, missing.image_id, missing.index, missing.bbox) == (0.7, "b", -1, None)
    assert (missing.suggested_label, missing.suggested_bbox) == ("dog", A)
    moved = {s.annotation_id: s for s in by_kind["misplaced_box"]}
    assert moved.keys() == {0, 2, 3}
    # 0.75 x (1 - 0.6), and 0.75 x (1 - 10 / 11) for a box that is drawn one pixel wider; to both
    # 0.25 of what is expected of the three, whose certainties are 0.75, 0.75 and 1.
    expected = (0.3 + 0.75 / 11) / 2.5
    assert moved[0].score == pytest.approx(0.3 + 0.25 * expected, rel=1e-5)
    assert moved[0].suggested_bbox == A
    assert moved[3].suggested_bbox == (50, 50, 61, 60)
    assert moved[3].score == pytest.approx(0.75 / 11 + 0.25 * expected, rel=1e-5)
    assert [s.score for s in by_kind["no_object"]] == [0.25, 0.25, 0]
    repeated = by_kind["duplicate"][0]
    assert (repeated.annotation_id, repeated.index, repeated.label) == (0, 0, "cat")
    assert (repeated.score, repeated.suggested_bbox) == (0.75, A)
    assert [s.index for s in by_kind["duplicate"]] == [0, 2, 0]
    ranked = [s.score for s in suspects.suspects]
    assert ranked == sorted(ranked, reverse=True)


def test_files_hold_the_list(table, scores, tmp_path):
    suspects = find_suspects(table, scores, AUDIT, ["missing_object", "duplicate"])
    assert {s.kind for s in suspects.suspects} == {"missing_object", "duplicate"}
    write_suspects(suspects, tmp_path / "out")
    assert read_suspects(tmp_path / "out" / "suspects.json") == suspects
    head, *lines = (tmp_path / "out" / "suspects.csv").read_text().splitlines()
    assert head == (
        "rank,kind,score,dataset,image_id,file_name,annotation_id,index,label,suggested_label,"
        "x0,y0,x1,y1,suggested_x0,suggested_y0,suggested_x1,suggested_y1"
    )
    assert len(lines) == len(suspects.suspects)
    assert lines[1] == "2,missing_object,0.7,no_such_set,b,b.jpg,-1,-1,,dog,,,,,0.0,0.0,10.0,10.0"
    (tmp_path / "suspects.json").write_text("{}")
    with pytest.raises(ValueError, match=r"suspects\.json is not a list of suspects"):
        read_suspects(tmp_path / "suspects.json")


def test_what_does_not_fit_is_refused(table, scores):
    with pytest.raises(ValueError, match="no kind 'wrong_box'"):
        find_suspects(table, scores, AUDIT, ["wrong_box"])
    with pytest.raises(ValueError, match="detections cover 0 images, the table has 2"):
        find_suspects(table, scores._replace(detections=[]), AUDIT, KINDS)


def test_an_annotation_without_an_answer_is_not_ranked(table, scores):
    """No anchor was matched to it; an object that it marks is not missing."""
    detections = [scores.detections[0], found((FAR, 0.9, 1))]
    scores = AnnotationScores(
        scores.ids[:2], scores.losses[:2], scores.probabilities[:2], detections,
        background=scores.background[:2], boxes=scores.boxes[:2],
    )  # fmt: skip
    suspects = find_suspects(table, scores, AUDIT, KINDS)
    assert {s.image_id for s in suspects.suspects} == {"a"}
