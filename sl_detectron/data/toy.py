"""A small detection set of real handwritten digits in Pascal VOC devkit form.

scikit-learn ships 1,797 digits of 8 x 8 pixels (UCI optical recognition of handwritten digits).
They are enlarged and pasted onto shaded backgrounds by a seeded generator, so that a detector can
be trained in minutes on a CPU without a download.
"""

import contextlib
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..files import new_folder
from .formats.voc_edits import voc_object
from .voc import load_voc_dataset, voc_metadata

__all__ = ["TOY_CLASS_NAMES", "TOY_SPLITS", "make_toy_dataset", "register_toy_datasets"]

logger = logging.getLogger(__name__)

TOY_CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Images of each split. With 200 training images a detector has memorised the wrong labels after 20
# epochs, before it recognises the digits; then no loss can separate them any more.
TOY_SPLITS = {"train": 800, "test": 240}
IMAGE_SIZE = 128
MAX_DIGITS = 5
SIDES = (20, 44)
TRAIN_SHARE = 0.7

# (xmin, ymin, xmax, ymax) in pixels, 0-based edges
Box = tuple[int, int, int, int]


def make_toy_dataset(root: str | os.PathLike, seed: int = 0) -> Path:
    """Write the toy set: ``Annotations/``, ``ImageSets/Main/{train,test}.txt``, ``JPEGImages/``.

    No digit is in both splits. The same seed gives the same set. The folder appears complete or
    not at all, also when several processes make it at once.

    Args:
        root: the folder to make; it is returned
        seed: of the composition

    Raises:
        FileExistsError: ``root`` exists
        ImportError: scikit-learn is not installed
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(f"{root} exists; remove it to make the toy set again")
    logger.info("Making the toy set in %s", root)
    digits, labels = _load_digits()
    order = np.random.default_rng(seed).permutation(len(digits))
    cut = int(len(order) * TRAIN_SHARE)
    pools = {"train": order[:cut], "test": order[cut:]}
    try:
        with new_folder(root) as folder:
            for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
                (folder / name).mkdir(parents=True)
            for index, (split, num_images) in enumerate(TOY_SPLITS.items()):
                names = [f"{split}_{i:04d}" for i in range(num_images)]
                for i, name in enumerate(names):
                    rng = np.random.default_rng([seed, index, i])
                    image, objects = _compose(rng, digits, labels, pools[split])
                    Image.fromarray(image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
                    _write_xml(folder / "Annotations" / f"{name}.xml", name, objects)
                image_set = folder / "ImageSets" / "Main" / f"{split}.txt"
                image_set.write_text("\n".join(names) + "\n")
    except OSError:
        # Another process may have finished the same set first; rename refuses a full folder.
        if not root.exists():
            raise
    return root


def register_toy_datasets(root: str | os.PathLike, prefix: str = "toy_digits") -> None:
    """Register ``{prefix}_train`` and ``{prefix}_test``; the set is made when first loaded."""

    def load(split: str) -> list[dict[str, Any]]:
        with contextlib.suppress(FileExistsError):
            make_toy_dataset(root)
        return load_voc_dataset(root, split, TOY_CLASS_NAMES)

    for split in TOY_SPLITS:
        name = f"{prefix}_{split}"
        DatasetCatalog.register(name, partial(load, split))
        MetadataCatalog.get(name).set(**voc_metadata(root, split, TOY_CLASS_NAMES))


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) ink in [0, 1] and (1797,) labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the toy set is composed of scikit-learn's digits: pip install scikit-learn"
        ) from error
    data = load_digits()
    return data.images.astype(np.float32) / 16, data.target


def _compose(
    rng: np.random.Generator, digits: np.ndarray, labels: np.ndarray, pool: np.ndarray
) -> tuple[np.ndarray, list[tuple[str, Box]]]:
    """One (H, W, 3) uint8 image and the class name and box of each object."""
    image = _background(rng)
    objects: list[tuple[str, Box]] = []
    for which in rng.choice(pool, size=rng.integers(2, MAX_DIGITS + 1), replace=False):
        side = int(rng.integers(*SIDES, endpoint=True))
        ink = Image.fromarray(digits[which]).resize((side, side), Image.Resampling.BICUBIC)
        alpha = np.clip(np.asarray(ink), 0, 1)
        rows, cols = (np.flatnonzero(alpha.max(axis=axis) > 0.25) for axis in (1, 0))
        alpha = alpha[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        box = _free_place(rng, alpha.shape, [box for _, box in objects])
        if box is None:
            continue
        x0, y0, x1, y1 = box
        colour = rng.uniform(0, 90, size=3)
        patch = image[y0:y1, x0:x1]
        image[y0:y1, x0:x1] = patch + alpha[..., None] * (colour - patch)
        objects.append((TOY_CLASS_NAMES[labels[which]], box))
    return image.round().astype(np.uint8), objects


def _background(rng: np.random.Generator) -> np.ndarray:
    """Light shading that varies slowly, with grain."""
    coarse = rng.uniform(130, 250, size=(4, 4, 3)).astype(np.uint8)
    shade = Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, size=(IMAGE_SIZE, IMAGE_SIZE, 1))
    return np.clip(np.asarray(shade, np.float32) + grain, 0, 255)


def _free_place(rng: np.random.Generator, shape: tuple[int, ...], taken: list[Box]) -> Box | None:
    """A random place that touches no other digit, or None after 50 tries."""
    height, width = shape
    for _ in range(50):
        x0, y0 = rng.integers(IMAGE_SIZE - width), rng.integers(IMAGE_SIZE - height)
        x1, y1 = x0 + width, y0 + height
        if all(x1 <= bx0 or bx1 <= x0 or y1 <= by0 or by1 <= y0 for bx0, by0, bx1, by1 in taken):
            return int(x0), int(y0), int(x1), int(y1)
    return None


def _write_xml(path: Path, name: str, objects: list[tuple[str, Box]]) -> None:
    """One VOC annotation."""
    size = f"<width>{IMAGE_SIZE}</width><height>{IMAGE_SIZE}</height><depth>3</depth>"
    head = f"<annotation>\n\t<filename>{name}.jpg</filename>\n\t<size>{size}</size>"
    body = b"".join(voc_object(*each) for each in objects)
    path.write_bytes(head.encode() + body + b"\n</annotation>\n")
