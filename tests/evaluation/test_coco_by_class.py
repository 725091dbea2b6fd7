"""COCO's metrics of one class at a time, which equal detectron2's to the last bit."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

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
@pytest.mark.parametrize("max_dets", [None, 2])
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
