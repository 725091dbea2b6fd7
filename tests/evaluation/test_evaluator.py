"""VOCEvaluator in detectron2's loop: the stock evaluator's numbers, and what it cannot do."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.evaluation import PascalVOCDetectionEvaluator

from helpers.detectors import run_ranks
from helpers.devkit import make_instances, random_devkit, random_predictions, write_devkit
from sl_detectron.data import register_voc_dataset
from sl_detectron.evaluation import VOCEvaluator

SUMMARY = ("AP", "AP50", "AP75")
# Of 50 random sets each; 250 are enough for a change, the others run with --long.
half_of_the_blocks = pytest.mark.parametrize(
    "block", [*range(5), *(pytest.param(i, marks=pytest.mark.long) for i in range(5, 10))]
)
CAT_BOX = (11, 11, 50, 50)
# The same box as a detection: 0-based.
CAT_FOUND = (10, 10, 50, 50)


@pytest.fixture
def register(tmp_path):
    """Write and register small sets; they leave detectron2's catalogs afterwards."""
    names = []

    def make(images, class_names=("cat", "dog"), **kwargs):
        # detectron2 caches annotations by path: every set gets a folder of its own.
        name = f"evaluator_test_{len(names)}"
        root = write_devkit(tmp_path / name, images)
        register_voc_dataset(name, root, "test", class_names, **kwargs)
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def run(evaluator, predictions):
    evaluator.reset()
    for image_id, instances in predictions.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def both(name, predictions):
    """AP, AP50 and AP75 of detectron2's evaluator and of ours."""
    stock = run(PascalVOCDetectionEvaluator(name), predictions)
    ours = run(VOCEvaluator(name), predictions)
    return [stock[k] for k in SUMMARY], [ours[k] for k in SUMMARY]


@half_of_the_blocks
def test_equals_detectron2_on_random_sets(register, block):
    positive = 0
    for seed in range(50 * block, 50 * block + 50):
        rng = np.random.default_rng(seed)
        class_names = [f"class{i}" for i in range(rng.integers(1, 5))]
        images = random_devkit(rng, class_names)
        name = register(images, class_names, year=int(rng.choice([2007, 2012])))
        found = {i: random_predictions(rng, images[i], class_names) for i in images}
        stock, ours = both(name, found)
        assert ours == stock, f"seed {seed}"
        positive += stock[0] > 0
    assert positive > 20


@half_of_the_blocks
def test_equals_detectron2_where_classes_lack_objects(register, block):
    """Subsets of the set's classes, with classes it lacks or whose objects are all difficult."""
    compared = {2007: 0, 2012: 0}
    for seed in range(50 * block, 50 * block + 50):
        rng = np.random.default_rng([1, seed])
        images = random_devkit(rng, ["common", "hard", "other"])
        for image_id, objects in images.items():
            images[image_id] = [(n, box, int(d or n == "hard")) for n, box, d in objects]
        rare = rng.choice(["hard", "absent"], size=rng.integers(1, 3), replace=False).tolist()
        class_names = rng.permutation(["common", *rare]).tolist()
        year = int(rng.choice([2007, 2012]))
        name = register(images, class_names, year=year)
        found = {i: random_predictions(rng, images[i], class_names) for i in images}
        if year == 2012:
            # detectron2's area is nan where a class without objects has detections.
            common = class_names.index("common")
            found = {i: x[x.pred_classes == common] for i, x in found.items()}
        # Under the 11 points it divides by the number of objects, 0, without effect.
        with np.errstate(invalid="ignore", divide="ignore"):
            stock = run(PascalVOCDetectionEvaluator(name), found)
        ours = run(VOCEvaluator(name, absent_classes="zero"), found)
        assert [ours[k] for k in SUMMARY] == [stock[k] for k in SUMMARY], f"seed {seed}"
        compared[year] += stock["AP"] > 0
    assert min(compared.values()) > 5


