"""The evaluator that TEST.EVALUATOR names, and COCO's metrics of a VOC style set."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.evaluation import COCOEvaluator

from helpers.devkit import make_instances, write_devkit
from sl_detectron.data import register_voc_dataset
from sl_detectron.evaluation import VOCEvaluator
from sl_detectron.evaluation.evaluator_choice import build_evaluator, check_evaluator

NAME = "build_evaluator_test"


@pytest.fixture
def dataset(tmp_path):
    images = {
        "a": [("cat", (11, 11, 50, 50), 0), ("cat", (101, 101, 150, 150), 1)],
        "b": [("dog", (11, 11, 50, 50), 0)],
    }
    register_voc_dataset(NAME, write_devkit(tmp_path / "set", images), "test", ["cat", "dog"])
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def run(evaluator, found):
    evaluator.reset()
    for image_id, detections in found.items():
        instances = make_instances(detections)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_kinds(dataset, tmp_path):
    assert isinstance(build_evaluator(dataset), VOCEvaluator)
    assert isinstance(build_evaluator(dataset, "coco", tmp_path), COCOEvaluator)
    with pytest.raises(
        ValueError, match=r"TEST.EVALUATOR must be one of \('voc', 'coco'\).*'lvis'"
    ):
        build_evaluator(dataset, "lvis")
    with pytest.raises(ValueError, match="needs an output_dir"):
        build_evaluator(dataset, "coco")


def test_coco_metrics_by_hand(dataset, tmp_path):
    # The cat is found with overlap 0.75 (30 x 40 of 40 x 40 pixels), the dog exactly.
    found = {"a": [(0, 0.9, (10, 10, 40, 50))], "b": [(1, 0.9, (10, 10, 50, 50))]}
    scores = run(build_evaluator(dataset, "coco", tmp_path), found)
    assert scores["AP50"] == pytest.approx(100)
    assert scores["AP-dog"] == pytest.approx(100)
    # COCO matches at an overlap of the threshold or more: 0.50, 0.55, ..., 0.75.
    assert scores["AP-cat"] == pytest.approx(60)


def test_difficult_objects_count_neither_way_in_coco_style(dataset, tmp_path):
    exact = {"a": [(0, 0.5, (10, 10, 50, 50))], "b": [(1, 0.5, (10, 10, 50, 50))]}
    assert run(build_evaluator(dataset, "coco", tmp_path), exact)["AP"] == pytest.approx(100)
    # A better scored detection of the difficult cat would halve the precision of the other one.
    exact["a"].append((0, 0.9, (100, 100, 150, 150)))
    assert run(build_evaluator(dataset, "coco", tmp_path), exact)["AP"] == pytest.approx(100)


def test_coco_style_follows_the_set_and_leaves_the_catalogs_alone(dataset, tmp_path):
    before = set(DatasetCatalog), set(MetadataCatalog)
    found = {"a": [(0, 0.9, (10, 10, 50, 50))], "b": [(1, 0.9, (10, 10, 50, 50))]}
    assert run(build_evaluator(dataset, "coco", tmp_path), found)["AP"] == pytest.approx(100)
    file = f"{MetadataCatalog.get(dataset).dirname}/Annotations/b.xml"
    with open(file) as f:
        text = f.read()
    with open(file, "w") as f:
        f.write(text.replace("dog", "cat"))
    # The same folder again, as after a resume: the converted file of the first run is stale.
    assert run(build_evaluator(dataset, "coco", tmp_path), found)["AP50"] < 100
    assert (set(DatasetCatalog), set(MetadataCatalog)) == before
    assert not hasattr(MetadataCatalog.get(dataset), "json_file")


def test_a_coco_evaluation_elsewhere_does_not_change_the_kind(dataset):
    # detectron2's own COCOEvaluator leaves this in the metadata of any set that it has scored.
    MetadataCatalog.get(dataset).json_file = "converted.json"
    assert isinstance(build_evaluator(dataset, "voc"), VOCEvaluator)


def test_a_set_in_the_form_of_lvis_is_refused(tmp_path):
    """Its json numbers classes from 1 and detectron2's loader from 0: AP would be near 0."""
    name = f"{NAME}_lvis"
    register_lvis_instances(name, {}, str(tmp_path / "lvis.json"), str(tmp_path))
    try:
        with pytest.raises(ValueError, match=f"{name}.*LVISEvaluator, or leave the set out"):
            check_evaluator(name, "coco")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_absent_classes_reach_the_evaluator(tmp_path):
    name = f"{NAME}_absent"
    root = write_devkit(tmp_path / "set", {"a": [("cat", (11, 11, 50, 50), 0)]})
    register_voc_dataset(name, root, "test", ["cat", "dog"])
    found = {"a": [(0, 0.9, (10, 10, 50, 50))]}
    try:
        assert run(build_evaluator(name), found)["AP50"] == pytest.approx(100)
        evaluator = build_evaluator(name, absent_classes="zero")
        assert run(evaluator, found)["AP50"] == pytest.approx(50)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
