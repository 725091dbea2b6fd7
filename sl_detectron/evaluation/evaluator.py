"""The evaluators of a test set inside detectron2's inference loop."""

import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm

from ..data.datasets import is_coco_set, load_dataset, read_coco
from ..data.formats.voc_set import read_image_set
from .average_precision import (
    IOU_THRESHOLDS,
    METRICS,
    Array,
    Detections,
    check_choice,
    evaluate_detections,
)
from .files import load_ground_truth, to_voc_pixels
from .results import ABSENT_CLASSES, VOCResult

__all__ = ["VOCEvaluator", "build_evaluator", "check_evaluator"]

EVALUATORS = ("voc", "coco")
# The images, classes, scores and boxes of no detection: the types of a set without any.
_NOTHING = (
    *(np.zeros(0, np.int64), np.zeros(0, np.int64)),
    *(np.zeros(0, np.float32), np.zeros((0, 4), np.float32)),
)

logger = logging.getLogger(__name__)


class VOCEvaluator(DatasetEvaluator):
    """Pascal VOC AP for any VOC style dataset and class list.

    On VOC's own sets AP, AP50 and AP75 equal those of detectron2's
    ``PascalVOCDetectionEvaluator`` on the same machine to the last bit; like its results they may
    differ by some 1e-6 between processors where scores are equal. The ground truth is read from
    disk by every :meth:`evaluate`.

    Args:
        dataset_name: a dataset whose metadata has thing_classes, dirname and split
        metric: "07", VOC 2007's 11-point AP; "area" under the curve; None for "07" if the
            metadata says year 2007, else "area"
        rounding: round scores to 3 decimals and coordinates to 1, as detectron2's text files do;
            False scores the detections as they are
        absent_classes: "skip" leaves classes without ground truth out of the mean; "zero" counts
            them as 0, as detectron2 does (its area metric gives nan where such a class has
            detections)
        bad_annotations: "error" refuses flawed boxes and images; "skip" leaves them out

    Raises:
        ValueError: an unknown choice, or a dataset that is not in VOC's form

    Example::

        evaluator = VOCEvaluator("voc_2007_test")
        results = inference_on_dataset(model, loader, evaluator)
        results["bbox"]["AP50"], results["bbox"]["AP50-cat"], evaluator.result.classes[7].recall
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        metric: str | None = None,
        rounding: bool = True,
        absent_classes: str = "skip",
        bad_annotations: str = "error",
    ):
        _check_voc_metadata(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        if metric is None:
            metric = "07" if metadata.get("year") == 2007 else "area"
        check_choice("metric", metric, METRICS)
        check_choice("absent_classes", absent_classes, ABSENT_CLASSES)
        self._dataset_name = dataset_name
        self._root, self._split = metadata.dirname, metadata.split
        self._class_names = metadata.thing_classes
        self._metric = metric
        self._rounding = rounding
        self._absent_classes = absent_classes
        self._bad_annotations = bad_annotations
        self.result: VOCResult | None = None

    def reset(self) -> None:
        """Forget all predictions."""
        ids = read_image_set(self._root, self._split)
        self._image_index = {image_id: i for i, image_id in enumerate(ids)}
        self._predictions: list[tuple[int, tuple[Array, ...]]] = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Take the predictions for a batch of images.

        Args:
            inputs: with "image_id"
            outputs: with "instances" that have pred_boxes, scores and pred_classes

        Raises:
            ValueError: an image or a class is not in the set
        """
        for image, output in zip(inputs, outputs):
            index = self._image_index.get(str(image["image_id"]))
            if index is None:
                raise ValueError(
                    f"image {image['image_id']!r} is not in split {self._split!r} of "
                    f"{self._dataset_name!r}"
                )
            instances = output["instances"].to(torch.device("cpu"))
            classes = instances.pred_classes.numpy()
            if len(classes) and not 0 <= classes.min() <= classes.max() < len(self._class_names):
                raise ValueError(
                    f"class ids {classes.min()}..{classes.max()} are predicted, but "
                    f"{self._dataset_name!r} has {len(self._class_names)} classes; set "
                    "MODEL.ROI_HEADS.NUM_CLASSES or MODEL.RETINANET.NUM_CLASSES"
                )
            images = np.full(len(classes), index, dtype=np.int64)
            scores = instances.scores.float().numpy()
            boxes = instances.pred_boxes.tensor.float().numpy()
            self._predictions.append((index, (images, classes, scores, boxes)))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Score the predictions of all processes; every process must call it.

        Returns:
            on the main process ``{"bbox": {"AP", "AP50", "AP75"}}`` in percent, beside
            "AP-<class>", "AP50-<class>", "AP75-<class>" and "recall50-<class>", nan for an absent
            class; None on the others. All thresholds and the curves are in :attr:`result`.
        """
        gathered = comm.gather(self._predictions, dst=0)
        if not comm.is_main_process():
            return None
        detections = self._merge([*chain.from_iterable(gathered)])
        _, ground_truth = load_ground_truth(
            self._root, self._split, self._class_names, self._bad_annotations
        )
        classes = evaluate_detections(
            detections, ground_truth, len(self._class_names), self._metric, stable=False
        )
        self.result = VOCResult(
            self._class_names, IOU_THRESHOLDS, self._metric, classes, self._absent_classes
        )
        self._log(self.result)
        scores = self.result.summary()
        for name, row in self.result.per_class().items():
            for key in ("AP", "AP50", "AP75", "recall50"):
                scores[f"{key}-{name}"] = float("nan") if row[key] is None else row[key]
        return OrderedDict(bbox=scores)

    def _merge(self, predictions: Sequence[tuple[int, tuple[Array, ...]]]) -> Detections:
        """Join what the processes predicted, in their order; an image counts once."""
        first: dict[int, tuple[Array, ...]] = {}
        for index, arrays in predictions:
            first.setdefault(index, arrays)
        missing = len(self._image_index) - len(first)
        if missing:
            logger.warning(
                "%d of %d images of %s have no prediction: their objects count as missed",
                *(missing, len(self._image_index), self._dataset_name),
            )
        again = len(predictions) - len(first)
        if again:
            logger.warning("%d images were predicted again; the first counts", again)
        images, classes, scores, boxes = map(np.concatenate, zip(_NOTHING, *first.values()))
        return Detections(images, classes, *to_voc_pixels(scores, boxes, self._rounding))

    def _log(self, result: VOCResult) -> None:
        name = {"07": "11-point", "area": "area"}[self._metric]
        logger.info(
            "VOC AP of %s, %s metric, percent:\n%s", self._dataset_name, name, result.table()
        )
        if result.absent:
            effect = "left out of" if self._absent_classes == "skip" else "0 in"
            logger.warning("No ground truth, %s the mean: %s", effect, ", ".join(result.absent))


def build_evaluator(
    dataset_name: str,
    kind: str = "voc",
    output_dir: str | os.PathLike | None = None,
    absent_classes: str = "skip",
    bad_annotations: str = "error",
) -> DatasetEvaluator:
    """Build the evaluator of a registered dataset.

    One registered from a COCO json is always evaluated COCO style, and so is one of records alone
    that has a class list, as of detectron2's tutorials. On a VOC style dataset, "coco"
    gives COCO's twelve metrics of the same predictions by pycocotools; difficult objects become
    crowd regions, the only objects that COCO neither counts as missed nor as false when found.

    Args:
        dataset_name: in detectron2's catalogs
        kind: "voc" or "coco", the value of ``TEST.EVALUATOR``
        output_dir: where "coco" writes the converted ground truth and the predictions, in the
            subfolder ``inference``
        absent_classes: "skip" or "zero", see :class:`VOCEvaluator`
        bad_annotations: "error" refuses flawed boxes and images; "skip" leaves them out

    Returns:
        a detectron2 evaluator whose results have "bbox" with "AP", "AP50" and "AP75", percent

    Raises:
        ValueError: unknown kind, a dataset that cannot be evaluated, or "coco" without output_dir
    """
    check_evaluator(dataset_name, kind, absent_classes, bad_annotations)
    folder = None if output_dir is None else os.path.join(output_dir, "inference")
    if _is_coco(dataset_name):
        return _evaluator_of_json(dataset_name, folder, bad_annotations)
    if kind == "voc" and _is_voc(dataset_name):
        return VOCEvaluator(
            dataset_name, absent_classes=absent_classes, bad_annotations=bad_annotations
        )
    if folder is None:
        raise ValueError(f"COCO style evaluation of {dataset_name!r} needs an output_dir")
    return _coco_evaluator(dataset_name, folder, bad_annotations)


def check_evaluator(
    dataset_name: str, kind: str, absent_classes: str = "skip", bad_annotations: str = "error"
) -> None:
    """Check before training whether :func:`build_evaluator` can evaluate a test set.

    Raises:
        ValueError: an unknown value, or a dataset that is neither in VOC's form nor in COCO's, and
            has no class list or records that COCO's metrics need more of
    """
    check_choice("TEST.EVALUATOR", kind, EVALUATORS)
    check_choice("TEST.ABSENT_CLASSES", absent_classes, ABSENT_CLASSES)
    if not _is_coco(dataset_name) and not _is_voc(dataset_name):
        _check_records(dataset_name, bad_annotations)


def _check_records(dataset_name: str, bad_annotations: str) -> None:
    """A set that is a list of records alone: read once before training, not first after it."""
    if not MetadataCatalog.get(dataset_name).get("thing_classes"):
        raise ValueError(
            f"test set {dataset_name!r} has no class list and is in no known form, so it cannot be "
            f"evaluated. Set MetadataCatalog.get({dataset_name!r}).thing_classes for COCO's "
            "metrics, register it with register_voc_dataset or register_coco_instances, override "
            "build_evaluator() of the trainer, or leave it out of DATASETS.TEST"
        )
    for i, record in enumerate(load_dataset(dataset_name, bad_annotations)):
        needed = ("image_id", "height", "width", "annotations")
        missing = [key for key in needed if key not in record]
        if missing:
            raise ValueError(
                f"test set {dataset_name!r}, record {i} ({record.get('file_name')}): COCO's "
                f"metrics need {missing}"
            )


def _check_voc_metadata(dataset_name: str) -> None:
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("thing_classes", "dirname", "split"):
        if not hasattr(metadata, key):
            raise ValueError(
                f"dataset {dataset_name!r} has no {key!r} in its metadata, as VOC style datasets "
                "have; register it with register_voc_dataset"
            )


def _is_voc(dataset_name: str) -> bool:
    metadata = MetadataCatalog.get(dataset_name)
    return all(hasattr(metadata, key) for key in ("thing_classes", "dirname", "split"))


def _is_coco(dataset_name: str) -> bool:
    metadata = MetadataCatalog.get(dataset_name)
    # A VOC set has a json_file too once any COCOEvaluator has seen it; a dirname, COCO has not.
    return hasattr(metadata, "json_file") and not hasattr(metadata, "dirname")


def _evaluator_of_json(
    dataset_name: str, folder: str | None, bad_annotations: str
) -> COCOEvaluator:
    """COCOEvaluator of the json, or of its plain form where areas, iscrowd or such are missing."""
    if not is_coco_set(dataset_name):
        return COCOEvaluator(dataset_name, output_dir=folder)
    file = read_coco(dataset_name, bad_annotations)
    if not file.has_annotations or file.is_plain():
        return COCOEvaluator(dataset_name, output_dir=folder)
    name = f"{dataset_name}_completed"
    metadata = MetadataCatalog.get(dataset_name).as_dict()
    metadata |= {"name": name, "thing_classes": file.class_names}
    metadata["thing_dataset_id_to_contiguous_id"] = file.class_ids
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.join(temporary, file.path.name)
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file.plain(), f)
        try:
            MetadataCatalog.get(name).set(**{**metadata, "json_file": path})
            return COCOEvaluator(name, output_dir=folder)
        finally:
            MetadataCatalog.remove(name)


def _coco_evaluator(dataset_name: str, folder: str, bad_annotations: str) -> COCOEvaluator:
    # Under a temporary name: COCOEvaluator writes json_file into the metadata and would read that
    # same file in the next run, even after the dataset has changed.
    name = f"{dataset_name}_coco_style"
    DatasetCatalog.register(
        name, lambda: [*map(_difficult_as_crowd, load_dataset(dataset_name, bad_annotations))]
    )
    try:
        MetadataCatalog.get(name).thing_classes = MetadataCatalog.get(dataset_name).thing_classes
        return COCOEvaluator(
            name, ("bbox",), output_dir=folder, use_fast_impl=False, allow_cached_coco=False
        )
    finally:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def _difficult_as_crowd(record: dict[str, Any]) -> dict[str, Any]:
    annotations = [
        {**a, "iscrowd": a.get("difficult", a.get("iscrowd", 0))} for a in record["annotations"]
    ]
    return {**record, "annotations": annotations}
