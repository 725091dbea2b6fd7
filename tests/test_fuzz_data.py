"""500 damaged files: never a traceback, never in silence another result than of the intact file.

A result may differ without a warning only where the damage made another file that keeps to the
letter of the form: a strict reader says so, and which result is right.
"""

import functools
import logging
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import _LOG_COUNTER
from pycocotools import mask

from helpers.field_cases import (
    CLASSES,
    HEIGHT,
    IMAGES,
    OBJECTS,
    TINY,
    WIDTH,
    coco_content,
    write_coco,
    write_voc,
)
from helpers.mutations import mutate_json, mutate_xml, strict_coco, strict_voc
from sl_detectron.cli import USER_ERRORS
from sl_detectron.data.datasets import load_dataset
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.data.voc import register_voc_dataset
from sl_detectron.engine.setup import check_test_sets
from sl_detectron.evaluation import evaluator_choice, files
from sl_detectron.evaluation.average_precision import Detections, evaluate_detections
from sl_detectron.label_noise import SymmetricNoise, build_noisy_train_loader, export
from sl_detectron.model_zoo import get_config

NUM = 250  # of each form
BLOCK = 50
NOISES = (SymmetricNoise(rate=0.5, mode="exact"),)
FOUND = [(i, o) for i in range(len(IMAGES)) for o in OBJECTS[IMAGES[i]]]


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder, detectron2's catalogs as they were, and no picture of what the noise did."""
    known = set(DatasetCatalog)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "plot_confusion", lambda statistics, classes, path: None)
    yield tmp_path
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@functools.cache
def tiny_config():
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list([*TINY, "MODEL.ROI_HEADS.NUM_CLASSES", len(CLASSES)])
    return cfg


def config(name):
    cfg = tiny_config().clone()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    return cfg


def train(name):
    """All of a training but its steps; what it would train on."""
    loader = build_noisy_train_loader(config(name))
    batches = iter(loader)
    for _ in IMAGES:
        next(batches)
    classes = loader.annotations.classes
    return {
        os.path.basename(r["file_name"]): [
            (classes[a["category_id"]], tuple(a["bbox"]))
            for a in r["annotations"]
            if "iscrowd" not in a
        ]
        for r in loader.annotations.records()
    }


def inject_voc(root):
    export.export_noisy_voc(root, "train", "noisy", NOISES, CLASSES, "set")
    restore_clean("noisy", "clean")
    for path in sorted((root / "Annotations").iterdir()):
        assert Path("clean/Annotations", path.name).read_bytes() == path.read_bytes()
    return len(Path("noisy/manifest.jsonl").read_text().splitlines())


def inject_coco(path):
    export.export_noisy_coco(CocoFile(path), "noisy", NOISES, "set")
    restore_clean("noisy", "clean")
    assert Path("clean", path.name).read_bytes() == path.read_bytes()
    return len(Path("noisy/manifest.jsonl").read_text().splitlines())


def evaluate_voc(root):
    _, truth = files.load_ground_truth(root, "train", CLASSES)
    images, classes, boxes = zip(*((i, CLASSES.index(c), box) for i, (c, box) in FOUND))
    boxes = torch.tensor(boxes).double() + torch.tensor([1, 1, 0, 0])
    arrays = (torch.tensor(x).numpy() for x in (images, classes))
    found = Detections(*arrays, torch.ones(len(images)).double().numpy(), boxes.numpy())
    results = evaluate_detections(found, truth, len(CLASSES))
    return [(r.num_objects, round(float(r.ap.mean()), 6)) for r in results]


def evaluate_coco(name):
    check_test_sets(config(name))
    judge = evaluator_choice.build_evaluator(name, output_dir="scores")
    judge.reset()
    for record in load_dataset(name):
        # What a detector finds is in the image, whatever the file says.
        objects = OBJECTS.get(Path(record["file_name"]).stem, OBJECTS["a"])
        classes = torch.tensor([CLASSES.index(c) for c, _ in objects])
        boxes = Boxes(torch.tensor([box for _, box in objects], dtype=torch.float32))
        found = {"pred_boxes": boxes, "scores": torch.ones(2), "pred_classes": classes}
        judge.process(
            [{"image_id": record["image_id"]}], [{"instances": Instances((HEIGHT, WIDTH), **found)}]
        )
    # Nothing without the key "annotations", as of a test server.
    results = judge.evaluate().get("bbox", {})
    return {key: round(value, 4) for key, value in results.items() if value == value}


