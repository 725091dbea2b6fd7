"""Score files of detections in one call, and write what came out as json and pictures."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ..files import replacing
from .voc_ap import IOU_THRESHOLDS, evaluate_detections
from .voc_files import load_detections, load_ground_truth
from .voc_result import VOCResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_report_path", "evaluate_files", "write_report"]

# More names than this would not leave room for the curves.
_MAX_LEGEND = 40


def evaluate_files(
    voc_root: str | os.PathLike,
    split: str,
    detections: str | os.PathLike,
    metric: str,
    *,
    class_names: Sequence[str] = CLASS_NAMES,
    rounding: bool = False,
    absent_classes: str = "skip",
) -> VOCResult:
    """Score detections in files against a VOC devkit folder; images are not needed.

    Args:
        voc_root: holds Annotations/ and ImageSets/Main/
        split: an image set, e.g. "test"
        detections: a folder of ``comp4_det_<split>_<class>.txt`` or a json file in COCO's results
            format, see :func:`load_detections`
        metric: "07" or "area"
        class_names: C names; in json, category_id is the index into them
        rounding: round what json holds to 3 decimals of score and 1 of coordinates, as
            detectron2's evaluator does
        absent_classes: "skip" or "zero", see :class:`VOCEvaluator`

    Returns:
        the result of every class at every threshold

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong
    """
    image_ids, ground_truth = load_ground_truth(voc_root, split, class_names)
    found = load_detections(detections, split, image_ids, class_names, rounding)
    classes = evaluate_detections(found, ground_truth, len(class_names), metric)
    return VOCResult(class_names, IOU_THRESHOLDS, metric, classes, absent_classes)


def check_report_path(output: str | os.PathLike) -> None:
    """Find out before an evaluation whether its report can be written.

    Args:
        output: path of the json file

    Raises:
        ValueError: it does not end in .json, is a folder or lies below a file
    """
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file in it, e.g. {output / 'report.json'}")
    if output.suffix.lower() != ".json":
        raise ValueError(f"the report is json: name it {output}.json instead of {output}")
    parent = next(path for path in output.absolute().parents if path.exists())
    if not parent.is_dir():
        raise ValueError(f"{output} cannot be written: {parent} is not a folder")


def write_report(result: VOCResult, output: str | os.PathLike, pictures: bool = True) -> list[Path]:
    """Write ``output`` (json, percent) and beside it the pictures, all of them or none.

    Args:
        result: of an evaluation
        output: path of the json file; its folder is made
        pictures: also write ``<stem>_precision_recall.png`` and ``<stem>_ap_by_iou.png``

    Returns:
        the paths that were written

    Raises:
        ImportError: matplotlib is not installed
        ValueError: as :func:`check_report_path`
    """
    check_report_path(output)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figures = {}
    for kind, plot in (("precision_recall", _plot_curves), ("ap_by_iou", _plot_ap_by_iou)):
        if pictures:
            figures[output.with_name(f"{output.stem}_{kind}.png")] = plot(result)
    with ExitStack() as stack:
        stack.enter_context(replacing(output)).write_text(
            json.dumps(result.to_dict(), indent=1) + "\n"
        )
        for path, figure in figures.items():
            figure.savefig(stack.enter_context(replacing(path)), format="png", dpi=120)
    return [output, *figures]


def _plot_curves(result: VOCResult) -> "Figure":
    """Draw precision over recall of every class at the first threshold."""
    figure, axes = _new_figure(result)
    for name, scored in zip(result.class_names, result.classes):
        if scored.num_objects:
            axes.plot(scored.recall, scored.precision, linewidth=1, label=name)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_title(f"overlap more than {result.thresholds[0]:g}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _add_legend(figure, axes)
    return figure


def _plot_ap_by_iou(result: VOCResult) -> "Figure":
    """Draw AP over the overlap threshold of every class, and the mean."""
    figure, axes = _new_figure(result)
    for name, scored in zip(result.class_names, result.classes):
        if scored.num_objects:
            axes.plot(result.thresholds, scored.ap * 100, linewidth=1, label=name)
    means = list(result.mean_ap().values())
    axes.plot(result.thresholds, means, color="black", linewidth=3, label="mean")
    axes.set_xlabel("overlap threshold")
    axes.set_ylabel(f"AP (%), {result.metric} metric")
    axes.set_ylim(0, 100)
    _add_legend(figure, axes)
    return figure


def _new_figure(result: VOCResult) -> "tuple[Figure, Axes]":
    # matplotlib takes a second to import and only pictures need it; Figure, unlike pyplot, leaves
    # the user's backend alone.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    num_present = len(result.class_names) - len(result.absent)
    colors = colormaps["turbo"](np.linspace(0, 1, max(num_present, 1)))
    axes.set_prop_cycle(color=list(colors))
    axes.grid(alpha=0.3)
    return figure, axes


def _add_legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not 0 < len(handles) <= _MAX_LEGEND:
        return
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
