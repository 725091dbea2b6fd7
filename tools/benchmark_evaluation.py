#!/usr/bin/env python3
"""Time VOCEvaluator against detectron2's evaluator on the same predictions, compare the numbers.

Examples:
  A made set of the size of VOC 2007 test, 500,000 detections; detectron2 takes minutes:
    tools/benchmark_evaluation.py
  A real devkit folder:
    tools/benchmark_evaluation.py --voc-root VOC2007 --split test
"""

import argparse
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
import numpy as np
import torch
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from sl_detectron.data import register_voc_dataset
from sl_detectron.evaluation import VOCEvaluator
from sl_detectron.evaluation.average_precision import GroundTruth
from sl_detectron.evaluation.files import load_ground_truth

NUM_IMAGES = 4952
IMAGE_SIZE = 500
OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def main(args: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.voc_root or make_devkit(Path(scratch), args.images, args.split)
        image_ids, ground_truth = load_ground_truth(root, args.split, CLASS_NAMES)
        predictions = make_predictions(ground_truth, len(image_ids), args.detections)
        identical = True
        for year, metric in ((2007, "07"), (2012, "area")):
            name = f"benchmark_{year}"
            register_voc_dataset(name, root, args.split, CLASS_NAMES, year)
            seconds, ours = run(VOCEvaluator(name), image_ids, predictions)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
            print(f"{metric}: VOCEvaluator {seconds:.2f} s, peak memory {peak:.2f} GB, {ours}")
            stock_seconds, stock = run(PascalVOCDetectionEvaluator(name), image_ids, predictions)
            identical &= ours == stock
            print(f"{metric}: detectron2   {stock_seconds:.2f} s, {stock}")
            print(f"{metric}: {stock_seconds / seconds:.0f} times faster, equal: {ours == stock}")
    if not identical:
        raise ValueError("VOCEvaluator and detectron2 disagree")


def run(
    evaluator: DatasetEvaluator, image_ids: Sequence[str], predictions: Sequence[Instances]
) -> tuple[float, dict[str, float]]:
    """Return the CPU seconds that evaluate() takes, and AP, AP50 and AP75."""
    evaluator.reset()
    for image_id, instances in zip(image_ids, predictions):
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    start = time.process_time()
    scores = evaluator.evaluate()["bbox"]
    return time.process_time() - start, {key: float(scores[key]) for key in ("AP", "AP50", "AP75")}


def make_devkit(root: Path, num_images: int, split: str) -> Path:
    """Write annotations like VOC's in number: 3 objects an image on average, 20 % difficult."""
    rng = np.random.default_rng(0)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    ids = [f"{i:06d}" for i in range(num_images)]
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    for image_id in ids:
        xml = "<annotation>"
        for _ in range(rng.poisson(2) + 1):
            x0, y0, width, height = rng.integers(1, IMAGE_SIZE // 2, size=4)
            # VOC's most frequent class holds a third of all objects.
            name = "person" if rng.random() < 0.3 else rng.choice(CLASS_NAMES)
            xml += OBJECT.format(name, int(rng.random() < 0.2), x0, y0, x0 + width, y0 + height)
        (root / "Annotations" / f"{image_id}.xml").write_text(xml + "</annotation>")
    return root


def make_predictions(
    ground_truth: GroundTruth, num_images: int, num_detections: int
) -> list[Instances]:
    """Return as many boxes in every image: a fifth near objects, the rest anywhere."""
    rng = np.random.default_rng(1)
    objects_of = [np.flatnonzero(ground_truth.images == i) for i in range(num_images)]
    counts = np.full(num_images, num_detections // num_images)
    counts[: num_detections - counts.sum()] += 1
    predictions = []
    for objects, count in zip(objects_of, counts):
        corners = rng.uniform(0, IMAGE_SIZE, size=(count, 2, 2))
        boxes = np.sort(corners, axis=1).reshape(count, 4)
        classes = rng.integers(len(CLASS_NAMES), size=count)
        scores = rng.beta(0.5, 4, size=count)
        if len(objects):
            near = rng.random(count) < 0.2
            chosen = rng.choice(objects, size=near.sum())
            boxes[near] = ground_truth.boxes[chosen] + rng.normal(0, 8, size=(near.sum(), 4))
            classes[near] = ground_truth.classes[chosen]
            scores[near] = rng.beta(2, 2, size=near.sum())
        instances = Instances((IMAGE_SIZE, IMAGE_SIZE))
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        instances.scores = torch.tensor(scores, dtype=torch.float32)
        instances.pred_classes = torch.tensor(classes)
        predictions.append(instances)
    return predictions


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument("--voc-root", type=Path, help="devkit folder; default: a made one")
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="of the made devkit folder")
    parser.add_argument("--detections", type=int, default=500_000)
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
