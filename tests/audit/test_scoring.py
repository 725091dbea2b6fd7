"""Known noise: where the truth comes from, and the scores by hand arithmetic."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances

from helpers.audit_cases import CLASSES, IMAGES, PROBABILITIES, make_audit, write_devkit
from sl_detectron.audit.objectlab import objectlab_scores
from sl_detectron.audit.scoring import (
    evaluate_audit,
    evaluation_table,
    plot_evaluation,
    truth_from_manifest,
    write_evaluation,
)
from sl_detectron.data import load_voc_dataset
from sl_detectron.data.annotation_ids import AnnotationTable, number_annotations
from sl_detectron.data.formats.manifest import read_manifest
from sl_detectron.label_noise import MissingAnnotations, SpuriousBoxes, SymmetricNoise, inject
from sl_detectron.label_noise.export import export_noisy_voc


@pytest.fixture
def audit(tmp_path):
    return make_audit(tmp_path, PROBABILITIES, f"evaluation_{tmp_path.name}")


# The labels are 0, 1, 2, 1, 0, 2; number 1 was 0 and number 4 was 2. Ranked: 1, 3, 4, 5, 0, 2.
TRUTH = {0: 0, 1: 0, 2: 2, 3: 1, 4: 2, 5: 2}


def test_by_hand(audit):
    references = {"perfect": {i: float(i in (1, 4)) for i in range(6)}}
    evaluation = evaluate_audit(audit, TRUTH, references)
    assert (evaluation.num_annotations, evaluation.num_wrong) == (6, 2)
    # Of the two most suspect, number 1 is wrong and its suggestion right; number 4 comes third.
    assert evaluation.right_suggestions == pytest.approx(1 / 2)
    ours = evaluation.scores["suspicion"]
    assert ours.precision_at["wrong"] == pytest.approx(1 / 2)
    assert ours.auroc == pytest.approx(7 / 8)
    assert ours.average_precision == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert [*evaluation.scores["perfect"].by_name().values()] == [1, 1, 1]
    assert {"plain loss", "low confidence"} <= evaluation.scores.keys()


def test_a_box_without_object_is_wrong_but_no_suggestion_is_right(audit):
    evaluation = evaluate_audit(audit, {**TRUTH, 1: len(CLASSES)})
    assert evaluation.num_wrong == 2
    assert evaluation.right_suggestions == 0


def test_nothing_wrong_is_an_error(audit):
    with pytest.raises(ValueError, match="0 of 6 labels are wrong"):
        evaluate_audit(audit, {0: 0, 1: 1, 2: 2, 3: 1, 4: 0, 5: 2})


def test_table_picture_and_json(audit, tmp_path):
    evaluation = evaluate_audit(audit, TRUTH)
    assert "50.0 % of the flipped ones among the 2 most suspect" in evaluation_table(evaluation)
    plot_evaluation(evaluation, tmp_path / "evaluation.png")
    assert (tmp_path / "evaluation.png").stat().st_size > 5000
    write_evaluation(evaluation, tmp_path / "evaluation.json")
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert data["scores"]["suspicion"]["auroc"] == pytest.approx(7 / 8)


def table(records, name="set"):
    return AnnotationTable.of(number_annotations({name: records}))


def test_manifest_on_disk_tells_the_same_truth_as_noise_in_memory(tmp_path):
    images = {f"{name}{i}": objects for i in range(6) for name, objects in IMAGES.items()}
    root = write_devkit(tmp_path / "devkit", images)
    noises = [SymmetricNoise(rate=0.4), MissingAnnotations(rate=0.3), SpuriousBoxes(rate=0.3)]
    export_noisy_voc(root, "train", tmp_path / "noisy", noises, CLASSES, "set")
    lines = read_manifest(str(tmp_path / "noisy" / "manifest.jsonl"))
    assert {line["what"] for line in lines} == {"label", "missing", "spurious"}
    clean = load_voc_dataset(root, "train", CLASSES)
    in_memory, _ = inject(clean, noises, len(CLASSES), "set")
    expected = table(in_memory).true_classes()
    on_disk = load_voc_dataset(tmp_path / "noisy", "train", CLASSES)
    assert truth_from_manifest(table(on_disk), lines, CLASSES) == expected
    with pytest.raises(ValueError, match="not this dataset's manifest"):
        truth_from_manifest(table(clean), lines, CLASSES)
    with pytest.raises(ValueError, match=r"of the datasets \['set'\], the audit of \['other'\]"):
        truth_from_manifest(table(on_disk, "other"), lines, CLASSES)


@pytest.mark.parametrize("score", [0.99, 0.6])
def test_objectlab_sees_a_swapped_class(score):
    pytest.importorskip("cleanlab")
    boxes = [[10, 10, 40, 40], [50, 50, 90, 90]]
    annotations = [
        {"bbox": box, "bbox_mode": 0, "category_id": 0, "annotation_id": i}
        for i, box in enumerate(boxes)
    ]
    records = [{"image_id": 0, "annotations": annotations}, {"image_id": 1, "annotations": []}]
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor(boxes).float())
    found.scores, found.pred_classes = torch.tensor([score, score]), torch.tensor([0, 1])
    empty = Instances((100, 100), pred_boxes=Boxes(torch.zeros(0, 4)))
    empty.scores, empty.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    scores = objectlab_scores(records, [found, empty], num_classes=2)
    assert scores["swap at 0.5"][1] < 0.1 < 0.9 < scores["swap at 0.5"][0]
    if score > 0.95:
        assert scores["swap"] == scores["swap at 0.5"]
        assert scores["image"][0] < 1
    else:
        assert set(scores["swap"].values()) == {1.0}
    assert scores["image"][0] == scores["image"][1]
