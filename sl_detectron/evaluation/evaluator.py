"""Pascal VOC AP of a test set inside detectron2's inference loop."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.formats.image_set import read_image_set
from .average_precision import (
    IOU_THRESHOLDS,
    METRICS,
    Array,
    Detections,
    check_choice,
    evaluate_detections,
)
from .detections import to_voc_pixels
from .files import load_ground_truth
from .results import ABSENT_CLASSES, VOCResult

__all__ = ["VOCEvaluator"]

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
            metadata has year 2007, else "area"
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
            logger.warning("%d images have several predictions; the first counts", again)
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


def _check_voc_metadata(dataset_name: str) -> None:
    metadata = MetadataCatalog.get(dataset_name)
    for key in ("thing_classes", "dirname", "split"):
        if not hasattr(metadata, key):
            raise ValueError(
                f"dataset {dataset_name!r} has no {key!r} in its metadata, as VOC style datasets "
                "have; register it with register_voc_dataset"
            )
