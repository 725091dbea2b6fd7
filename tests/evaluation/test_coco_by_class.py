"""COCO's metrics of one class at a time, which equal detectron2's to the last bit."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils import comm

from sl_detectron.evaluation.coco_by_class import COCOEvaluatorByClass

NAME, SIZE, NUM_IMAGES, NUM_CLASSES = "coco_by_class_test", 320, 30, 12


def boxes_of(rng, number):
    corners = rng.uniform(0, 200, (number, 2))
    return np.concatenate([corners, rng.uniform(4, 115, (number, 2))], axis=1).round(1)


@pytest.fixture
def truth(tmp_path):
    """A set with crowds, images without objects and classes without objects, ids far apart."""
    rng = np.random.default_rng(0)
    annotations = []
    for image in range(2, NUM_IMAGES):
        for box in boxes_of(rng, rng.integers(0, 9)).tolist():
            category = 10 + 3 * int(rng.integers(0, NUM_CLASSES - 2))
            entry = {"id": len(annotations) + 1, "image_id": 7 * image, "category_id": category}
            crowd = int(rng.random() < 0.1)
            annotations.append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
    categories = [{"id": 10 + 3 * c, "name": f"class {c}"} for c in range(NUM_CLASSES)]
    images = [
        {"id": 7 * i, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE}
        for i in range(NUM_IMAGES)
    ]
    path = tmp_path / "truth.json"
    data = {"info": {}, "images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(data))
    register_coco_instances(NAME, {}, str(path), str(tmp_path))
    DatasetCatalog.get(NAME)  # sets the class ids
    yield data
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def predictions_of(truth, empty=()):
    """Boxes near objects and elsewhere, with equal scores; none of classes 3 and 11."""
    rng = np.random.default_rng(1)
    for image in reversed(truth["images"]):
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        near = np.array([a["bbox"] for a in objects]).reshape(-1, 4)
        near = near + rng.normal(0, 3, near.shape)
        boxes = np.concatenate([near, boxes_of(rng, 5)])
        classes = [(a["category_id"] - 10) // 3 for a in objects] + rng.integers(0, 12, 5).tolist()
        kept = np.array([c not in (3, 11) for c in classes]) & (image["id"] not in empty)
        boxes[:, 2:] = boxes[:, :2] + np.maximum(boxes[:, 2:], 1)
        fields = {
            "pred_boxes": Boxes(torch.tensor(boxes, dtype=torch.float32)[kept]),
            "scores": torch.tensor(rng.integers(1, 9, len(boxes)) / 9).float()[kept],
            "pred_classes": torch.tensor(classes, dtype=torch.int64)[kept],
        }
        yield image["id"], Instances((SIZE, SIZE), **fields)


def evaluated(evaluator, predictions, img_ids=None):
    evaluator.reset()
    for image_id, instances in predictions:
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate(img_ids)


@pytest.mark.parametrize("img_ids", [None, [7 * i for i in range(1, NUM_IMAGES, 2)]])
@pytest.mark.parametrize("max_dets", [None, 1, 2])
def test_results_and_files_equal_those_of_detectron2(truth, tmp_path, img_ids, max_dets):
    folders = [tmp_path / "stock", tmp_path / "ours"]
    keys = {"use_fast_impl": False, "max_dets_per_image": max_dets}
    stock = COCOEvaluator(NAME, output_dir=str(folders[0]), **keys)
    ours = COCOEvaluatorByClass(NAME, output_dir=str(folders[1]), min_pairs=0, **keys)
    found = [*predictions_of(truth, empty=(7 * 5,))]
    expected = evaluated(stock, found, img_ids)
    # repr, as nan equals no nan; the metrics come in the same order.
    assert repr(evaluated(ours, found, img_ids)) == repr(expected)
    assert expected["bbox"]["AP50"] > 20
    assert np.isnan(expected["bbox"]["AP-class 10"])
    first, second = ((f / "coco_instances_results.json").read_text() for f in folders)
    assert second == first


def both(predictions, **keys):
    """Results of detectron2's evaluator and of ours."""
    found, keys = [*predictions], {"use_fast_impl": False, **keys}
    ours = COCOEvaluatorByClass(NAME, min_pairs=0, **keys)
    return evaluated(COCOEvaluator(NAME, **keys), found), evaluated(ours, found)


def set_class_ids(numbers):
    path = MetadataCatalog.get(NAME).json_file
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(json_file=path, thing_dataset_id_to_contiguous_id=numbers)


