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
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets, instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["COCOEvaluatorByClass"]

_FIELDS = ("pred_boxes", "scores", "pred_classes")
_OTHER_FIELDS = ("pred_masks", "pred_keypoints")
# Arrays of COCOeval.eval, with the axis of the classes.
_CLASS_AXES = {"precision": 2, "recall": 1, "scores": 2}

Dicts = list[dict[str, Any]]


class COCOEvaluatorByClass(COCOEvaluator):
    """detectron2's COCOEvaluator whose time and memory grow with the detections alone.

    ``COCOeval`` keeps something for each pair of an image and a class, and each detection as
    several Python objects: 5 million detections on 40,000 images of 365 classes do not fit into
    tens of gigabytes. Here each class is evaluated by itself, on the images that have it, and the
    curves are put together. All results are the same to the last bit.

    Sets with fewer pairs are evaluated by detectron2, and so are masks, keypoints and proposals.

    Args:
        dataset_name, args, kwargs: as :class:`COCOEvaluator` takes them; ``use_fast_impl`` is for
            what detectron2 evaluates, classes are evaluated by pycocotools
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
            if self._is_large and _is_of_boxes(output):
                instances = _copied(output["instances"])
                self._predictions.append({"image_id": image["image_id"], "instances": instances})
            else:
                super().process([image], [output])

    def _eval_predictions(self, predictions: Dicts, img_ids: Sequence[Any] | None = None) -> None:
        is_boxes = all(isinstance(p.get("instances"), Instances) for p in predictions)
        if not is_boxes or {*(self._tasks or ("bbox",))} != {"bbox"}:
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

    def _class_ids(self) -> dict[Any, Any]:
        """{category id: class id}, by ascending category id, as COCOeval orders them.

        A category that the metadata does not number, as of a detector of some classes only, has
        None.
        """
        known = self._metadata.get("thing_dataset_id_to_contiguous_id")
        ids = sorted(self._coco_api.getCatIds())
        if known is None:
            return dict(zip(ids, ids))
        if sorted(known.values()) != [*range(len(known))]:
            raise ValueError(
                f"thing_dataset_id_to_contiguous_id of {self._metadata.name!r} must have the "
                f"values 0 to {len(known) - 1}, once each; got {known!r:.200}"
            )
        return {i: known.get(i) for i in ids}

    def _check(self, detections: "_Detections", class_ids: Mapping[Any, Any]) -> None:
        """Raise ValueError for a class or an image that the set does not have."""
        known = [i for i in class_ids.values() if i is not None]
        unknown = {*np.unique(detections.classes).tolist()} - {*known}
        if unknown:
            raise ValueError(
                f"class {min(unknown)} is predicted, but {self._metadata.name!r} has "
                f"{len(known)} classes, with the ids {known!r:.80}; category ids become class ids "
                "by thing_dataset_id_to_contiguous_id of its metadata"
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
        class_ids: Mapping[Any, Any],
        img_ids: Sequence[Any] | None,
    ) -> COCOeval:
        objects = defaultdict(list)
        for annotation in self._coco_api.dataset["annotations"]:
            objects[annotation["category_id"]].append(annotation)
        images = {*self._coco_api.imgs} & {*(self._coco_api.imgs if img_ids is None else img_ids)}
        parts: dict[str, list[np.ndarray]] = {name: [] for name in _CLASS_AXES}
        with contextlib.redirect_stdout(io.StringIO()):
            for category_id, class_id in class_ids.items():
                found = detections.of_class(class_id, category_id)
                of_class = self._of_class(category_id, objects[category_id], found, images)
                for name, arrays in parts.items():
                    arrays.append(of_class.eval[name])
        is_stock = self._max_dets_per_image[2] == 100
        joined = (COCOeval if is_stock else COCOevalMaxDets)(self._coco_api, iouType="bbox")
        joined.params.maxDets = sorted(self._max_dets_per_image)  # as COCOeval.evaluate does
        joined.eval = {k: np.concatenate(v, axis=_CLASS_AXES[k]) for k, v in parts.items()}
        joined.summarize()
        return joined

    def _of_class(
        self, category_id: Any, objects: Dicts, detections: Dicts, images: set[Any]
    ) -> COCOeval:
        """A class on the images that have objects or detections of it: of the others, no part."""
        ids = {entry["image_id"] for entry in (*objects, *detections)} & images
        dataset = {
            "info": {},  # some pycocotools ask for it
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
        corners = torch.cat([x.pred_boxes.tensor for x in instances])
        boxes = BoxMode.convert(corners, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).numpy()
        # Exact for all types of scores; numpy lacks one of them, bfloat16.
        scores = torch.cat([x.scores.double() for x in instances]).numpy()
        classes = torch.cat([x.pred_classes for x in instances]).numpy()
        order = np.argsort(classes, kind="stable")
        self.images, self.boxes, self.scores = self.images[order], boxes[order], scores[order]
        self.classes = classes[order]

    def of_class(self, class_id: Any, category_id: Any) -> Dicts:
        """Its detections as COCO results; none of class None."""
        if class_id is None:
            return []
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


def _is_of_boxes(output: Mapping[str, Any]) -> bool:
    """Whether detectron2 would keep nothing but upright boxes of an image."""
    if "instances" not in output or "proposals" in output:
        return False
    instances = output["instances"]
    if not all(map(instances.has, _FIELDS)) or any(map(instances.has, _OTHER_FIELDS)):
        return False
    return instances.pred_boxes.tensor.shape[1] == 4  # 5 if rotated


def _copied(instances: Instances) -> Instances:
    """Its boxes alone, on the CPU, in memory of their size: a view would keep all that it is of."""
    fields = {name: instances.get(name).clone() for name in _FIELDS}
    return Instances(instances.image_size, **fields).to(torch.device("cpu"))


def _indexed(dataset: dict[str, Any]) -> COCO:
    api = COCO()
    api.dataset = dataset
    api.createIndex()
    return api