@pytest.mark.parametrize("year", [2007, 2012])
@pytest.mark.parametrize(
    "detections",
    [
        [],
        [(0, 0.9, CAT_FOUND)],
        [(1, 0.9, CAT_FOUND)],
        # All scores become 0.500 in the text files, so only the sort decides.
        [(0, 0.5 + i * 1e-5, (10 + i, 10, 50 + i, 50)) for i in range(-20, 20)],
        # Scores and coordinates that lie halfway between two decimals.
        [(0, i / 16, np.add(CAT_FOUND, i / 4 + 0.05)) for i in range(17)],
        # Thousands of ties: numpy sorts arrays of this size in another way.
        [(i % 2, (i % 7) / 8, np.add(CAT_FOUND, i % 13)) for i in range(5000)],
    ],
    ids=["nothing", "one hit", "wrong class", "ties", "halfway", "many ties"],
)
def test_equals_detectron2_in_special_cases(register, year, detections):
    name = register({"a": [("cat", CAT_BOX, 0), ("dog", (60, 60, 90, 90), 0)]}, year=year)
    stock, ours = both(name, {"a": make_instances(detections)})
    assert ours == stock


@pytest.mark.parametrize("year", [2007, 2012])
def test_subset_of_the_classes_equals_detectron2(register, caplog, year):
    images = {
        "a": [("cat", CAT_BOX, 0), ("dog", (60, 60, 90, 90), 0), ("cow", CAT_BOX, 0)],
        "b": [("dog", CAT_BOX, 0), ("cow", CAT_BOX, 1)],
    }
    # The best scored cat is on the dog.
    found = [(1, 0.9, (59, 59, 90, 90)), (0, 0.7, CAT_FOUND), (1, 0.8, CAT_FOUND)]
    predictions = {"a": make_instances(found), "b": make_instances(found[1:])}
    name = register(images, ["cow", "cat"], year=year)
    with caplog.at_level(logging.WARNING):
        stock, ours = both(name, predictions)
    assert ours == stock
    assert 0 < ours[0] < 100
    (message,) = (m for m in caplog.messages if "ignored" in m)
    assert "objects of classes outside the class list are ignored, 'dog' (2)" in message


@pytest.mark.parametrize("year", [2007, 2012])
def test_one_pixel_boxes_count_as_in_detectron2(register, year):
    images = {"a": [("cat", (7, 7, 7, 7), 0), ("cat", (20, 30, 20, 39), 0)]}
    name = register(images, ["cat"], year=year)
    # The pixel exactly; of the column 8 pixels in 10, which counts up to a threshold of 0.75.
    found = {"a": make_instances([(0, 0.9, (6, 6, 7, 7)), (0, 0.8, (19, 29, 20, 37))])}
    stock, ours = both(name, found)
    assert ours == stock
    assert ours[1] == pytest.approx(100)


@pytest.mark.parametrize("year", [2007, 2012])
def test_equals_detectron2_on_real_annotations(datasets_root, year):
    root, name = datasets_root / "VOC2007", f"evaluator_test_real_{year}"
    rng = np.random.default_rng(year)
    # Every class has an object in trainval; the test split of a subset may lack one.
    register_voc_dataset(name, root, "trainval", CLASS_NAMES, year)
    try:
        found = {
            record["image_id"]: random_predictions(
                rng,
                [
                    (CLASS_NAMES[a["category_id"]], np.add(a["bbox"], [1, 1, 0, 0]), 0)
                    for a in record["annotations"]
                ],
                CLASS_NAMES,
            )
            for record in DatasetCatalog.get(name)
        }
        stock, ours = both(name, found)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert ours == stock
    assert 0 < ours[0] < 100


def test_metric_follows_the_year_unless_given(register):
    images = {"a": [("cat", CAT_BOX, 0)], "b": [("cat", CAT_BOX, 0)]}
    found = {"a": make_instances([(0, 0.9, CAT_FOUND)])}
    # One of two objects found, no miss: area 1/2, 11 points 6/11.
    area, eleven = pytest.approx(50), pytest.approx(600 / 11)
    old, new = register(images, ["cat"], year=2007), register(images, ["cat"], year=2031)
    assert run(VOCEvaluator(old), found)["AP50"] == eleven
    assert run(VOCEvaluator(new), found)["AP50"] == area
    assert run(VOCEvaluator(old, metric="area"), found)["AP50"] == area
    assert run(VOCEvaluator(new, metric="07"), found)["AP50"] == eleven


