"""Labelled boxes: their texts and colours, and how they are drawn."""

import sys

import numpy as np
import pytest
import torch

from sl_detectron.visualization.boxes import annotation_boxes, detection_boxes, draw_boxes


def annotation(category, box=(0, 0, 20, 20), **more):
    return {"category_id": category, "bbox": list(box), "bbox_mode": 0, **more}


def test_labels_and_colours_of_annotations():
    annotations = [
        annotation(0, annotation_id=7),
        annotation(1, true_category_id=0, annotation_id=8),
        annotation(1, true_category_id=2),
        annotation(1, annotation_id=9),
    ]
    drawn = annotation_boxes(annotations, ["cat", "dog"], {7: 0.31, 8: 2.7, 9: 1.0})
    assert [(b.label, b.colour) for b in drawn] == [
        ("cat σ 0.31", "orange"),
        ("dog (cat) σ 2.70", "red"),
        ("dog (nothing)", "red"),
        ("dog σ 1.00", "limegreen"),
    ]


def test_colours_of_detections():
    from detectron2.structures import Boxes, Instances

    truth = [annotation(1, true_category_id=0)]
    boxes = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20], [50, 50, 60, 60]])
    found = Instances((100, 100), pred_boxes=Boxes(boxes), scores=torch.full((4,), 0.5))
    found.pred_classes = torch.tensor([0, 1, 2, 0])
    classes = ["cat", "dog", "cow"]
    colours = [b.colour for b in detection_boxes(found, truth, classes)]
    assert colours == ["limegreen", "red", "orange", "orange"]
    assert {b.colour for b in detection_boxes(found, [], classes)} == {"orange"}


def test_drawing_enlarges_small_images_only():
    for side, expected in ((100, 400), (500, 500)):
        assert draw_boxes(np.zeros((side, side, 3), np.uint8), []).shape == (expected, expected, 3)


def test_says_what_is_missing_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2.utils.visualizer", None)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"):
        draw_boxes(np.zeros((9, 9, 3), np.uint8), [])
