"""Small datasets and audits that the tests of the audit build on."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sl_detectron.audit import LabelAudit
from sl_detectron.audit.ranking import audit_annotations
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.data import load_voc_dataset, register_voc_dataset
from sl_detectron.data.annotation_ids import AnnotationTable, number_annotations

# A name that would be markup, or end a script, if it were not escaped.
EVIL = '</script><img src=x onerror="window.hacked=1">&\''
CLASSES = ("cat", "dog", EVIL)
WIDTH, HEIGHT = 80, 60


# Class name and (xmin, ymin, xmax, ymax) as in a VOC file.
Object = tuple[str, tuple[int, int, int, int]]


def xml(objects: list[Object]) -> str:
    """A VOC annotation with white space, comments and entities that a parser would not keep."""
    names = {"&": "&amp;", "<": "&lt;"}
    body = ""
    for name, box in objects:
        for raw, entity in names.items():
            name = name.replace(raw, entity)
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
        body += f"\n <object><!-- kept --><name> {name} </name><bndbox>{corners}</bndbox></object>"
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<annotation>\n{size}{body}\n</annotation>\n"


def write_devkit(
    root: Path, images: dict[str, list[tuple[str, tuple[int, int, int, int]]]]
) -> Path:
    """A VOC devkit folder with one picture and annotation per image."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(images) + "\n")
    rng = np.random.default_rng(0)
    for name, objects in images.items():
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(xml(objects))
    return root


def write_coco(path: Path, files: list[str]) -> Path:
    """A COCO json with two annotations an image; ids of classes and images have gaps."""
    categories = [{"id": 3 + 2 * i, "name": name} for i, name in enumerate(CLASSES)]
    images = [
        {"id": 10 + i, "file_name": name, "height": HEIGHT, "width": WIDTH}
        for i, name in enumerate(files)
    ]
    annotations = [
        {
            "id": 100 + 2 * i + k,
            "image_id": 10 + i,
            "category_id": 3 + 2 * k,
            "bbox": [5 + k, 6, 20, 30],
            "area": 600,
            "iscrowd": 0,
        }
        for i in range(len(files))
        for k in (0, 1)
    ]
    data = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(data, indent=1))
    return path


IMAGES = {
    "a": [("cat", (5, 6, 30, 40)), ("dog", (40, 10, 70, 50))],
    "b": [(EVIL, (10, 10, 60, 50))],
    "c": [("dog", (3, 4, 40, 44)), ("cat", (20, 20, 79, 59)), (EVIL, (50, 2, 78, 30))],
}


def make_audit(tmp_path: Path, probabilities: torch.Tensor, name: str) -> LabelAudit:
    """An audit of ``IMAGES``, written to ``tmp_path/devkit``; probabilities (6, 3)."""
    root = tmp_path / "devkit"
    if not root.exists():
        write_devkit(root, IMAGES)
    register_voc_dataset(name, root, "train", CLASSES)
    sets = number_annotations({name: load_voc_dataset(root, "train", CLASSES)})
    labels = torch.tensor([a["category_id"] for r in sets[name] for a in r["annotations"]])
    tracker = AnnotationTracker(len(labels), len(CLASSES))
    losses = -probabilities[torch.arange(len(labels)), labels].log()
    tracker(torch.arange(len(labels)), losses, (1 - losses).exp().clamp(max=2.7), probabilities)
    return audit_annotations(AnnotationTable.of(sets), tracker.statistics())


# The second and the fourth annotation look wrong: dog -> cat, and dog -> the evil class.
PROBABILITIES = torch.tensor(
    [
        [0.8, 0.1, 0.1],
        [0.9, 0.05, 0.05],
        [0.1, 0.1, 0.8],
        [0.1, 0.3, 0.6],
        [0.6, 0.2, 0.2],
        [0.2, 0.1, 0.7],
    ]
)
