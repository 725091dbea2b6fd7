"""COCO's metrics of large test sets: pycocotools, one class at a time.

Shape legend: T 10 IoU thresholds, R 101 recalls, K classes, A 4 ranges of area, M 3 limits of
detections per image.
"""

import contextlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets, instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["COCOEvaluatorByClass"]

_FIELDS = ("pred_boxes", "scores", "pred_classes")
# Arrays of COCOeval.eval, with the axis of the classes.
_CLASS_AXES = {"precision": 2, "recall": 1, "scores": 2}

Dicts = list[dict[str, Any]]


class COCOEvaluatorByClass(COCOEvaluator):
    """detectron2's COCOEvaluator whose time and memory grow with the detections alone.

    ``COCOeval`` keeps something for each pair of an image and a class, and each detection as
    several Python objects: 5 million detections on 40,000 images of 365 classes do not fit into
    tens of gigabytes. Here each class is evaluated by itself, on the images that have it, and the
    curves are put together. All results are the same to the last bit.

    Sets with fewer pairs are evaluated by detectron2, and so are masks and keypoints.

    Args:
        dataset_name, args, kwargs: as :class:`COCOEvaluator` takes them
        min_pairs: number of images times that of classes, from which classes are evaluated one by
            one
    """

    def __init__(
        self, dataset_name: str, *args: Any, min_pairs: int = 1_000_000, **kwargs: Any
    ) -> None:
        super().__init__(dataset_name, *args, **kwargs)
        pairs = len(self._coco_api.imgs) * len(self._coco_api.cats)
        self._is_large = self._do_evaluation and pairs >= min_pairs

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> None:
        """Take the predictions for a batch of images, boxes alone as tensors."""
        for image, output in zip(inputs, outputs):
            fields = output["instances"].get_fields() if "instances" in output else {}
            if not self._is_large or {*fields} != {*_FIELDS}:
                super().process([image], [output])
                continue
            instances = output["instances"].to(self._cpu_device)
            self._predictions.append({"image_id": image["image_id"], "instances": instances})

    def _eval_predictions(self, predictions: Dicts, img_ids: Sequence[Any] | None = None) -> None:
        is_boxes = all(isinstance(p.get("instances"), Instances) for p in predictions)
        if not is_boxes or self._tasks not in (None, ["bbox"], ("bbox",)):
            for prediction in predictions:
                if isinstance(prediction.get("instances"), Instances):
                    listed = instances_to_coco_json(prediction["instances"], prediction["image_id"])
                    prediction["instances"] = listed
            super()._eval_predictions(predictions, img_ids)
            return
        class_ids = self._class_ids()
        detections = _Detections(predictions)
        self._check(detections, class_ids)
        if self._output_dir:
            self._write(predictions, {v: k for k, v in class_ids.items()})
        result = None
        if len(detections.classes):
            self._logger.info("Evaluating the boxes of each class by pycocotools ...")
            result = self._evaluate(detections, class_ids, img_ids)
        self._results["bbox"] = self._derive_coco_results(
            result, "bbox", class_names=self._metadata.get("thing_classes")
        )

    def _class_ids(self) -> dict[Any, int]:
        """{category id: class id}, by ascending category id, as COCOeval orders them."""
        known = self._metadata.get("thing_dataset_id_to_contiguous_id")
        ids = sorted(self._coco_api.getCatIds())
        return dict(zip(ids, ids)) if known is None else {i: known[i] for i in ids}

    def _check(self, detections: "_Detections", class_ids: Mapping[Any, int]) -> None:
        """Raise ValueError for a class or an image that the set does not have."""
        unknown = {*np.unique(detections.classes).tolist()} - {*class_ids.values()}
        if unknown:
            raise ValueError(
                f"class {min(unknown)} is predicted, but {self._metadata.name!r} has "
                f"{len(class_ids)} classes, from 0"
            )
        images = [i for i in detections.image_ids if i not in self._coco_api.imgs]
        if images:
            raise ValueError(f"{self._metadata.name!r} has no image {images[0]!r}")

    def _write(self, predictions: Dicts, category_ids: Mapping[int, Any]) -> None:
        """detectron2's file of results, image by image."""
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        self._logger.info("Saving results to %s", path)
        with PathManager.open(path, "w") as file:
            before = "["
            for prediction in predictions:
                listed = instances_to_coco_json(prediction["instances"], prediction["image_id"])
                for detection in listed:
                    detection["category_id"] = category_ids[detection["category_id"]]
                if listed:
                    file.write(before + json.dumps(listed)[1:-1])
                    before = ", "
            file.write("[]" if before == "[" else "]")

    def _evaluate(
        self,
        detections: "_Detections",
        class_ids: Mapping[Any, int],
        img_ids: Sequence[Any] | None,
    ) -> COCOeval:
        objects = defaultdict(list)
        for annotation in self._coco_api.dataset["annotations"]:
            objects[annotation["category_id"]].append(annotation)
        images = None if img_ids is None else {*img_ids}
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _CLASS_AXES}
        with contextlib.redirect_stdout(io.StringIO()):
            for category_id, class_id in class_ids.items():
                found = detections.of_class(class_id, category_id)
                of_class = self._of_class(category_id, objects[category_id], found, images)
                for name, arrays in parts.items():
                    arrays.append(of_class.eval[name])
        is_stock = self._max_dets_per_image[2] == 100
        joined = (COCOeval if is_stock else COCOevalMaxDets)(self._coco_api, iouType="bbox")
        joined.params.maxDets = self._max_dets_per_image
        joined.eval = {k: np.concatenate(v, axis=_CLASS_AXES[k]) for k, v in parts.items()}
        joined.summarize()
        return joined

    def _of_class(
        self, category_id: Any, objects: Dicts, detections: Dicts, images: set[Any] | None
    ) -> COCOeval:
        """A class on the images that have objects or detections of it: of the others, no part."""
        ids = {entry["image_id"] for entry in (*objects, *detections)}
        ids = ids if images is None else ids & images
        dataset = {
            "images": [self._coco_api.imgs[i] for i in sorted(ids)],
            "categories": [self._coco_api.cats[category_id]],
        }
        truth = _indexed({**dataset, "annotations": [a for a in objects if a["image_id"] in ids]})
        kept = [d for d in detections if d["image_id"] in ids]
        found = truth.loadRes(kept) if kept else _indexed({**dataset, "annotations": []})
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = self._max_dets_per_image
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


