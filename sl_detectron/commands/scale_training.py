"""What a training step and an evaluation cost beside detectron2 and pycocotools."""

import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.datasets import register_custom_datasets
from ..engine.trainer import SuperLossTrainer
from ..evaluation.average_precision import Detections, GroundTruth, evaluate_detections
from ..model_zoo import get_config
from .scale_figures import MB, Figures, measured, peak_bytes
from .scale_sets import made_detections

__all__ = ["evaluation_job", "step_job"]

# Detections an image, and the most that pycocotools evaluates: it takes a minute for 100,000.
PER_IMAGE = 125
MOST_COCO = 100_000
# Of a small R50-FPN step; images, and objects of each.
WIDTH, HEIGHT, NUM_IMAGES, NUM_OBJECTS = 320, 240, 8, 7


def evaluation_job(num_detections: int, num_classes: int) -> Figures:
    """VOC AP at ten thresholds, and COCO's of a part of the images by pycocotools."""
    figures: Figures = {}
    images = [*made_detections(max(num_detections // PER_IMAGE, 1), PER_IMAGE, num_classes)]
    before = peak_bytes()
    with measured(figures, "VOC AP"):
        evaluate_detections(*_arrays(images), num_classes)
    figures["VOC AP, peak"] = ((peak_bytes() - before) / MB, "MB")
    part = images[: MOST_COCO // PER_IMAGE]
    with measured(figures, f"pycocotools, {len(part) * PER_IMAGE:,} of them"):
        _run_coco(part, num_classes)
    ours: Figures = {}
    with measured(ours, "same"):
        evaluate_detections(*_arrays(part), num_classes)
    stock = next(v for key, (v, _) in figures.items() if key.startswith("pycocotools"))
    figures["pycocotools / VOC AP, same detections"] = (stock / max(ours["same"][0], 1e-9), "times")
    return figures


def _arrays(images: list[Any]) -> tuple[Detections, GroundTruth]:
    numbers = [i for i, *_ in images]
    found = [instances for *_, instances in images]
    counts = [len(x) for x in found]
    detections = Detections(
        np.repeat(numbers, counts),
        np.concatenate([x.pred_classes.numpy() for x in found]),
        np.concatenate([x.scores.numpy() for x in found]).astype(np.float64),
        np.concatenate([x.pred_boxes.tensor.numpy() for x in found]).astype(np.float64),
    )
    boxes = np.concatenate([objects for _, objects, *_ in images]).astype(np.float64)
    of_images = np.repeat(numbers, [len(objects) for _, objects, *_ in images])
    classes = np.concatenate([c for *_, c, _ in images])
    return detections, GroundTruth(of_images, classes, boxes, np.zeros(len(boxes), bool))


def _run_coco(images: list[Any], num_classes: int) -> None:
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": i} for i, *_ in images],
        "categories": [{"id": c, "name": str(c)} for c in range(num_classes)],
        "annotations": [],
    }
    found = []
    for i, objects, classes, instances in images:
        for box, c in zip(_xywh(objects), classes.tolist()):
            new = {"id": len(truth["annotations"]) + 1, "image_id": i, "category_id": c}
            truth["annotations"].append({**new, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        columns = (instances.pred_classes.tolist(), instances.scores.tolist())
        for box, c, score in zip(_xywh(instances.pred_boxes.tensor.numpy()), *columns):
            found.append({"image_id": i, "category_id": c, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def step_job(num_rounds: int, num_classes: int) -> Figures:
    """Steps of Faster R-CNN R50-FPN in detectron2's trainer and in ours, in turn.

    Ours has noise, annotation ids, the SuperLoss and the tracker on; both read the same images.
    """
    with tempfile.TemporaryDirectory() as folder:
        configs = _configs(Path(folder), num_classes)
        register_custom_datasets(configs["ours"].DATASETS)
        figures: Figures = {}
        trainers = {}
        for name, kind in (("detectron2", DefaultTrainer), ("ours", SuperLossTrainer)):
            with measured(figures, f"{name}: build the trainer"):
                trainers[name] = kind(configs[name])
        if trainers["ours"].annotation_tracker is None:
            raise ValueError("the run tracks no annotation")
        seconds = _in_turn(trainers, num_rounds)
        for trainer in trainers.values():
            getattr(trainer.data_loader, "close", lambda: None)()
    for name, values in seconds.items():
        figures[f"{name}: a step"] = (statistics.median(values), "s a step")
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["detectron2"])]
    quarters = statistics.quantiles(ratios, n=4)
    figures["ours / detectron2, median"] = (quarters[1], "times")
    figures["lower quartile"], figures["upper quartile"] = (
        (quarters[0], "times"),
        (quarters[2], "times"),
    )
    return figures


def _in_turn(trainers: dict[str, Any], num_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of steps with their hooks; the first step of each is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    storages = {name: EventStorage() for name in trainers}
    for trainer in trainers.values():
        trainer.iter = trainer.start_iter = 0
    for step in range(num_rounds + 1):
        # Who comes second finds the caches warm: each comes first every other time.
        for name in sorted(trainers, reverse=bool(step % 2)):
            trainer = trainers[name]
            with storages[name] as storage:
                trainer.storage, trainer.iter = storage, step
                storage.iter = step
                if not step:
                    trainer.before_train()
                start = time.process_time()
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
                seconds[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in seconds.items()}


def _configs(folder: Path, num_classes: int) -> dict[str, CfgNode]:
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH})
        for _ in range(NUM_OBJECTS):
            x, y, w, h = (*rng.integers(0, 120, 2), *rng.integers(30, 110, 2))
            new = {"id": len(annotations), "image_id": i, "bbox": [int(v) for v in (x, y, w, h)]}
            new |= {"category_id": int(rng.integers(num_classes)), "area": int(w * h)}
            annotations.append({**new, "iscrowd": 0})
    categories = [{"id": c, "name": f"class {c}"} for c in range(num_classes)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(data))
    entry = {"JSON_FILE": str(folder / "set.json"), "IMAGE_ROOT": str(folder)}
    configs = {}
    for name, superloss in (("detectron2", ""), ("ours", "_superloss")):
        cfg = get_config(f"PascalVOC-Detection/faster_rcnn_R_50_FPN{superloss}.yaml")
        cfg.DATASETS.CUSTOM_COCO = [{"NAME": "scale_steps", **entry}]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("scale_steps",), ()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (HEIGHT,), "none"
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 1, 0
        cfg.SOLVER.BASE_LR, cfg.SEED, cfg.OUTPUT_DIR = 1e-4, 0, str(folder / name)
        if superloss:
            cfg.DATASETS.LABEL_NOISE.TYPE, cfg.DATASETS.LABEL_NOISE.RATE = "symmetric", 0.2
        configs[name] = cfg
    return configs
