"""Pictures side by side: the labels of an image, true and given, and what detectors find."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_image
from .boxes import LabelledBox, annotation_boxes, detection_boxes, draw_boxes, is_wrong

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DPI", "check_screen", "draw_comparison", "panels_of", "side_by_side"]

Record = dict[str, Any]
# detectron2's DefaultPredictor: a BGR image to {"instances": ...}.
Predictor = Callable[[np.ndarray], Mapping[str, Any]]

DPI = 100
NUM_IMAGES = 3
LABEL_HEIGHT = 0.05  # of a picture's longer side, at the size that is drawn


def panels_of(
    record: Record,
    classes: Sequence[str],
    clean: Record | None = None,
    sigma: Mapping[int, float] | None = None,
    predictor: Predictor | None = None,
) -> dict[str, np.ndarray]:
    """Draw the labels of one image, and the detections on it.

    Args:
        record: a dataset dict, with or without noise
        classes: K names
        clean: the record without noise; None for no panel of true labels
        sigma: {annotation id: mean confidence}, of those that have one
        predictor: None for no panel of detections

    Returns:
        {title: (H', W', 3) uint8 RGB}
    """
    image = read_image(record, "BGR")
    annotations = record.get("annotations", [])
    boxes = {}
    if clean is not None:
        boxes["true labels"] = annotation_boxes(clean["annotations"], classes)
    boxes["labels, σ: mean confidence" if sigma else "labels"] = annotation_boxes(
        annotations, classes, sigma
    )
    if predictor is not None:
        detections = predictor(image)["instances"].to("cpu")
        boxes["detections"] = detection_boxes(detections, annotations, classes)
    return {title: draw_boxes(image[:, :, ::-1], drawn) for title, drawn in boxes.items()}


def side_by_side(panels: Mapping[str, np.ndarray], show: bool = False) -> "Figure":
    """Put pictures of one height into a figure of :data:`DPI`, each pixel as it is.

    Args:
        panels: {title: (H, W, 3) uint8 RGB}
        show: make a figure of pyplot, which can open a window

    Raises:
        ValueError: to show, but there is no screen
    """
    height, width = next(iter(panels.values())).shape[:2]
    size = (len(panels) * width / DPI, height / DPI + 0.3)
    if show:
        import matplotlib.pyplot as plt

        check_screen()
        figure = plt.figure(figsize=size)
    else:
        from matplotlib.figure import Figure

        figure = Figure(figsize=size)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, picture) in zip(axes, panels.items()):
        axis.imshow(picture)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1 - 0.3 / size[1], wspace=0.01)
    return figure


def check_screen() -> None:
    """Refuse to show pictures where there is no screen.

    Raises:
        ValueError: pyplot can only write files here
    """
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() == "agg":
        raise ValueError("--show needs a screen, and there is none here; use --output DIR")


def draw_comparison(
    records: Sequence[Record],
    classes: Sequence[str],
    predictors: Mapping[str, Predictor],
    path: str | os.PathLike,
) -> None:
    """Draw the images with the most wrong labels beside each detector's boxes on them.

    Annotations: green where the label is right, red where it is wrong ("given (true)").
    Detections: green for the true class, red for the wrong label of the annotation that they
    cover (the detector has memorised it), orange for anything else.

    Args:
        records: noisy dataset dicts
        classes: K names
        predictors: by the title of their column
        path: the picture, by its suffix a PNG or PDF
    """
    from matplotlib.figure import Figure

    records = sorted(records, key=lambda r: -sum(map(is_wrong, r["annotations"])))[:NUM_IMAGES]
    columns = 1 + len(predictors)
    figure = Figure(figsize=(4 * columns, 4 * len(records)))
    axes = figure.subplots(len(records), columns, squeeze=False)
    for row, record in zip(axes, records):
        image = read_image(record, "BGR")
        boxes = {
            "labels given; red: wrong (true)": annotation_boxes(record["annotations"], classes)
        }
        for title, predictor in predictors.items():
            detections = predictor(image)["instances"].to("cpu")
            boxes[title] = detection_boxes(detections, record["annotations"], classes)
        for axis, (title, drawn) in zip(row, boxes.items()):
            axis.imshow(image[:, :, ::-1])
            axis.set_title(title)
            _draw(axis, drawn, LABEL_HEIGHT * max(image.shape[:2]))
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


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