class _Detections:
    """The boxes of all images, sorted by class; within one in the order of the predictions."""

    def __init__(self, predictions: Dicts):
        self.image_ids = [p["image_id"] for p in predictions]
        instances = [p["instances"] for p in predictions]
        self.images = np.repeat(np.arange(len(instances)), [len(x) for x in instances])
        boxes = np.concatenate([x.pred_boxes.tensor.numpy() for x in instances])
        boxes[:, 2:] -= boxes[:, :2]
        scores = np.concatenate([x.scores.numpy() for x in instances])
        classes = np.concatenate([x.pred_classes.numpy() for x in instances])
        order = np.argsort(classes, kind="stable")
        self.images, self.boxes, self.scores = self.images[order], boxes[order], scores[order]
        self.classes = classes[order]

    def of_class(self, class_id: int, category_id: Any) -> Dicts:
        """Its detections as COCO results."""
        rows = slice(*np.searchsorted(self.classes, (class_id, class_id + 1)))
        columns: Iterator[tuple[int, list[float], float]] = zip(
            self.images[rows].tolist(), self.boxes[rows].tolist(), self.scores[rows].tolist()
        )
        return [
            {
                "image_id": self.image_ids[image],
                "category_id": category_id,
                "bbox": box,
                "score": score,
            }
            for image, box, score in columns
        ]


def _indexed(dataset: dict[str, Any]) -> COCO:
    api = COCO()
    api.dataset = dataset
    api.createIndex()
    return api
