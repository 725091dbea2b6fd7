"""What a training step costs beside detectron2's."""

import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from PIL import Image

from ..data.registered_sets import register_custom_datasets
from ..engine.trainer import SuperLossTrainer
from ..model_zoo import get_config
from .scale_figures import MB, Figures, measured, peak_bytes

__all__ = ["step_job", "toy_step_job"]

# Images of the set that is trained on, and objects of each.
NUM_IMAGES, NUM_OBJECTS = 8, 7
TRAINERS: dict[str, Any] = {"detectron2": DefaultTrainer, "ours": SuperLossTrainer}
# Steps after which the memory of a process is read.
PEAK_STEPS = 4


class StepSize(NamedTuple):
    """A config without its ending, the size of images in pixels, and how many are in a step."""

    config: str
    width: int
    height: int
    batch: int


R50_FPN = StepSize("PascalVOC-Detection/faster_rcnn_R_50_FPN", 320, 240, 1)
TOY = StepSize("Toy/faster_rcnn", 128, 128, 8)


def step_job(num_rounds: int, num_classes: int, size: StepSize | None = None) -> Figures:
    """Steps of Faster R-CNN in detectron2's trainer and in ours, in turn.

    Ours has noise, annotation ids, the SuperLoss and the tracker on; both read the same images.

    Args:
        num_rounds: steps of each
        num_classes: of the detector
        size: None for R50-FPN
    """
    with tempfile.TemporaryDirectory() as folder:
        configs = _configs(Path(folder), num_classes, size or R50_FPN)
        register_custom_datasets(configs["ours"].DATASETS)
        figures: Figures = {}
        trainers = {}
        for name, kind in TRAINERS.items():
            with measured(figures, f"{name}: build the trainer"):
                trainers[name] = kind(configs[name])
        if trainers["ours"].annotation_tracker is None:
            raise ValueError("the run tracks no annotation")
        seconds = _in_turn(trainers, num_rounds)
        for trainer in trainers.values():
            getattr(trainer.data_loader, "close", lambda: None)()
        del trainers, trainer
        for name, cfg in configs.items():
            figures[f"{name}: peak of {PEAK_STEPS} steps"] = (_peak(name, cfg), "MB a process")
    for name, values in seconds.items():
        figures[f"{name}: a step"] = (statistics.median(values), "s a step")
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["detectron2"])]
    quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    figures["ours / detectron2, median"] = (quarters[1], "times")
    figures["lower quartile"], figures["upper quartile"] = (
        (quarters[0], "times"),
        (quarters[2], "times"),
    )
    return figures


def toy_step_job(num_rounds: int, num_classes: int) -> Figures:
    """:func:`step_job` of the toy detector, whose steps are short."""
    return step_job(num_rounds, num_classes, TOY)


def _peak(name: str, cfg: CfgNode) -> float:
    """MB that a trainer and some steps of it add to a process of their own."""
    context = multiprocessing.get_context("spawn")
    quiet: dict[str, Any] = {"initializer": logging.disable, "initargs": (logging.WARNING,)}
    with ProcessPoolExecutor(1, mp_context=context, **quiet) as pool:
        return pool.submit(_train_alone, name, cfg).result()


def _train_alone(name: str, cfg: CfgNode) -> float:
    torch.set_num_threads(1)
    register_custom_datasets(cfg.DATASETS)
    before = peak_bytes()
    _in_turn({name: TRAINERS[name](cfg)}, PEAK_STEPS - 1)
    return (peak_bytes() - before) / MB


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


def _configs(folder: Path, num_classes: int, size: StepSize) -> dict[str, CfgNode]:
    _write_images(folder, num_classes, size)
    entry = {"JSON_FILE": str(folder / "set.json"), "IMAGE_ROOT": str(folder)}
    configs = {}
    for name, superloss in (("detectron2", ""), ("ours", "_superloss")):
        cfg = get_config(f"{size.config}{superloss}.yaml")
        cfg.DATASETS.CUSTOM_COCO = [{"NAME": "scale_steps", **entry}]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("scale_steps",), ()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (size.height,), "none"
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = size.batch, 0
        cfg.SOLVER.BASE_LR, cfg.SEED, cfg.OUTPUT_DIR = 1e-4, 0, str(folder / name)
        if superloss:
            cfg.DATASETS.LABEL_NOISE.TYPE, cfg.DATASETS.LABEL_NOISE.RATE = "symmetric", 0.2
        configs[name] = cfg
    return configs


def _write_images(folder: Path, num_classes: int, size: StepSize) -> None:
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (size.height, size.width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": size.height})
        images[-1]["width"] = size.width
        for _ in range(NUM_OBJECTS):
            most = min(size.height, size.width) // 2
            x, y, w, h = (*rng.integers(0, most, 2), *rng.integers(most // 4, most, 2))
            new = {"id": len(annotations), "image_id": i, "bbox": [int(v) for v in (x, y, w, h)]}
            new |= {"category_id": int(rng.integers(num_classes)), "area": int(w * h)}
            annotations.append({**new, "iscrowd": 0})
    categories = [{"id": c, "name": f"class {c}"} for c in range(num_classes)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(data))
