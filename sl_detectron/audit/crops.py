"""Small pictures of annotations, to be embedded in a page."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.data import detection_utils
from PIL import Image
from tqdm import tqdm

from .records import AuditedAnnotation

__all__ = ["Crop", "make_crops"]

# What is shown around a box, as a fraction of its longer side: a label is judged in its context.
MARGIN = 0.25
QUALITY = 72


class Crop(NamedTuple):
    """A JPEG of an annotation with some surroundings.

    Args:
        jpeg: base64
        width, height: in pixels of the picture
        inset: distance of the box from the left, top, right and bottom edge, in thousandths of
            the picture's width or height
    """

    jpeg: str
    width: int
    height: int
    inset: tuple[int, int, int, int]


def make_crops(
    annotations: Sequence[AuditedAnnotation], size: int, progress: bool = False
) -> list[Crop | None]:
    """Cut annotations out of their images, each image read once.

    Args:
        annotations: with the file names of their images
        size: longer side of a crop, in pixels
        progress: whether to show a progress bar

    Returns:
        one crop each, None where the image cannot be read
    """
    by_file: dict[str, list[int]] = defaultdict(list)
    for i, annotation in enumerate(annotations):
        by_file[annotation.file_name].append(i)
    crops: list[Crop | None] = [None] * len(annotations)
    for file_name, places in tqdm(by_file.items(), unit="image", disable=not progress):
        try:
            image = Image.fromarray(detection_utils.read_image(file_name, "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        for i in places:
            crops[i] = _crop(image, annotations[i].bbox, size)
    return crops


def _crop(image: Image.Image, bbox: Sequence[float], size: int) -> Crop | None:
    x0, y0, x1, y1 = bbox
    margin = MARGIN * max(x1 - x0, y1 - y0)
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    right, bottom = min(image.width, round(x1 + margin)), min(image.height, round(y1 + margin))
    width, height = right - left, bottom - top
    if width < 1 or height < 1:
        return None
    scale = size / max(width, height)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    crop = image.crop((left, top, right, bottom)).resize(shape, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    crop.save(buffer, "JPEG", quality=QUALITY)
    distances: tuple[Any, ...] = (
        (x0 - left) / width,
        (y0 - top) / height,
        (right - x1) / width,
        (bottom - y1) / height,
    )
    inset = tuple(max(0, round(1000 * distance)) for distance in distances)
    return Crop(base64.b64encode(buffer.getvalue()).decode(), *shape, inset)