def test_absent_class_is_left_out_or_counts_zero(register, caplog):
    name = register({"a": [("cat", CAT_BOX, 0), ("dog", (60, 60, 90, 90), 1)]})
    found = {"a": make_instances([(0, 0.9, CAT_FOUND), (1, 0.9, (0, 0, 9, 9))])}
    with caplog.at_level(logging.WARNING):
        scores = run(VOCEvaluator(name), found)
    assert [scores[k] for k in SUMMARY] == [100, 100, 100]
    assert scores["AP50-cat"] == 100
    assert np.isnan(scores["AP50-dog"])
    assert "No ground truth, left out of the mean: dog" in caplog.text
    scores = run(VOCEvaluator(name, absent_classes="zero"), found)
    assert [scores[k] for k in SUMMARY] == [50, 50, 50]


def test_absent_class_under_the_11_points_is_zero_as_in_detectron2(register):
    name = register({"a": [("cat", CAT_BOX, 0)]}, year=2007)
    found = {"a": make_instances([(0, 0.9, CAT_FOUND), (1, 0.9, (0, 0, 9, 9))])}
    with np.errstate(invalid="ignore"):
        stock = run(PascalVOCDetectionEvaluator(name), found)
    ours = run(VOCEvaluator(name, absent_classes="zero"), found)
    assert [ours[k] for k in SUMMARY] == [stock[k] for k in SUMMARY]
    assert ours["AP"] == pytest.approx(50)


def test_set_without_any_object_is_refused(register):
    with pytest.raises(ValueError, match="has no object to score against, in 1 files"):
        run(VOCEvaluator(register({"a": []})), {"a": make_instances([])})


def test_exact_mode_keeps_every_decimal(register):
    name = register({"a": [("cat", (1, 1, 10, 2), 0)]}, ["cat"])
    # Half of the box overlaps by 0.5, which is not more than the threshold; 0.04 pixels tip it, and
    # are lost in a text file's one decimal.
    found = {"a": make_instances([(0, 0.9, (0, 0, 10, 1.04))])}
    assert run(VOCEvaluator(name), found)["AP50"] == 0
    assert run(VOCEvaluator(name, rounding=False), found)["AP50"] == 100
    # A miss that scores 1e-5 less comes second, in whichever order the two were made.
    for order in ([0, 1], [1, 0]):
        rows = [(0, 0.50001, (0, 0, 10, 2)), (0, 0.5, (90, 90, 99, 99))]
        found = {"a": make_instances([rows[i] for i in order])}
        assert run(VOCEvaluator(name, rounding=False), found)["AP50"] == 100


def test_per_class_keys_are_not_printed_as_main_metrics(register):
    name = register({"a": [("cat", CAT_BOX, 0), ("dog", CAT_BOX, 0)]})
    scores = run(VOCEvaluator(name), {"a": make_instances([(0, 0.9, CAT_FOUND)])})
    assert [key for key in scores if "-" not in key] == ["AP", "AP50", "AP75"]
    for metric in ("AP", "AP50", "AP75", "recall50"):
        assert (scores[f"{metric}-cat"], scores[f"{metric}-dog"]) == (100, 0)


def test_result_holds_every_threshold_and_the_curve(register):
    name = register({"a": [("cat", CAT_BOX, 0)], "b": [("cat", CAT_BOX, 0)]}, ["cat"])
    evaluator = VOCEvaluator(name)
    # In "b" 40 x 40 pixels are wanted and 30 x 40 of them found: overlap 0.75.
    found = [(0, 0.9, CAT_FOUND)], [(0, 0.8, (10, 10, 40, 50))]
    run(evaluator, dict(zip("ab", map(make_instances, found))))
    row = evaluator.result.per_class()["cat"]
    assert row["AP_by_iou"] == {50 + 5 * i: 100 if i < 5 else 50 for i in range(10)}
    assert row["recall_by_iou"] == {50 + 5 * i: 100 if i < 5 else 50 for i in range(10)}
    (scored,) = evaluator.result.classes
    assert (scored.recall.tolist(), scored.precision.tolist()) == ([0.5, 1.0], [1.0, 1.0])


