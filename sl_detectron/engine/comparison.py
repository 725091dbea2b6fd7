"""A picture of what detectors make of wrong labels, image by image."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou

from ..data import noisy_dataset_dicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_comparison"]

SCORE_THRESHOLD = 0.5
NUM_IMAGES = 3
RIGHT, WRONG, OTHER = "limegreen", "red", "orange"


class LabelledBox(NamedTuple):
    """What is drawn: a box in pixels (XYXY), its text and its colour."""

    box: np.ndarray
    label: str
    colour: str


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
    records = noisy_dataset_dicts(cfg)[dataset_name]
    records = sorted(records, key=lambda r: -sum(map(_is_flipped, r["annotations"])))[:NUM_IMAGES]
    predictors = {title: _predictor(cfg) for title, cfg in runs.items()}
    columns = 1 + len(runs)
    figure, axes = plt.subplots(
        len(records), columns, figsize=(4 * columns, 4 * len(records)), squeeze=False
    )
    for row, record in zip(axes, records):
        image = detection_utils.read_image(record["file_name"], "BGR")
        panels = {"labels given; red: wrong (true)": _annotations(record, classes)}
        for title, predictor in predictors.items():
            detections = predictor(image)["instances"].to("cpu")
            panels[title] = _detections(detections, record["annotations"], classes)
        for axis, (title, boxes) in zip(row, panels.items()):
            axis.imshow(image[:, :, ::-1])
            axis.set_title(title)
            _draw(axis, boxes)
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


def _annotations(record: dict[str, Any], classes: list[str]) -> list[LabelledBox]:
    names = [*classes, "nothing"]  # class K is the truth of a spurious box
    labelled = []
    for annotation, box in zip(record["annotations"], _boxes(record["annotations"])):
        label, colour = classes[annotation["category_id"]], RIGHT
        if _is_flipped(annotation):
            label, colour = f"{label} ({names[_true_category(annotation)]})", WRONG
        labelled.append(LabelledBox(box, label, colour))
    return labelled


def _detections(
    detections: Instances, annotations: list[dict[str, Any]], classes: list[str]
) -> list[LabelledBox]:
    overlaps = pairwise_iou(detections.pred_boxes, Boxes(torch.from_numpy(_boxes(annotations))))
    labelled = []
    for box, category, score, overlap in zip(
        detections.pred_boxes.tensor.numpy(),
        detections.pred_classes.tolist(),
        detections.scores.tolist(),
        overlaps,
    ):
        annotation = annotations[int(overlap.argmax())]
        covers = overlap.max() > 0.5
        if covers and category == _true_category(annotation):
            colour = RIGHT
        elif covers and category == annotation["category_id"]:
            colour = WRONG
        else:
            colour = OTHER
        labelled.append(LabelledBox(box, f"{classes[category]} {score:.0%}", colour))
    return labelled


def _boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.asarray(boxes, np.float32).reshape(-1, 4)


def _draw(axis: "Axes", boxes: list[LabelledBox]) -> None:
    # Not detectron2's Visualizer: it needs OpenCV, for masks that are not drawn here.
    from matplotlib.patches import Rectangle

    for (x0, y0, x1, y1), label, colour in boxes:
        axis.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2)
        )
        background = {"facecolor": colour, "alpha": 0.75, "pad": 1, "linewidth": 0}
        axis.text(x0, y0, label, fontsize=8, va="bottom", bbox=background, clip_on=True)
