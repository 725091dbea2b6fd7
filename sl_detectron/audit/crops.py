"""Pictures of suspects for an HTML page: what is around a box, and where boxes lie in it."""

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence

from detectron2.data import detection_utils
from PIL import Image
from tqdm import tqdm

from .records import AuditedAnnotation, Box, Suspect

__all__ = ["Crop", "check_crops", "make_crops"]

# What is shown around a box, as a fraction of its longer side: a label is judged in its context, an
# object that has no annotation in its surroundings.
MARGIN, SURROUNDINGS = 0.25, 1.0
QUALITY = 72

# The distances of a box from the left, top, right and bottom edge, in thousandths of the width or
# height.
Inset = list[int]
# A JPEG in base64, its width and height, and the places of the annotated box, of the suggested one,
# each None for none, and of others.
Crop = tuple[str, int, int, Inset | None, Inset | None, list[Inset]]


def check_crops(num_crops: int, crop_size: int) -> None:
    """Refuse numbers that a report cannot take."""
    if num_crops < 0:
        raise ValueError(f"the number of crops must be at least 0; got {num_crops}")
    if crop_size < 1:
        raise ValueError(f"the size of a crop must be at least 1 pixel; got {crop_size}")


def make_crops(
    shown: Sequence[Suspect | AuditedAnnotation],
    size: int,
    progress: bool = False,
    annotated: Mapping[str, Sequence[Box]] | None = None,
) -> list[Crop | None]:
    """Crops of suspects, ``size`` pixels long; None for one whose image cannot be read.

    Args:
        shown: what is cut out
        size: longer side in pixels
        progress: whether to show a progress bar
        annotated: {file name: boxes of its annotations}, to be seen around a missing object
    """
    by_file: dict[str, list[int]] = defaultdict(list)
    for i, suspect in enumerate(shown):
        by_file[suspect.file_name].append(i)
    crops: list[Crop | None] = [None] * len(shown)
    for file_name, places in tqdm(by_file.items(), unit="image", disable=not progress):
        try:
            image = Image.fromarray(detection_utils.read_image(file_name, "RGB"))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        others = (annotated or {}).get(file_name, ())
        for i in places:
            crops[i] = _crop(image, shown[i].bbox, getattr(shown[i], "suggested_bbox", None),
                             size, others)  # fmt: skip
    return crops


def _crop(
    image: Image.Image, given: Box | None, suggested: Box | None, size: int, others: Sequence[Box]
) -> Crop | None:
    boxes = [box for box in (given, suggested) if box is not None]
    x0, y0 = (min(box[i] for box in boxes) for i in (0, 1))
    x1, y1 = (max(box[i] for box in boxes) for i in (2, 3))
    margin = (MARGIN if given else SURROUNDINGS) * max(x1 - x0, y1 - y0)
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
    view = left, top, right, bottom
    near = [_inset(box, view) for box in others if _overlaps(box, view)] if not given else []
    places = [_inset(box, view) if box else None for box in (given, suggested)]
    return base64.b64encode(buffer.getvalue()).decode(), *shape, places[0], places[1], near


def _overlaps(box: Box, view: Sequence[int]) -> bool:
    x0, y0, x1, y1 = box
    left, top, right, bottom = view
    return x0 < right and x1 > left and y0 < bottom and y1 > top


def _inset(box: Box, view: Sequence[int]) -> Inset:
    (x0, y0, x1, y1), (left, top, right, bottom) = box, view
    lengths = (right - left, bottom - top) * 2
    distances = x0 - left, y0 - top, right - x1, bottom - y1
    return [max(0, round(1000 * x / length)) for x, length in zip(distances, lengths)]
