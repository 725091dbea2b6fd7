"""Labelled boxes of annotations and detections, and detectron2's Visualizer to draw them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou

from ..checkpoint import check_checkpoint

__all__ = [
    "LabelledBox",
    "annotation_boxes",
    "boxes_of",
    "build_predictor",
    "detection_boxes",
    "draw_boxes",
    "is_wrong",
    "labelled_box",
]

RIGHT, WRONG, OTHER = "limegreen", "red", "orange"
# Of the shorter side; text in a smaller picture hides what it describes.
LEAST_PIXELS = 400


class LabelledBox(NamedTuple):
    """What is drawn: a box in pixels (XYXY), its text and its colour."""

    box: np.ndarray
    label: str
    colour: str


def is_wrong(annotation: Mapping[str, Any]) -> bool:
    """Whether label noise changed the class of an annotation, or added it."""
    return _true_category(annotation) != annotation["category_id"]


def _true_category(annotation: Mapping[str, Any]) -> int:
    """Noise leaves the key in those annotations whose class it changed."""
    return annotation.get("true_category_id", annotation["category_id"])


def boxes_of(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The boxes of a record's annotations: float32 (N, 4), XYXY in pixels."""
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def labelled_box(
    box: np.ndarray, category: int, truth: int, classes: Sequence[str], sigma: float | None = None
) -> LabelledBox:
    """An annotation's box: red and "given (true)" where the label is known to be wrong.

    Args:
        box: (4,) XYXY in pixels
        category: the class that it was given
        truth: the true one; K for a box without an object
        classes: K names
        sigma: the SuperLoss's confidence; one below 1 makes a box orange that is not known to be
            wrong

    Returns:
        green for all others

    Example:
        >>> labelled_box(np.zeros(4), 0, 1, ["cat", "dog"], sigma=0.5)[1:]
        ('cat (dog) σ 0.50', 'red')
    """
    label, colour = classes[category], RIGHT
    if sigma is not None and sigma < 1:
        colour = OTHER
    if truth != category:
        label, colour = f"{label} ({[*classes, 'nothing'][truth]})", WRONG
    if sigma is not None:
        label = f"{label} σ {sigma:.2f}"
    return LabelledBox(box, label, colour)


def annotation_boxes(
    annotations: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    sigma: Mapping[int, float] | None = None,
) -> list[LabelledBox]:
    """The labels of a record as :func:`labelled_box` has them.

    Args:
        annotations: of a dataset dict, with or without noise
        classes: K names
        sigma: {annotation id: confidence}, of those that have one
    """
    sigma = sigma or {}
    return [
        labelled_box(
            *(box, annotation["category_id"], _true_category(annotation), classes),
            sigma=sigma.get(annotation.get("annotation_id", -1)),
        )
        for annotation, box in zip(annotations, boxes_of(annotations))
    ]


def detection_boxes(
    detections: Instances, annotations: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> list[LabelledBox]:
    """Detections, coloured by the annotation that they cover by more than half (IoU).

    Args:
        detections: on the CPU, with ``pred_boxes``, ``pred_classes`` and ``scores``
        annotations: of the image
        classes: K names

    Returns:
        green for the true class, red for a wrong label that the detector has memorised, orange for
        anything else
    """
    overlaps = pairwise_iou(detections.pred_boxes, Boxes(torch.from_numpy(boxes_of(annotations))))
    labelled = []
    for box, category, score, overlap in zip(
        detections.pred_boxes.tensor.numpy(),
        detections.pred_classes.tolist(),
        detections.scores.tolist(),
        overlaps,
    ):
        colour = OTHER
        if len(overlap) and overlap.max() > 0.5:
            annotation = annotations[int(overlap.argmax())]
            if category == _true_category(annotation):
                colour = RIGHT
            elif category == annotation["category_id"]:
                colour = WRONG
        labelled.append(LabelledBox(box, f"{classes[category]} {score:.0%}", colour))
    return labelled


def build_predictor(
    cfg: CfgNode, weights: str | os.PathLike, score_threshold: float
) -> DefaultPredictor:
    """detectron2's predictor with other weights; it keeps detections of at least that score.

    Raises:
        FileNotFoundError: there are no such weights
    """
    check_checkpoint(weights)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score_threshold
    return DefaultPredictor(cfg)


def draw_boxes(image: np.ndarray, boxes: Sequence[LabelledBox]) -> np.ndarray:
    """Draw with detectron2's Visualizer; small images are enlarged so that text can be read.

    Args:
        image: (H, W, 3) uint8 RGB
        boxes: in pixels of the image

    Returns:
        (H', W', 3) uint8 RGB

    Raises:
        ImportError: OpenCV is not installed
    """
    try:
        from detectron2.utils.visualizer import Visualizer
    except ImportError as error:
        raise ImportError(
            f"detectron2's Visualizer needs OpenCV: pip install opencv-python-headless ({error})"
        ) from error
    visualizer = Visualizer(image, scale=max(1.0, LEAST_PIXELS / min(image.shape[:2])))
    if boxes:
        visualizer.overlay_instances(
            boxes=np.stack([b.box for b in boxes]),
            labels=[b.label for b in boxes],
            assigned_colors=[b.colour for b in boxes],
        )
    return visualizer.get_output().get_image()