def with_masks(content):
    """The content with a mask as RLE in both of its forms; more would draw most of the damage."""
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    pixels[6:40, 2:34] = 1
    short = [10, 20, HEIGHT * WIDTH - 30]
    for annotation, counts in zip(
        content["annotations"], (short, mask.encode(pixels)["counts"].decode())
    ):
        annotation["segmentation"] = {"counts": counts, "size": [HEIGHT, WIDTH]}
    return content


def attempt(command, argument, caplog):
    """("refused", message), or ("warned" or "silent", result)."""
    caplog.clear()
    _LOG_COUNTER.clear()
    try:
        result = command(argument)
    except USER_ERRORS as error:
        return "refused", str(error)
    ours = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return ("warned" if ours else "silent"), result


def outcome(intact, done, content, is_training):
    """One word for what a command made of a damaged file."""
    kind, result = done
    if kind == "refused":
        return "refused"
    if result == intact:
        return "same"
    if kind == "warned":
        return "warned"
    assert content is not None, f"another result in silence: {result}"
    if is_training:
        expected = {
            name: [(c, tuple(map(float, box))) for c, box, _ in objects]
            for name, objects in content.items()
            if objects
        }
        assert result == expected
    return "another good file"


def judge_all(seed, intact, damage, done, content, counts):
    for command, result in done.items():
        word = outcome(intact[command], result, content, command == "train")
        counts[word] += 1
        # What one command refuses, no other takes in silence as something else.
        if word == "another good file":
            assert not any(r[0] == "refused" for r in done.values()), (seed, damage, done)


@pytest.mark.parametrize("block", range(NUM // BLOCK))
def test_damaged_voc_files(world, caplog, block):
    counts = Counter()
    for seed in range(BLOCK * block - 1, BLOCK * (block + 1)):
        folder = world / str(seed)
        folder.mkdir()
        os.chdir(folder)
        root = write_voc(Path("voc"))
        is_intact = seed == BLOCK * block - 1
        damage = "" if is_intact else mutate_xml(root, random.Random(seed))
        name = f"fuzz_voc_{seed}_{block}"
        register_voc_dataset(name, root, "train", CLASSES)
        done = {
            "train": attempt(train, name, caplog),
            "inject": attempt(inject_voc, root, caplog),
            "evaluate": attempt(evaluate_voc, root, caplog),
        }
        if is_intact:
            assert {kind for kind, _ in done.values()} == {"silent"}
            intact = {command: result for command, (_, result) in done.items()}
        else:
            judge_all(seed, intact, damage, done, strict_voc(root), counts)
    print(dict(counts))
    assert sum(counts.values()) == 3 * BLOCK
    assert counts.keys() >= {"refused", "same"}


@pytest.mark.parametrize("block", range(NUM // BLOCK))
def test_damaged_coco_files(world, caplog, block):
    counts = Counter()
    for seed in range(BLOCK * block - 1, BLOCK * (block + 1)):
        folder = world / str(seed)
        folder.mkdir()
        os.chdir(folder)
        path = write_coco(Path(), with_masks(coco_content()))
        is_intact = seed == BLOCK * block - 1
        damage = "" if is_intact else mutate_json(path, random.Random(10_000 + seed))
        name = f"fuzz_coco_{seed}_{block}"
        register_coco_instances(name, {}, "set.json", "images")
        done = {
            "train": attempt(train, name, caplog),
            "inject": attempt(inject_coco, path, caplog),
            "evaluate": attempt(evaluate_coco, name, caplog),
        }
        if is_intact:
            assert {kind for kind, _ in done.values()} == {"silent"}
            intact = {command: result for command, (_, result) in done.items()}
        else:
            judge_all(seed, intact, damage, done, strict_coco(path), counts)
    print(dict(counts))
    assert sum(counts.values()) == 3 * BLOCK
    assert counts.keys() >= {"refused", "same"}
