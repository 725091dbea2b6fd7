"""The audit for other tools: cleanlab's object detection issues and FiftyOne's detection sets."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_json
from .records import AuditedAnnotation, LabelAudit

__all__ = ["CLEANLAB_JSON", "read_cleanlab", "write_cleanlab", "write_fiftyone"]

CLEANLAB_JSON = "cleanlab.json"
SUSPECT = 0.5
# EXIF's tag, and those of its values that stand for a picture on its side.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


def write_cleanlab(audit: LabelAudit, folder: str | os.PathLike) -> Path:
    """Write ``cleanlab.json``: labels and issues as ``cleanlab.object_detection`` has them.

    Per image ``labels`` holds ``bboxes``, ``labels`` and ``image_name``; ``box_scores`` the label
    quality 1 - suspicion of each box; ``label_quality_scores`` the lowest of them; ``is_issue``
    whether it is below 0.5. As in cleanlab, lower is more suspect.

    Args:
        audit: the ranked list
        folder: it is made where it is missing

    Returns:
        the path of the file, for :func:`read_cleanlab`
    """
    ids = {name: i for i, name in enumerate(audit.classes)}
    images = _images(audit)
    box_scores = [[round(1 - a.suspicion, 6) for a in image] for image in images]
    worst = [min(scores) for scores in box_scores]
    data = {
        "class_names": audit.classes,
        "labels": [
            {
                "image_name": image[0].file_name,
                "bboxes": [a.bbox for a in image],
                "labels": [ids[a.label] for a in image],
            }
            for image in images
        ],
        "box_scores": box_scores,
        "label_quality_scores": worst,
        "is_issue": [score < SUSPECT for score in worst],
    }
    return _write(data, Path(folder) / CLEANLAB_JSON)


def read_cleanlab(path: str | os.PathLike) -> dict[str, Any]:
    """Read what :func:`write_cleanlab` wrote, lists as the arrays that cleanlab's functions take.

    Returns:
        N images; ``labels``: N dicts with ``bboxes`` (L, 4), ``labels`` (L,) and ``image_name``;
        ``box_scores``: N arrays (L,); ``label_quality_scores`` (N,); ``is_issue`` (N,) bool
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    for label in data["labels"]:
        label["bboxes"] = np.array(label["bboxes"], dtype=float).reshape(-1, 4)
        label["labels"] = np.array(label["labels"], dtype=int)
    data["box_scores"] = [np.array(scores) for scores in data["box_scores"]]
    data["label_quality_scores"] = np.array(data["label_quality_scores"])
    data["is_issue"] = np.array(data["is_issue"], dtype=bool)
    return data


def write_fiftyone(audit: LabelAudit, folder: str | os.PathLike) -> Path:
    """Write ``labels.json`` and ``data.json``, a ``FiftyOneImageDetectionDataset`` of links.

    Each detection has ``mistakenness``, FiftyOne's name for a score of which higher is more
    suspect, with ``suggested_label`` and the rest as attributes. To load it::

        fiftyone.Dataset.from_dir(
            dataset_type=fiftyone.types.FiftyOneImageDetectionDataset,
            labels_path="fiftyone/labels.json", data_path="fiftyone/data.json",
        )

    Boxes are fractions of the image as its EXIF orientation turns it: as FiftyOne shows it, and as
    the detector saw it.

    Args:
        audit: the ranked list
        folder: it is made where it is missing

    Returns:
        the path of ``labels.json``

    Raises:
        OSError: an image is missing or cannot be read; names it
    """
    folder = Path(folder)
    files, labels = {}, {}
    for image in _images(audit):
        key = f"{image[0].dataset}/{image[0].image_id}"
        files[key] = os.path.abspath(image[0].file_name)
        size = _shown_size(image[0].file_name)
        labels[key] = [_detection(a, *size) for a in image]
    _write(files, folder / "data.json")
    return _write({"classes": audit.classes, "labels": labels}, folder / "labels.json")


def _shown_size(file_name: str) -> tuple[int, int]:
    """Width and height in pixels once the EXIF orientation is applied."""
    try:
        with Image.open(file_name) as image:
            width, height = image.size
            on_its_side = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except FileNotFoundError:
        raise FileNotFoundError(
            f"FiftyOne's boxes are fractions of the image, and there is no image {file_name!r}"
        ) from None
    except (OSError, SyntaxError) as error:
        raise OSError(f"image {file_name!r} cannot be read: {error}") from error
    return (height, width) if on_its_side else (width, height)


def _detection(annotation: AuditedAnnotation, width: int, height: int) -> dict[str, Any]:
    x0, y0, x1, y1 = annotation.bbox
    return {
        "label": annotation.label,
        "bounding_box": [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
        "attributes": {
            "mistakenness": annotation.suspicion,
            "suggested_label": annotation.suggested_label,
            "suggested_probability": annotation.suggested_probability,
            "expected_correctness": annotation.expected_correctness,
            "sigma": annotation.confidence,
            "annotation_index": annotation.index,
        },
    }


def _images(audit: LabelAudit) -> list[list[AuditedAnnotation]]:
    """The ranked annotations of every image, in the order of the image's own list."""
    images = defaultdict(list)
    for a in sorted(audit.annotations, key=lambda a: (a.dataset, str(a.image_id), a.index)):
        images[a.dataset, a.image_id].append(a)
    return [*images.values()]


def _write(data: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, data)
    return path
