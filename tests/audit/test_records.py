"""Ranking, its files, and what other tools read."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import detection_utils
from PIL import Image

from helpers.audit_cases import CLASSES, EVIL, HEIGHT, IMAGES, PROBABILITIES, WIDTH, make_audit
from sl_detectron.audit import read_audit
from sl_detectron.audit.exchange import read_cleanlab, write_cleanlab, write_fiftyone
from sl_detectron.audit.files import write_audit
from sl_detectron.audit.ranking import audit_annotations, suspicion
from sl_detectron.audit.records import Suspect, SuspectList, top_suspects
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.data.annotation_ids import AnnotationTable


@pytest.fixture
def audit(tmp_path):
    return make_audit(tmp_path, PROBABILITIES, f"audit_{tmp_path.name}")


def test_most_suspect_first_by_hand_arithmetic(audit):
    # p_other / (p_other + p_given) of the six annotations.
    expected = [0.1 / 0.9, 0.9 / 0.95, 0.1 / 0.9, 0.6 / 0.9, 0.2 / 0.8, 0.2 / 0.9]
    ranked = sorted(range(6), key=lambda i: (-expected[i], i))
    assert [a.annotation_id for a in audit.annotations] == ranked
    for a in audit.annotations:
        assert a.suspicion == pytest.approx(expected[a.annotation_id], rel=1e-5)
    worst = audit.annotations[0]
    assert (worst.image_id, worst.index, worst.label) == ("a", 1, "dog")
    assert (worst.suggested_label, worst.suggested_probability) == ("cat", pytest.approx(0.9))
    assert worst.expected_correctness == pytest.approx(0.05)
    assert worst.bbox == (39, 9, 70, 50)
    assert worst.top_labels[0] == ("cat", pytest.approx(0.9))


def test_suspicion_of_classes_without_any_probability():
    probabilities = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [0.0, 1e-30]])
    assert suspicion(probabilities, torch.zeros(3, dtype=torch.int64)).tolist() == [0, 0, 1]


def test_files_round_trip(audit, tmp_path):
    write_audit(audit, tmp_path / "out")
    assert audit.fingerprint
    assert read_audit(tmp_path / "out" / "label_audit.json") == audit
    with open(tmp_path / "out" / "label_audit.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["annotation_id"]) for row in rows] == [
        a.annotation_id for a in audit.annotations
    ]
    assert EVIL in {row["label"] for row in rows}
    assert [float(rows[0][k]) for k in ("rank", "x0", "y0", "x1", "y1")] == [1, 39, 9, 70, 50]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"label_audit.json", "label_audit.csv"}


def test_empty_list_round_trips(audit, tmp_path):
    empty = top_suspects(audit, classes=())
    empty = type(audit)(audit.classes, audit.sources, (), 6)
    write_audit(empty, tmp_path)
    assert read_audit(tmp_path / "label_audit.json") == empty


@pytest.mark.parametrize("text", ["", "[]", '{"version": 7}', '{"version": 1, "classes": []}'])
def test_what_is_no_audit_is_named(tmp_path, text):
    path = tmp_path / "label_audit.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"label_audit\.json is not a label audit"):
        read_audit(path)


def test_unsampled_and_crowd_annotations_are_not_ranked():
    annotation = {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 0}
    crowd = {**annotation, "iscrowd": 1}
    annotations = [{**a, "annotation_id": i} for i, a in enumerate([annotation, crowd, annotation])]
    tracker = AnnotationTracker(3, 2)
    tracker(torch.tensor([0, 1]), torch.ones(2), torch.ones(2), torch.full((2, 2), 0.5))
    sets = {"no_such_set": [{"image_id": np.int64(7), "annotations": annotations}]}
    audit = audit_annotations(AnnotationTable.of(sets), tracker.statistics())
    assert [a.annotation_id for a in audit.annotations] == [0]
    assert audit.num_unseen == 1
    assert json.dumps(audit.annotations[0].image_id) == "7"


@pytest.mark.parametrize(("num", "classes"), [(2, 2), (3, 3)])
def test_statistics_of_another_run_are_refused(num, classes):
    annotation = {"bbox": [0, 0, 9, 9], "bbox_mode": 0, "category_id": 0, "annotation_id": 2}
    sets = {"no_such_set": [{"image_id": 1, "annotations": [annotation]}]}
    table = dataclasses.replace(AnnotationTable.of(sets), classes=("x", "y"))
    statistics = AnnotationTracker(num, classes).statistics()
    with pytest.raises(ValueError, match="belong to different runs"):
        audit_annotations(table, statistics)


def test_head_of_the_list(audit):
    assert len(top_suspects(audit, 2).annotations) == 2
    per_class = top_suspects(audit, 1, per_class=True)
    assert [a.label for a in per_class.annotations] == ["dog", "cat", EVIL]
    assert {a.label for a in top_suspects(audit, classes=["dog"]).annotations} == {"dog"}
    with pytest.raises(ValueError, match="no class"):
        top_suspects(audit, classes=["horse"])
    with pytest.raises(ValueError, match="at least 1"):
        top_suspects(audit, 0)


def test_cleanlab_takes_its_file(audit, tmp_path):
    rank = pytest.importorskip("cleanlab.object_detection.rank")
    data = read_cleanlab(write_cleanlab(audit, tmp_path))
    # Image a has the most suspect box, then c; b has none.
    assert rank.issues_from_scores(data["label_quality_scores"], threshold=0.5).tolist() == [0, 2]
    assert data["is_issue"].tolist() == [True, False, True]
    labels = data["labels"]
    assert [len(label["labels"]) for label in labels] == [len(o) for o in IMAGES.values()]
    # Predictions that equal the labels are the best that cleanlab can see.
    predictions = []
    for label in labels:
        scored = np.column_stack([label["bboxes"], np.full(len(label["labels"]), 0.99)])
        per_class = np.empty(len(CLASSES), dtype=object)
        for k in range(len(CLASSES)):
            per_class[k] = scored[label["labels"] == k]
        predictions.append(per_class)
    scores = rank.get_label_quality_scores(labels, predictions, verbose=False)
    assert scores.min() > 0.9


def test_fiftyone_layout(audit, tmp_path):
    labels_path = write_fiftyone(audit, tmp_path / "fiftyone")
    data = json.loads(labels_path.read_text())
    files = json.loads((tmp_path / "fiftyone" / "data.json").read_text())
    assert data["classes"] == list(CLASSES)
    assert files.keys() == data["labels"].keys()
    (key,) = [k for k in files if k.endswith("/a")]
    assert files[key].endswith("a.jpg")
    second = data["labels"][key][1]
    assert second["label"] == "dog"
    wanted = [39 / WIDTH, 9 / HEIGHT, 31 / WIDTH, 41 / HEIGHT]
    assert second["bounding_box"] == pytest.approx(wanted)
    assert second["attributes"]["mistakenness"] == pytest.approx(0.9 / 0.95, rel=1e-5)
    assert second["attributes"]["suggested_label"] == "cat"


@pytest.fixture
def suspects(audit):
    """A box that is off, one without an object, a duplicate, and two missing objects."""
    worst = audit.annotations[0]  # the second of image a

    def suspect(kind, score, **more):
        row = Suspect(kind, score, worst.dataset, worst.image_id, worst.file_name)
        of = {"annotation_id": worst.annotation_id, "index": worst.index, "label": worst.label}
        return dataclasses.replace(row, **(more or {**of, "bbox": worst.bbox}))

    missing = {"suggested_label": "cat", "suggested_bbox": (8.0, 6.0, 48.0, 36.0)}
    listed = (
        suspect("missing_object", 0.9, **missing),
        suspect("no_object", 0.8),
        suspect("misplaced_box", 0.7),
        suspect("duplicate", 0.6),
        suspect("missing_object", 0.4, **missing),
    )
    return SuspectList(audit.classes, audit.sources, listed, audit.fingerprint)


def test_head_of_a_list_of_kinds(suspects):
    """Of each kind, whose scores cannot be compared; a missing object has the suggested class."""
    kinds = [s.kind for s in top_suspects(suspects, 1).suspects]
    assert kinds == ["missing_object", "no_object", "misplaced_box", "duplicate"]
    assert len(top_suspects(suspects, 2, per_class=True).suspects) == 5
    cats = top_suspects(suspects, classes=["cat"]).suspects
    assert [s.kind for s in cats] == ["missing_object"] * 2


def test_cleanlab_has_the_scores_of_every_kind(audit, suspects, tmp_path):
    data = read_cleanlab(write_cleanlab(audit, tmp_path, suspects))
    for name, quality in (("badloc", 0.3), ("no_object", 0.2), ("duplicate", 0.4)):
        scores = data[f"{name}_box_scores"]
        assert [len(of) for of in scores] == [2, 1, 3]
        assert scores[0] == pytest.approx([1, quality])
        assert {*scores[1], *scores[2]} == {1}
    assert [of.tolist() for of in data["overlooked_box_scores"]] == [[0.1, 0.6], [], []]
    assert data["overlooked_bboxes"][0].tolist() == [[8, 6, 48, 36]] * 2
    assert [of.shape for of in data["overlooked_bboxes"]] == [(2, 4), (0, 4), (0, 4)]
    assert data["overlooked_labels"][0].tolist() == [0, 0]
    plain = read_cleanlab(write_cleanlab(audit, tmp_path))
    assert not [key for key in plain if "badloc" in key or "overlooked" in key]
    # The worst of all scores: 0.05 of the label, which is 1 - 0.9 / 0.95.
    assert data["label_quality_scores"][0] == plain["label_quality_scores"][0] < 0.1


def test_an_image_with_nothing_but_a_missing_object(audit, suspects, tmp_path):
    empty = dataclasses.replace(audit, annotations=())
    data = read_cleanlab(write_cleanlab(empty, tmp_path, suspects))
    assert [label["bboxes"].shape for label in data["labels"]] == [(0, 4)]
    assert data["is_issue"].tolist() == [True]
    labels = json.loads(write_fiftyone(empty, tmp_path / "f", suspects).read_text())["labels"]
    assert [len(of) for of in labels.values()] == [1]


def test_fiftyone_names_every_kind(audit, suspects, tmp_path):
    path = write_fiftyone(audit, tmp_path / "fiftyone", suspects)
    labels = json.loads(path.read_text())["labels"]
    first, second, missing = labels[f"{suspects.suspects[0].dataset}/a"]
    assert missing["label"] == "cat"
    assert missing["attributes"] == {"possible_missing": True, "missing_object": 0.9}
    assert missing["bounding_box"] == pytest.approx([0.1, 0.1, 0.5, 0.5])
    wanted = {
        "mistakenness_loc": 0.7,
        "no_object": 0.8,
        "duplicate": 0.6,
        "possible_spurious": True,
    }
    assert second["attributes"].items() >= wanted.items()
    assert first["attributes"]["possible_spurious"] is False
    assert first["attributes"]["mistakenness_loc"] == 0


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_fiftyone_boxes_fit_the_image_as_its_exif_turns_it(audit, tmp_path, orientation):
    """The detector saw the turned image, FiftyOne shows the turned image."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)
    height, width = detection_utils.read_image(str(path)).shape[:2]
    worst = dataclasses.replace(
        audit.annotations[0], file_name=str(path), bbox=(6.0, 30.0, 36.0, 60.0)
    )
    only = dataclasses.replace(audit, annotations=(worst,))
    data = json.loads(write_fiftyone(only, tmp_path / "fiftyone").read_text())
    ((detection,),) = data["labels"].values()
    wanted = [6 / width, 30 / height, 30 / width, 30 / height]
    assert detection["bounding_box"] == pytest.approx(wanted)


