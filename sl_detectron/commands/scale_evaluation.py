"""What an evaluation costs: VOC's AP, and COCO's class by class beside detectron2's."""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ..evaluation.average_precision import Detections, GroundTruth, evaluate_detections
from ..evaluation.coco_by_class import COCOEvaluatorByClass
from .scale_figures import MB, Figures, measured, peak_bytes
from .scale_sets import made_detections

__all__ = ["coco_evaluation_job", "evaluation_job"]

# Detections an image, and the most that detectron2 evaluates: it takes a minute for 100,000.
PER_IMAGE = 125
MOST_STOCK = 100_000
_NAME = "scale_evaluation"


def evaluation_job(num_detections: int, num_classes: int) -> Figures:
    """VOC AP at ten thresholds."""
    figures: Figures = {}
    images = _images(num_detections, num_classes)
    before = peak_bytes()
    with measured(figures, "VOC AP"):
        evaluate_detections(*_arrays(images), num_classes)
    figures["VOC AP, peak"] = ((peak_bytes() - before) / MB, "MB")
    return figures


def coco_evaluation_job(num_detections: int, num_classes: int) -> Figures:
    """COCO's AP class by class; by detectron2 of a part of the images, and VOC AP of the same.

    Raises:
        ValueError: the two ways to COCO's AP differ
    """
    figures: Figures = {}
    images = _images(num_detections, num_classes)
    before = peak_bytes()
    with measured(figures, "COCO AP by classes"):
        _coco_metrics(images, num_classes, COCOEvaluatorByClass, min_pairs=0)
    figures["COCO AP by classes, peak"] = ((peak_bytes() - before) / MB, "MB")
    part = images[: MOST_STOCK // PER_IMAGE]
    some: Figures = {}
    with measured(some, "VOC AP"):
        evaluate_detections(*_arrays(part), num_classes)
    with measured(some, "COCO AP by classes"):
        ours = _coco_metrics(part, num_classes, COCOEvaluatorByClass, min_pairs=0)
    name = f"detectron2's COCO AP, at most {MOST_STOCK:,} of them"
    with measured(figures, name):
        stock = _coco_metrics(part, num_classes, COCOEvaluator, use_fast_impl=False)
    if repr(ours) != repr(stock):
        raise ValueError(f"COCO's metrics by classes are {ours}, by detectron2 {stock}")
    for what, (seconds, _) in some.items():
        ratio = figures[name][0] / max(seconds, 1e-9)
        figures[f"detectron2's COCO AP / {what}, same detections"] = (ratio, "times")
    return figures


def _images(num_detections: int, num_classes: int) -> list[Any]:
    return [*made_detections(max(num_detections // PER_IMAGE, 1), PER_IMAGE, num_classes)]


def _coco_metrics(images: list[Any], num_classes: int, kind: Any, **options: Any) -> Any:
    """Results of a kind of COCOEvaluator, from the predictions of a detector on."""
    annotations: list[dict[str, Any]] = []
    for i, objects, classes, _ in images:
        sides = np.concatenate([objects[:, :2], objects[:, 2:] - objects[:, :2]], axis=1)
        for box, c in zip(sides.tolist(), classes.tolist()):
            new = {"id": len(annotations) + 1, "image_id": i, "category_id": c, "iscrowd": 0}
            annotations.append({**new, "bbox": box, "area": box[2] * box[3]})
    truth = {
        "info": {},
        "images": [{"id": i} for i, *_ in images],
        "categories": [{"id": c, "name": str(c)} for c in range(num_classes)],
        "annotations": annotations,
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "truth.json")
        path.write_text(json.dumps(truth), encoding="utf-8")
        MetadataCatalog.get(_NAME).json_file = str(path)
        try:
            evaluator = kind(_NAME, tasks=("bbox",), **options)
        finally:
            MetadataCatalog.remove(_NAME)
        evaluator.reset()
        for i, _, _, instances in images:
            evaluator.process([{"image_id": i}], [{"instances": instances}])
        return evaluator.evaluate()


def _arrays(images: list[Any]) -> tuple[Detections, GroundTruth]:
    numbers = [i for i, *_ in images]
    found = [instances for *_, instances in images]
    counts = [len(x) for x in found]
    detections = Detections(
        np.repeat(numbers, counts),
        np.concatenate([x.pred_classes.numpy() for x in found]),
        np.concatenate([x.scores.numpy() for x in found]).astype(np.float64),
        np.concatenate([x.pred_boxes.tensor.numpy() for x in found]).astype(np.float64),
    )
    boxes = np.concatenate([objects for _, objects, *_ in images]).astype(np.float64)
    of_images = np.repeat(numbers, [len(objects) for _, objects, *_ in images])
    classes = np.concatenate([c for *_, c, _ in images])
    return detections, GroundTruth(of_images, classes, boxes, np.zeros(len(boxes), bool))
