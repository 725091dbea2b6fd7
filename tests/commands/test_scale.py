"""The measurements of scale at small sizes, and the page that takes their tables."""

import json
import re

import pytest
import torch

from sl_detectron.audit.compact_tracker import CompactTracker
from sl_detectron.audit.ranking import audit_annotations
from sl_detectron.commands import scale
from sl_detectron.commands.scale_evaluation import coco_evaluation_job, evaluation_job
from sl_detectron.commands.scale_jobs import JOBS, audit_job, statistics_job
from sl_detectron.commands.scale_sets import made_detections, made_table, made_tracker, write_coco
from sl_detectron.data.formats.coco_json import CocoFile


def test_a_made_set_is_a_coco_json(tmp_path, monkeypatch):
    monkeypatch.setattr("sl_detectron.commands.scale_sets._BLOCK", 10)
    path = write_coco(tmp_path / "set.json", 37, 5)
    data = json.loads(path.read_text())
    assert [a["id"] for a in data["annotations"]] == [*range(1, 38)]
    assert len(data["images"]) == 6
    records = CocoFile(path, "none://images").records()
    assert sum(len(record["annotations"]) for record in records) == 37


@pytest.mark.parametrize("num_classes", [5, 40])
def test_made_statistics_are_ranked(num_classes):
    table = made_table(f"made_for_ranking_{num_classes}", 300, num_classes)
    tracker = made_tracker(torch.tensor(table.labels()), num_classes, table.fingerprint)
    assert isinstance(tracker, CompactTracker) == (num_classes == 40)
    audit = audit_annotations(table, tracker.statistics())
    assert len(audit.annotations) == 300
    assert all(a.label != a.suggested_label for a in audit.annotations)
    suspicions = [a.suspicion for a in audit.annotations]
    # One in ten has less of the given class.
    assert 10 < sum(suspicion > 0.25 for suspicion in suspicions) < 290


def test_jobs_say_what_they_measured():
    statistics = statistics_job(1000, 50)
    assert statistics["memory"][0] <= 128
    assert {"rank", "write json and csv", "all"} <= audit_job(500, 30).keys()
    assert {*evaluation_job(1250, 10)} == {"VOC AP", "VOC AP, peak"}
    evaluation = coco_evaluation_job(1250, 10)
    assert evaluation["detectron2's COCO AP / COCO AP by classes, same detections"][0] > 0
    # A table has a row for each, whatever the sizes.
    assert coco_evaluation_job(2500, 10).keys() == evaluation.keys()
    assert {*scale.PLAN} == {*JOBS}


def test_made_detections_are_as_many_as_asked_for():
    images = [*made_detections(3, 20, 4)]
    assert [len(found) for *_, found in images] == [20] * 3
    assert all((found.pred_boxes.area() > 0).all() for *_, found in images)


def test_tables_take_their_place_in_a_page(tmp_path, monkeypatch):
    made = {"rows": (2.0, "s")}
    monkeypatch.setattr(scale, "_in_fresh_process", lambda job, size, k: made)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    said = []
    scale.run_scale(["loader"], [100, 400], page, said.append)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert re.search(r"rows +\| s +\| 2 +\| 2 +\| 0\.25", text)
    assert said[0].strip() in text
    scale.run_scale(["loader"], [100], page, said.append)
    assert text.count(scale.BEGIN) == page.read_text().count(scale.BEGIN) == 1


def test_wrong_words_are_named_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="no job 'all'; the jobs are"):
        scale.run_scale(["all"], [], None, print)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        scale.run_scale([], [0], None, print)
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        scale.run_scale([], [], page, print)
