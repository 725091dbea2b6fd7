"""A picture of what detectors make of wrong labels, image by image."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils

from ..label_noise import noisy_dataset_dicts
from .boxes import LabelledBox, annotation_boxes, build_predictor, detection_boxes, is_wrong

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_comparison"]

SCORE_THRESHOLD = 0.5
NUM_IMAGES = 3
LABEL_HEIGHT = 0.05  # of a picture's longer side, at the size that is drawn


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
    records = sorted(records, key=lambda r: -sum(map(is_wrong, r["annotations"])))[:NUM_IMAGES]
    predictors = {
        title: build_predictor(cfg, Path(cfg.OUTPUT_DIR, "model_final.pth"), SCORE_THRESHOLD)
        for title, cfg in runs.items()
    }
    columns = 1 + len(runs)
    figure, axes = plt.subplots(
        len(records), columns, figsize=(4 * columns, 4 * len(records)), squeeze=False
    )
    for row, record in zip(axes, records):
        image = detection_utils.read_image(record["file_name"], "BGR")
        panels = {
            "labels given; red: wrong (true)": annotation_boxes(record["annotations"], classes)
        }
        for title, predictor in predictors.items():
            detections = predictor(image)["instances"].to("cpu")
            panels[title] = detection_boxes(detections, record["annotations"], classes)
        for axis, (title, boxes) in zip(row, panels.items()):
            axis.imshow(image[:, :, ::-1])
            axis.set_title(title)
            _draw(axis, boxes, LABEL_HEIGHT * max(image.shape[:2]))
    for axis in axes.flat:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw(axis: "Axes", boxes: list[LabelledBox], label_height: float) -> None:
    """Labels stand on their box; inside where they would leave the picture, which cuts them."""
    # Not detectron2's Visualizer: it needs OpenCV, for masks that are not drawn here.
    from matplotlib.patches import Rectangle

    for (x0, y0, x1, y1), label, colour in boxes:
        axis.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2)
        )
        background = {"facecolor": colour, "alpha": 0.75, "pad": 1, "linewidth": 0}
        side = "bottom" if y0 >= label_height else "top"
        axis.text(x0, max(y0, 0), label, fontsize=8, va=side, bbox=background, clip_on=True)
