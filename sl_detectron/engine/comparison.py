"""A picture of what detectors make of wrong labels, image by image."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, detection_utils
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils.visualizer import Visualizer

from ..data import inject, noises_from_config

__all__ = ["draw_comparison"]

SCORE_THRESHOLD = 0.5
NUM_IMAGES = 3
# Pixels of the picture for one pixel of a toy image, so that labels are legible.
SCALE = 4
RIGHT, WRONG, OTHER = "limegreen", "red", "orange"


def draw_comparison(runs: dict[str, CfgNode], path: str | os.PathLike) -> None:
    """Draw training images with the most wrong labels beside each detector's boxes on them.

    Annotations: green where the label is right, red where it is wrong ("given (true)").
    Detections: green for the true class, red for the wrong label of the annotation that they
    cover (the detector has memorised it), orange for anything else.

    Args:
        runs: finished runs by the title of their column; all share one training set and its noise
        path: the picture, by its suffix a PNG or PDF
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cfg = next(iter(runs.values()))
    dataset_name = cfg.DATASETS.TRAIN[0]
    classes = MetadataCatalog.get(dataset_name).thing_classes
    records, _ = inject(
        DatasetCatalog.get(dataset_name),
        noises_from_config(cfg),
        num_classes=len(classes),
        dataset_name=dataset_name,
    )
    records = sorted(records, key=lambda r: -sum(map(_is_flipped, r["annotations"])))[:NUM_IMAGES]
    predictors = {title: _predictor(cfg) for title, cfg in runs.items()}
    columns = 1 + len(runs)
    figure, axes = plt.subplots(
        len(records), columns, figsize=(4 * columns, 4 * len(records)), squeeze=False
    )
    for row, record in zip(axes, records):
        image = detection_utils.read_image(record["file_name"], "BGR")
        row[0].imshow(_draw_annotations(image, record["annotations"], classes))
        row[0].set_title("labels given; red: wrong (true)")
        for axis, (title, predictor) in zip(row[1:], predictors.items()):
            detections = predictor(image)["instances"]
            axis.imshow(_draw_detections(image, detections, record["annotations"], classes))
            axis.set_title(title)
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _predictor(cfg: CfgNode) -> DefaultPredictor:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = SCORE_THRESHOLD
    return DefaultPredictor(cfg)


def _is_flipped(annotation: dict[str, Any]) -> bool:
    return _true_category(annotation) != annotation["category_id"]


def _true_category(annotation: dict[str, Any]) -> int:
    """Noise leaves the key in those annotations whose class it changed."""
    return annotation.get("true_category_id", annotation["category_id"])


def _draw_annotations(
    image: np.ndarray, annotations: list[dict[str, Any]], classes: list[str]
) -> np.ndarray:
    labels, colours = [], []
    names = [*classes, "nothing"]  # class K is the truth of a spurious box
    for annotation in annotations:
        label, colour = classes[annotation["category_id"]], RIGHT
        if _is_flipped(annotation):
            label, colour = f"{label} ({names[_true_category(annotation)]})", WRONG
        labels.append(label)
        colours.append(colour)
    return _overlay(image, _boxes(annotations), labels, colours)


def _draw_detections(
    image: np.ndarray,
    detections: Instances,
    annotations: list[dict[str, Any]],
    classes: list[str],
) -> np.ndarray:
    overlaps = pairwise_iou(detections.pred_boxes, Boxes(torch.from_numpy(_boxes(annotations))))
    labels, colours = [], []
    for category, score, overlap in zip(
        detections.pred_classes.tolist(), detections.scores.tolist(), overlaps
    ):
        labels.append(f"{classes[category]} {score:.0%}")
        annotation = annotations[int(overlap.argmax())]
        covers = overlap.max() > 0.5
        if covers and category == _true_category(annotation):
            colours.append(RIGHT)
        elif covers and category == annotation["category_id"]:
            colours.append(WRONG)
        else:
            colours.append(OTHER)
    return _overlay(image, detections.pred_boxes.tensor.numpy(), labels, colours)


def _boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def _overlay(
    image: np.ndarray, boxes: np.ndarray, labels: list[str], colours: list[str]
) -> np.ndarray:
    visualizer = Visualizer(image[:, :, ::-1], scale=SCALE)
    drawn = visualizer.overlay_instances(boxes=boxes, labels=labels, assigned_colors=colours)
    return drawn.get_image()