def test_ground_truth_is_read_anew(register):
    name = register({"a": [("cat", CAT_BOX, 0)]}, ["cat"])
    found = {"a": make_instances([(0, 0.9, CAT_FOUND)])}
    evaluator = VOCEvaluator(name)
    assert run(evaluator, found)["AP50"] == 100
    file = f"{MetadataCatalog.get(name).dirname}/Annotations/a.xml"
    with open(file) as f:
        text = f.read()
    with open(file, "w") as f:
        f.write(text.replace("<xmax>50<", "<xmax>150<"))
    assert run(evaluator, found)["AP50"] == 0


def test_repeated_and_missing_images_are_reported(register, caplog):
    name = register({i: [("cat", CAT_BOX, 0)] for i in "abc"}, ["cat"])
    evaluator = VOCEvaluator(name)
    evaluator.reset()
    good, bad = make_instances([(0, 0.9, CAT_FOUND)]), make_instances([(0, 1.0, (0, 0, 9, 9))])
    for image_id, instances in (("a", good), ("a", bad), ("b", good)):
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    with caplog.at_level(logging.WARNING):
        scores = evaluator.evaluate()["bbox"]
    # Two of three objects are found, and the second prediction for "a" is no miss.
    assert scores["AP50"] == pytest.approx(200 / 3)
    assert "1 images have several predictions" in caplog.text
    assert "1 of 3 images" in caplog.text


def test_unknown_image_and_class_are_errors(register):
    evaluator = VOCEvaluator(register({"a": [("cat", CAT_BOX, 0)]}))
    evaluator.reset()
    with pytest.raises(ValueError, match="image 'b' is not in split 'test'"):
        evaluator.process([{"image_id": "b"}], [{"instances": make_instances([])}])
    found = make_instances([(2, 0.9, CAT_FOUND)])
    with pytest.raises(ValueError, match=r"2\.\.2 are predicted, but .* has 2 classes"):
        evaluator.process([{"image_id": "a"}], [{"instances": found}])


def test_bad_choices_are_named(register):
    name = register({"a": []})
    with pytest.raises(ValueError, match=r"metric must be one of .*'11'"):
        VOCEvaluator(name, metric="11")
    with pytest.raises(ValueError, match=r"absent_classes must be one of .*'drop'"):
        VOCEvaluator(name, absent_classes="drop")
    with pytest.raises(ValueError, match="'coco_2017_val' has no 'dirname'"):
        VOCEvaluator("coco_2017_val")


def evaluate_on_rank(root, output):
    """What one of two processes does: rank 0 predicts "a", rank 1 predicts "b" and again "a"."""
    from detectron2.utils import comm

    register_voc_dataset("evaluator_test_ranks", root, "test", ["cat"])
    evaluator = VOCEvaluator("evaluator_test_ranks")
    evaluator.reset()
    for image_id in ("a",) if comm.get_rank() == 0 else ("b", "a"):
        found = make_instances([(0, 0.9, CAT_FOUND)])
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    scores = evaluator.evaluate()
    (output / f"{comm.get_rank()}.json").write_text(json.dumps(scores))


def test_predictions_of_two_processes_are_joined(tmp_path):
    root = write_devkit(tmp_path / "set", {i: [("cat", CAT_BOX, 0)] for i in "abcd"})
    run_ranks(evaluate_on_rank, 2, root, tmp_path)
    scores = json.loads((tmp_path / "0.json").read_text())["bbox"]
    # Two of four objects are found; the repeated image adds no miss.
    assert [scores[k] for k in SUMMARY] == [50, 50, 50]
    assert json.loads((tmp_path / "1.json").read_text()) is None
