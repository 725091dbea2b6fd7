"""Small sets with properties that files of other people have, and every command on them."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import _LOG_COUNTER
from PIL import Image

from helpers import REPO
from sl_detectron.engine.setup import setup_cfg
from sl_detectron.label_noise import build_noisy_train_loader
from sl_detectron.model_zoo import get_config_file

CLASSES = ["disc", "block", "wedge"]
IMAGES = ("a", "b", "c", "d")
WIDTH, HEIGHT = 96, 64
# Per image two objects: class and XYXY box in pixels, 0-based.
OBJECTS = {
    name: [(CLASSES[i % 3], [2 + i, 6, 34, 40]), (CLASSES[(i + 1) % 3], [44, 10 + i, 90, 60])]
    for i, name in enumerate(IMAGES)
}
TINY = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "2"]
TINY += ["SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1"]
TINY += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]
TINY += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"]
TINY += ["SOLVER.BASE_LR", "0.002", "DATASETS.LABEL_NOISE.RATE", "0.0", "MODEL.DEVICE", "cpu"]
TINY += ["DATALOADER.NUM_WORKERS", "0"]


def voc_object(name: str, box: list[float], extra: str = "") -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]))
    texts = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    return f"<object><name>{name}</name>{extra}<bndbox>{texts}</bndbox></object>"


def voc_xml(name: str, extra: str = "<difficult>0</difficult>") -> str:
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(voc_object(*o, extra) for o in OBJECTS[name])}</annotation>"


def pixels(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def write_voc(root: Path, extra: str = "<difficult>0</difficult>") -> Path:
    """A VOC folder with the image set "train"."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(IMAGES):
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(name, extra))
        pixels(i).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets/Main/train.txt").write_text("\n".join(IMAGES) + "\n")
    return root


def coco_content() -> dict[str, Any]:
    """A sound COCO json of the same objects."""
    images, annotations = [], []
    for i, name in enumerate(IMAGES, start=1):
        images.append({"id": i, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT})
        for class_name, (x0, y0, x1, y1) in OBJECTS[name]:
            ids = {"id": len(annotations) + 1, "image_id": i}
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            category = {"category_id": CLASSES.index(class_name) + 1, "iscrowd": 0}
            annotations.append({**ids, **category, **box})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(folder: Path, content: dict[str, Any] | None = None, name: str = "set") -> Path:
    """``<name>.json`` and its images in ``images``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(IMAGES):
        pixels(i).save(folder / "images" / f"{image}.jpg")
    path = folder / f"{name}.json"
    path.write_text(json.dumps(coco_content() if content is None else content))
    return path


def for_each(content: dict[str, Any], part: str, change: Callable[[dict], Any]) -> dict[str, Any]:
    """The content, after a change of every entry of a part."""
    for entry in content[part]:
        change(entry)
    return content


class Commands:
    """The tools, called in this process on a VOC folder ``voc`` or a json ``set.json``.

    Args:
        folder: of the set; the working directory
        monkeypatch, capsys: pytest's
    """

    def __init__(self, folder: Path, monkeypatch: Any, capsys: Any):
        self.folder = folder
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self._registered: set[str] = set(DatasetCatalog)
        monkeypatch.chdir(folder)

    def opts(self, coco: bool = False, root: str = "voc") -> list[str]:
        """Config options of a training on the set."""
        voc = {"NAME": "mine", "ROOT": root, "SPLIT": "train", "CLASSES": CLASSES}
        entry = {"NAME": "mine", "JSON_FILE": "set.json", "IMAGE_ROOT": "images"}
        key, value = ("CUSTOM_COCO", entry) if coco else ("CUSTOM_VOC", voc)
        sets = [f"DATASETS.{key}", str([value]), "DATASETS.TRAIN", "('mine',)"]
        # Absolute: detectron2 keeps one log file for each folder by name, in the whole process.
        output = ["OUTPUT_DIR", str(self.folder / "output")]
        return [*TINY, *sets, "DATASETS.TEST", "()", "MODEL.ROI_HEADS.NUM_CLASSES", "3", *output]

    def load(self, *opts: str, coco: bool = False, root: str = "voc") -> Any:
        """All of a training but its steps: the checked config, the loader, each image once."""
        self.forget()
        toy = get_config_file("Toy/faster_rcnn_superloss.yaml")
        cfg = setup_cfg(toy, [*self.opts(coco, root), *opts])
        loader = build_noisy_train_loader(cfg)
        batches = iter(loader)
        for _ in range(2 * len(IMAGES)):
            next(batches)
        return loader

    def run(self, tool: str, *args: str) -> tuple[int, str]:
        """Exit code and all that was printed."""
        self.forget()
        self._monkeypatch.setattr(sys, "argv", [str(REPO / "tools" / tool), *map(str, args)])
        code: Any = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as done:
            code = done.code or 0
        printed = self._capsys.readouterr()
        return code, printed.out + printed.err

    def inject(self, *args: str, coco: bool = False, out: str = "noisy") -> tuple[int, str]:
        voc = ["--voc-root", "voc", "--split", "train", "--classes", ",".join(CLASSES)]
        source = ["--coco-json", "set.json"] if coco else voc
        given = ["--rate", "0.5", "--mode", "exact", "--output", out, *args]
        return self.run("inject_noise.py", *source, *given)

    def evaluate(self, *args: str) -> tuple[int, str]:
        detections = [
            {"image_id": name, "category_id": CLASSES.index(c), "score": 0.5 + i / 10,
             "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for name in IMAGES
            for i, (c, (x0, y0, x1, y1)) in enumerate(OBJECTS[name])
        ]  # fmt: skip
        Path("found.json").write_text(json.dumps(detections))
        given = ["--voc-root", "voc", "--split", "train", "--metric", "area", "--no-pictures"]
        classes = [] if "--classes" in args else ["--classes", ",".join(CLASSES)]
        found = ["--detections", "found.json", "--output", "scores.json"]
        return self.run("evaluate_voc.py", *given, *classes, *found, *args)

    def visualize(self, *opts: str, coco: bool = False) -> tuple[int, str]:
        toy = get_config_file("Toy/faster_rcnn_superloss.yaml")
        options = [*self.opts(coco), *opts]
        return self.run(
            *("visualize.py", "--config-file", toy, "--output", "pictures", "--opts"), *options
        )

    def train(self, *opts: str, coco: bool = False) -> tuple[int, str]:
        toy = get_config_file("Toy/faster_rcnn_superloss.yaml")
        return self.run("train_net.py", "--config-file", toy, *self.opts(coco), *opts)

    def forget(self) -> None:
        """Take out of detectron2's catalogs what the last command put there; warn again."""
        for name in set(DatasetCatalog) - self._registered:
            DatasetCatalog.remove(name)
            if name in MetadataCatalog:
                MetadataCatalog.remove(name)
        _LOG_COUNTER.clear()