def test_fiftyone_names_an_image_that_is_missing_or_none(audit, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    for name, error in (("gone.jpg", FileNotFoundError), (str(broken), OSError), ("", OSError)):
        worst = dataclasses.replace(audit.annotations[0], file_name=name)
        with pytest.raises(error, match=f"image '{name}'"):
            write_fiftyone(dataclasses.replace(audit, annotations=(worst,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def strict(text):
    """JSON as every other reader takes it: Python alone reads NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_number_that_is_not_finite_is_null(audit, tmp_path):
    first, *others = audit.annotations
    odd = dataclasses.replace(
        first, mean_loss=math.nan, confidence=math.inf, top_labels=(("cat", math.nan),)
    )
    odd_audit = dataclasses.replace(audit, annotations=(odd, *others))
    write_audit(odd_audit, tmp_path)
    data = strict((tmp_path / "label_audit.json").read_text())
    row = data["annotations"][0]
    assert (row["mean_loss"], row["confidence"], row["top_labels"]) == (None, None, [["cat", None]])
    read = read_audit(tmp_path / "label_audit.json")
    assert math.isnan(read.annotations[0].mean_loss)
    assert read.annotations[1:] == tuple(others)
    with open(tmp_path / "label_audit.csv", encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["mean_loss"] == ""
    strict(write_fiftyone(odd_audit, tmp_path / "fiftyone").read_text())
    strict(write_cleanlab(odd_audit, tmp_path).read_text())
