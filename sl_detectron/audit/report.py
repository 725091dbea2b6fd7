"""The audit as one HTML file that needs no server and asks nothing of the network.

The page's parts are in ``page/``. Data go in as JSON and reach the document as text only.
"""

import base64
import html
import importlib.resources
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from detectron2.data import detection_utils
from PIL import Image
from tqdm import tqdm

from ..files import strict_json, write_text
from .records import AuditedAnnotation, LabelAudit

__all__ = ["REPORT", "check_crops", "make_crops", "write_report"]

REPORT = "index.html"
NUM_BINS = 40
SUSPECT = 0.5
# What is shown around a box, as a fraction of its longer side: a label is judged in its context.
MARGIN = 0.25
QUALITY = 72
_SCRIPTS = ("model.js", "charts.js", "gallery.js", "main.js")
# Columns of a row on the page that are fields of an annotation.
_FIELDS = (
    *("annotation_id", "image_id", "index", "bbox", "suspicion", "expected_correctness"),
    *("confidence", "last_confidence", "mean_loss", "last_loss", "num_samples"),
)

# A JPEG in base64, its width and height, and the distances of the box from the left, top, right
# and bottom edge, in thousandths of the width or height.
Crop = tuple[str, int, int, list[int]]


def write_report(
    audit: LabelAudit,
    folder: str | os.PathLike,
    num_crops: int = 10_000,
    crop_size: int = 128,
    progress: bool = False,
) -> Path:
    """Write ``index.html`` into a folder, in the place of an older one once it is complete.

    Args:
        audit: the ranked list
        folder: it is made where it is missing
        num_crops: how many annotations the gallery has, the most suspect first; the summary
            counts all
        crop_size: longer side of a crop, in pixels
        progress: whether to show a progress bar

    Returns:
        the path of the page

    Raises:
        ValueError: a number is out of range
    """
    check_crops(num_crops, crop_size)
    path = Path(folder) / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = audit.annotations[:num_crops]
    crops = make_crops(shown, crop_size, progress)
    write_text(path, _page(audit, shown, crops))
    return path


def check_crops(num_crops: int, crop_size: int) -> None:
    """Refuse numbers that :func:`write_report` cannot take."""
    if num_crops < 0:
        raise ValueError(f"the number of crops must be at least 0; got {num_crops}")
    if crop_size < 1:
        raise ValueError(f"the size of a crop must be at least 1 pixel; got {crop_size}")


def make_crops(
    annotations: Sequence[AuditedAnnotation], size: int, progress: bool = False
) -> list[Crop | None]:
    """Crops of annotations, ``size`` pixels long; None for one whose image cannot be read."""
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
    distances = zip((x0 - left, y0 - top, right - x1, bottom - y1), (width, height) * 2)
    inset = [max(0, round(1000 * distance / length)) for distance, length in distances]
    return base64.b64encode(buffer.getvalue()).decode(), *shape, inset


def _page(
    audit: LabelAudit, shown: Sequence[AuditedAnnotation], crops: Sequence[Crop | None]
) -> str:
    parts = {
        "TITLE": html.escape(f"Label audit: {', '.join(audit.sources)}"),
        "STYLE": _part("report.css"),
        "SCRIPT": '"use strict";\n(() => {\n' + "\n".join(map(_part, _SCRIPTS)) + "})();",
        "AUDIT": _json(_page_data(audit, shown)),
        "CROPS": _json(crops),
    }
    return Template(_part("report.html")).substitute(parts)


def _part(name: str) -> str:
    folder = importlib.resources.files(__package__) / "page"
    return (folder / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no "<" can end it or begin a comment."""
    return strict_json(value, separators=(",", ":")).replace("<", "\\u003c")


def _page_data(audit: LabelAudit, shown: Sequence[AuditedAnnotation]) -> dict[str, Any]:
    ids = {name: i for i, name in enumerate(audit.classes)}
    datasets = list(audit.sources)
    rows = [
        [
            *(getattr(a, name) for name in _FIELDS),
            datasets.index(a.dataset),
            ids[a.label],
            ids[a.suggested_label],
            [[ids[name], probability] for name, probability in a.top_labels],
        ]
        for a in shown
    ]
    return {
        "subtitle": ", ".join(datasets),
        # Decisions are about annotations: they outlive a report of more or fewer of them.
        "fingerprint": audit.fingerprint,
        "classes": audit.classes,
        "datasets": datasets,
        "sources": audit.sources,
        "summary": _summary(audit, ids),
        "columns": [*_FIELDS, "dataset", "label", "suggested", "top"],
        "rows": rows,
    }


def _summary(audit: LabelAudit, ids: dict[str, int]) -> dict[str, Any]:
    annotations = audit.annotations
    suspects = [a for a in annotations if a.suspicion > SUSPECT]
    histogram = [[0, 0] for _ in range(NUM_BINS)]
    finite = [a for a in annotations if math.isfinite(a.confidence)]
    for a in finite:
        place = min(NUM_BINS - 1, int(a.confidence / math.e * NUM_BINS))
        histogram[place][a.suspicion > SUSPECT] += 1
    pairs = Counter((ids[a.label], ids[a.suggested_label]) for a in suspects)
    return {
        "num_annotations": len(annotations),
        "num_images": len({(a.dataset, a.image_id) for a in annotations}),
        "num_suspects": len(suspects),
        "num_unseen": audit.num_unseen,
        "mean_confidence": sum(a.confidence for a in finite) / max(len(finite), 1),
        "histogram": histogram,
        "pairs": [[*pair, count] for pair, count in pairs.most_common()],
    }