def test_annotations_of_images_or_categories_that_the_json_lacks(truth):
    lacked = {7 * 4, 7 * 9}
    truth["images"] = [image for image in truth["images"] if image["id"] not in lacked]
    found = [*predictions_of(truth)]
    truth["annotations"][5]["category_id"] = 999
    with open(MetadataCatalog.get(NAME).json_file, "w") as file:
        json.dump(truth, file)
    expected, results = both(found)
    assert repr(results) == repr(expected)


@pytest.mark.parametrize("spelt", [str, lambda i: 2 * i - 50, float])
def test_ids_of_any_kind(truth, spelt):
    for category in truth["categories"]:
        category["id"] = spelt(category["id"])
    found = [(spelt(image_id), x) for image_id, x in predictions_of(truth)]
    for annotation in truth["annotations"]:
        annotation["id"] -= 1  # pycocotools takes what matches id 0 for unmatched
        for key in ("image_id", "category_id"):
            annotation[key] = spelt(annotation[key])
    for image in truth["images"]:
        image["id"] = spelt(image["id"])
    with open(MetadataCatalog.get(NAME).json_file, "w") as file:
        json.dump(truth, file)
    set_class_ids({c["id"]: i for i, c in enumerate(truth["categories"])})
    expected, results = both(found)
    assert repr(results) == repr(expected)
    assert expected["bbox"]["AP50"] > 20


def test_a_detector_of_some_of_the_classes(truth):
    found = []
    for image_id, instances in predictions_of(truth):
        found.append((image_id, instances[instances.pred_classes < 2]))
    set_class_ids({10: 0, 13: 1})
    expected, results = both(found)
    assert repr(results) == repr(expected)
    assert expected["bbox"]["AP"] > 0


def test_class_ids_that_two_categories_share_are_refused(truth):
    set_class_ids({10: 0, 13: 0})
    with pytest.raises(ValueError, match="'coco_by_class_test' must have the values 0 to 1"):
        evaluated(COCOEvaluatorByClass(NAME, min_pairs=0), predictions_of(truth))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_type(truth, kind):
    found = [*predictions_of(truth)]
    for _, instances in found:
        instances.scores = instances.scores.to(kind)
    expected, results = both(found)
    assert repr(results) == repr(expected)


def test_proposals_beside_boxes_are_evaluated_too(truth):
    outputs = []
    for image_id, instances in predictions_of(truth):
        fields = {"proposal_boxes": instances.pred_boxes, "objectness_logits": instances.scores}
        proposals = Instances((SIZE, SIZE), **fields)
        outputs.append((image_id, {"instances": instances, "proposals": proposals}))
    results = []
    for kind, keys in ((COCOEvaluator, {}), (COCOEvaluatorByClass, {"min_pairs": 0})):
        evaluator = kind(NAME, use_fast_impl=False, **keys)
        evaluator.reset()
        for image_id, output in outputs:
            evaluator.process([{"image_id": image_id}], [output])
        results.append(evaluator.evaluate())
    assert [*results[0]] == ["box_proposals", "bbox"]
    assert repr(results[1]) == repr(results[0])


def test_rotated_boxes_are_not_taken_for_upright_ones(truth):
    fields = {
        "pred_boxes": RotatedBoxes(torch.tensor([[20.0, 20.0, 9.0, 9.0, 45.0]])),
        "scores": torch.ones(1),
        "pred_classes": torch.zeros(1, dtype=torch.int64),
    }
    instances = Instances((SIZE, SIZE), **fields)
    for kind, keys in ((COCOEvaluator, {}), (COCOEvaluatorByClass, {"min_pairs": 0})):
        with pytest.raises(Exception, match="list input can be bounding box"):
            evaluated(kind(NAME, use_fast_impl=False, **keys), [(14, instances)])


def test_what_is_kept_grows_with_the_detections_alone(truth):
    """Of views of a large tensor no more than their numbers; fields of custom heads not at all."""
    evaluator = COCOEvaluatorByClass(NAME, min_pairs=0)
    evaluator.reset()
    large = torch.rand(1000, 4)
    fields = {"pred_boxes": Boxes(large[:2]), "scores": large[:2, 0]}
    fields |= {"pred_classes": torch.zeros(2, dtype=torch.int64), "sigma": large[:2]}
    instances = Instances((SIZE, SIZE), **fields)
    evaluator.process([{"image_id": 7}], [{"instances": instances}])
    (kept,) = (p["instances"] for p in evaluator._predictions)
    assert {*kept.get_fields()} == {"pred_boxes", "scores", "pred_classes"}
    assert kept.pred_boxes.tensor.untyped_storage().nbytes() == 2 * 4 * 4
    assert kept.scores.untyped_storage().nbytes() == 2 * 4
    # Nor does a later change of the model's tensors reach them.
    before = kept.pred_boxes.tensor.clone()
    large.zero_()
    assert torch.equal(kept.pred_boxes.tensor, before)


