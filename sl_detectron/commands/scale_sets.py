"""Made datasets, statistics and detections of any size, for measurements of what they cost."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from ..audit.compact_tracker import CompactTracker, build_tracker
from ..audit.few_classes import NUM_KEPT
from ..audit.tracker import NUM_VALUES, AnnotationTracker
from ..data.annotation_ids import AnnotationTable, number_annotations
from ..data.formats.annotations import Record

__all__ = [
    "PER_IMAGE",
    "WIDTH",
    "made_detections",
    "made_table",
    "made_tracker",
    "predictions",
    "write_coco",
]

# Annotations an image, as COCO has.
PER_IMAGE = 7
WIDTH, HEIGHT = 640, 480
_BLOCK = 100_000
# Samples of a step: RoIs of two images that are matched to annotations.
SAMPLES = 256


def write_coco(path: Path, num_annotations: int, num_classes: int, seed: int = 0) -> Path:
    """Write a COCO json of random boxes in blocks: memory does not grow with the set."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)]
    num_images = -(-num_annotations // PER_IMAGE)
    with open(path, "w", encoding="ascii") as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        image = f'{{{{"id": {{0}}, "file_name": "{{0:012d}}.jpg", "height": {HEIGHT}, '
        image += f'"width": {WIDTH}}}}}'
        for start in range(0, num_images, _BLOCK):
            numbers = range(start, min(start + _BLOCK, num_images))
            file.write(",\n" * (start > 0) + ",\n".join(image.format(i + 1) for i in numbers))
        file.write('],\n"annotations": [')
        for start in range(0, num_annotations, _BLOCK):
            size = min(_BLOCK, num_annotations - start)
            boxes = _boxes(rng, size).round(1).tolist()
            classes = rng.integers(1, num_classes + 1, size).tolist()
            lines = (
                f'{{"id": {i + 1}, "image_id": {i // PER_IMAGE + 1}, "category_id": {c}, '
                f'"bbox": [{x}, {y}, {w}, {h}], "area": {w * h:.2f}, "iscrowd": 0}}'
                for i, c, (x, y, w, h) in zip(range(start, start + size), classes, boxes)
            )
            file.write(",\n" * (start > 0) + ",\n".join(lines))
        file.write("]}\n")
    return path


def _boxes(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, 4) x, y, width and height inside of an image."""
    corners = rng.uniform(0, (WIDTH - 140, HEIGHT - 140), (size, 2))
    return np.concatenate([corners, rng.uniform(8, 120, (size, 2))], axis=1)


def made_records(name: str, num_annotations: int, num_classes: int) -> list[Record]:
    """Records of a set of that name, whose classes it gets, without image files."""
    rng = np.random.default_rng(0)
    MetadataCatalog.get(name).thing_classes = [f"class {i}" for i in range(num_classes)]
    boxes = _boxes(rng, num_annotations).round(1).tolist()
    classes = rng.integers(0, num_classes, num_annotations).tolist()
    return [
        {
            "image_id": start,
            "file_name": f"images/{start:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "annotations": [
                {"bbox": boxes[i], "bbox_mode": BoxMode.XYWH_ABS, "category_id": classes[i]}
                for i in range(start, min(start + PER_IMAGE, num_annotations))
            ],
        }
        for start in range(0, num_annotations, PER_IMAGE)
    ]


def made_table(name: str, num_annotations: int, num_classes: int) -> AnnotationTable:
    """The table of :func:`made_records`."""
    records = made_records(name, num_annotations, num_classes)
    return AnnotationTable.of(number_annotations({name: records}))


def made_tracker(labels: torch.Tensor, num_classes: int, fingerprint: int) -> AnnotationTracker:
    """Statistics of 16 samples of each annotation, of which one in ten looks wrong."""
    generator = torch.Generator().manual_seed(0)
    tracker = build_tracker(labels, num_classes, fingerprint)
    num = len(labels)
    looks_wrong = torch.rand(num, generator=generator) < 0.1
    shares = torch.rand(num, NUM_KEPT, generator=generator).sort(dim=1, descending=True).values
    given = torch.where(looks_wrong, 0.2, 0.8)
    shares = shares / shares.sum(dim=1, keepdim=True) * (1 - given)[:, None]
    counts = torch.full((num,), 16.0)
    losses, sigma = torch.rand(2, num, generator=generator) * counts
    common = torch.stack([counts, losses, sigma, 0.75 * counts], dim=1)
    kept = min(NUM_KEPT, num_classes - 1)
    others = (labels[:, None] + 1 + torch.arange(kept)) % num_classes
    of_classes = 0.75 * counts[:, None] * torch.cat([given[:, None], shares[:, :kept]], dim=1)
    rows = tracker.sums[:num]
    rows[:, :NUM_VALUES] = common
    if isinstance(tracker, CompactTracker):
        rows[:, NUM_VALUES] = common[:, -1]
        rows[:, NUM_VALUES + 1] = of_classes[:, 0]
        tracker.sketch[:num] = of_classes[:, 1:]
        tracker.sketch_classes[:num] = others.to(tracker.sketch_classes)
    else:
        places = torch.cat([labels[:, None], others], dim=1) + NUM_VALUES
        rows.scatter_(1, places, of_classes)
    tracker.last[:num] = common[:, :3] / 16
    return tracker


def predictions(
    labels: torch.Tensor, num_classes: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, confidences and (S, K) class probabilities of samples with these labels."""
    size = len(labels)
    logits = torch.rand(size, num_classes, generator=generator).mul_(4)
    wrong = torch.rand(size, generator=generator) < 0.1
    other = torch.randint(num_classes, (size,), generator=generator)
    logits[torch.arange(size), torch.where(wrong, other, labels)] += 8
    losses, sigma = torch.rand(2, size, generator=generator)
    return losses, sigma, logits.softmax(dim=1)


def made_detections(
    num_images: int, per_image: int, num_classes: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, Instances]]:
    """Per image its number, objects and detections.

    Yields:
        image, (n, 4) XYXY boxes of the objects, (n,) classes, and ``per_image`` detections, a fifth
        of which is near objects
    """
    rng = np.random.default_rng(1)
    for image in range(num_images):
        objects = _boxes(rng, PER_IMAGE).astype(np.float32)
        objects[:, 2:] += objects[:, :2]
        classes = rng.integers(0, num_classes, PER_IMAGE)
        boxes = _boxes(rng, per_image).astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        found = rng.integers(0, num_classes, per_image)
        near = np.flatnonzero(rng.random(per_image) < 0.2)
        of = rng.integers(0, PER_IMAGE, len(near))
        boxes[near] = objects[of] + rng.normal(0, 5, (len(near), 4)).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        found[near] = classes[of]
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        # Distinct scores, so that the order of equals is no difference.
        instances.scores = torch.from_numpy(rng.random(per_image, dtype=np.float32))
        instances.pred_classes = torch.from_numpy(found)
        yield image, objects, classes, instances
