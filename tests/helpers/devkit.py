"""Small VOC folders and predictions for the tests of evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

# (class name, (xmin, ymin, xmax, ymax) in 1-based inclusive pixels, difficult)
Object = tuple[str, Sequence[float], int]

OBJECT = (
    "<object><name>{}</name><pose>Left</pose><truncated>0</truncated><difficult>{}</difficult>"
    "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)
SIZE = "<size><width>200</width><height>200</height></size>"


def write_devkit(root: Path, images: dict[str, list[Object]], split: str = "test") -> Path:
    """Write annotations, as complete as detectron2's own evaluator needs them, and an image set."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in images))
    for image_id, objects in images.items():
        xml = "".join(OBJECT.format(name, difficult, *box) for name, box, difficult in objects)
        (root / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation>{SIZE}{xml}</annotation>"
        )
        (root / "JPEGImages" / f"{image_id}.jpg").touch()
    return root


def make_instances(detections: Sequence[tuple[int, float, Sequence[float]]]) -> Instances:
    """Return predictions from (class id, score, XYXY box in 0-based pixels)."""
    boxes = np.array([box for _, _, box in detections], dtype=np.float32).reshape(-1, 4)
    return Instances(
        (200, 200),
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.tensor([score for _, score, _ in detections], dtype=torch.float32),
        pred_classes=torch.tensor([c for c, _, _ in detections], dtype=torch.int64),
    )


def random_devkit(rng: np.random.Generator, class_names: Sequence[str]) -> dict[str, list[Object]]:
    """Up to 6 images of up to 6 objects; every class has one that is not difficult.

    Some boxes are one pixel wide or high.
    """
    images: dict[str, list[Object]] = {f"{i:06d}": [] for i in range(rng.integers(1, 7))}
    ids = list(images)
    for objects in images.values():
        for _ in range(rng.integers(0, 6)):
            low, high = rng.integers(1, 60, size=2), rng.integers(0, 40, size=2)
            box = [*low.tolist(), *(low + high).tolist()]
            objects.append((str(rng.choice(class_names)), box, int(rng.random() < 0.25)))
    for name in class_names:
        images[rng.choice(ids)].append((name, [5, 5, 30, 40], 0))
    return images


def random_predictions(
    rng: np.random.Generator, objects: Sequence[Object], class_names: Sequence[str]
) -> Instances:
    """Boxes on and off the objects, exact copies among them, with scores that often tie.

    Objects of other classes are found as any class.
    """
    ties = [0.0005, 0.0015, 0.0625, 0.1234, 0.12345, 0.5, 0.9995]
    detections = []
    for _ in range(rng.choice([0, 5, 40])):
        class_id = int(rng.integers(len(class_names)))
        box = np.sort(rng.uniform(0, 90, size=(2, 2)), axis=0).reshape(-1)
        if objects and rng.random() < 0.7:
            name, corners, _ = objects[rng.integers(len(objects))]
            box = np.subtract(corners, [1, 1, 0, 0]) + rng.normal(0, rng.choice([0, 0.5, 3]), 4)
            box = np.sort(box.reshape(2, 2), axis=0).reshape(-1)
            if name in class_names and rng.random() < 0.9:
                class_id = class_names.index(name)
        score = rng.choice(ties) if rng.random() < 0.5 else rng.random()
        detections.append((class_id, score, box))
    return make_instances(detections)