@pytest.mark.parametrize(
    "tasks", [["bbox"], {"bbox"}, (), CfgNode({"TEST": {"KEYPOINT_OKS_SIGMAS": ()}})]
)
def test_boxes_are_the_task_however_it_is_given(truth, monkeypatch, tasks):
    found = [*predictions_of(truth)]
    expected = evaluated(COCOEvaluator(NAME, tasks, use_fast_impl=False), found)
    monkeypatch.setattr(COCOEvaluator, "_eval_predictions", None)
    ours = COCOEvaluatorByClass(NAME, tasks, min_pairs=0)
    assert repr(evaluated(ours, found)) == repr(expected)


def test_images_come_from_several_ranks(truth, monkeypatch):
    """Some without any image, one with an image that another has too."""
    found = [*predictions_of(truth)]
    ranks = [[], found[:12], [], found[11:]]
    results = []
    for kind, keys in ((COCOEvaluator, {}), (COCOEvaluatorByClass, {"min_pairs": 0})):
        kept = []
        for of_rank in ranks:
            evaluator = kind(NAME, use_fast_impl=False, **keys)
            evaluator.reset()
            for image_id, instances in of_rank:
                evaluator.process([{"image_id": image_id}], [{"instances": instances}])
            kept.append(pickle.dumps(evaluator._predictions))
        monkeypatch.setattr(comm, "gather", lambda _, dst, kept=kept: [*map(pickle.loads, kept)])
        results.append(evaluator.evaluate())
    assert repr(results[1]) == repr(results[0])


def test_nothing_of_a_pair_is_kept_for_large_sets_only(truth, tmp_path):
    found = [*predictions_of(truth)]
    pairs = NUM_IMAGES * NUM_CLASSES
    for min_pairs, kind in ((pairs + 1, list), (pairs, Instances)):
        evaluator = COCOEvaluatorByClass(NAME, output_dir=str(tmp_path), min_pairs=min_pairs)
        evaluated(evaluator, found)
        kept = torch.load(tmp_path / "instances_predictions.pth", weights_only=False)
        assert {type(p["instances"]) for p in kept} == {kind}


def test_no_detection_at_all(truth, tmp_path):
    everywhere = [image["id"] for image in truth["images"]]
    evaluator = COCOEvaluatorByClass(NAME, output_dir=str(tmp_path), min_pairs=0)
    results = evaluated(evaluator, predictions_of(truth, empty=everywhere))
    assert np.isnan(results["bbox"]["AP"])
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_masks_are_left_to_detectron2(truth, caplog):
    """Also where some images have none, and their boxes were kept as tensors."""
    found = []
    for i, (image_id, instances) in enumerate(predictions_of(truth)):
        if i % 2:
            masks = torch.zeros(len(instances), SIZE, SIZE, dtype=torch.bool)
            for mask, box in zip(masks, instances.pred_boxes.tensor.int().tolist()):
                mask[box[1] : box[3], box[0] : box[2]] = True
            instances.pred_masks = masks
        found.append((image_id, instances))
    keys = {"tasks": ("bbox",), "use_fast_impl": False}
    expected = evaluated(COCOEvaluator(NAME, **keys), found)
    with caplog.at_level(logging.INFO):
        results = evaluated(COCOEvaluatorByClass(NAME, min_pairs=0, **keys), found)
    assert repr(results) == repr(expected)


@pytest.mark.parametrize(
    ("image_id", "class_id", "message"),
    [(7, 12, "class 12 is predicted, but 'coco_by_class_test' has 12 classes"), (8, 0, "image 8")],
)
def test_a_class_or_an_image_that_the_set_lacks_is_refused(truth, image_id, class_id, message):
    fields = {
        "pred_boxes": Boxes(torch.tensor([[1.0, 1.0, 9.0, 9.0]])),
        "scores": torch.ones(1),
        "pred_classes": torch.tensor([class_id]),
    }
    found = [(image_id, Instances((SIZE, SIZE), **fields))]
    with pytest.raises(ValueError, match=message):
        evaluated(COCOEvaluatorByClass(NAME, min_pairs=0), found)
