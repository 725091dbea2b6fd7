"""The audit for other tools: cleanlab's object detection issues and FiftyOne's detection sets."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..files import write_json
from .records import AuditedAnnotation, Box, LabelAudit, Suspect, SuspectList

__all__ = ["CLEANLAB_JSON", "read_cleanlab", "write_cleanlab", "write_fiftyone"]

CLEANLAB_JSON = "cleanlab.json"
SUSPECT = 0.5
# How the scores of boxes are called; the first is the name of the other tool.
_CLEANLAB = {"misplaced_box": "badloc", "no_object": "no_object", "duplicate": "duplicate"}
_FIFTYONE = {**_CLEANLAB, "misplaced_box": "mistakenness_loc"}
# EXIF's tag, and those of its values that stand for a picture on its side.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


def write_cleanlab(
    audit: LabelAudit, folder: str | os.PathLike, suspects: SuspectList | None = None
) -> Path:
    """Write ``cleanlab.json``: labels and issues as ``cleanlab.object_detection`` has them.

    Per image ``labels`` holds ``bboxes``, ``labels`` and ``image_name``; ``box_scores`` the label
    quality 1 - suspicion of each box; ``label_quality_scores`` the lowest of all scores of the
    image; ``is_issue`` whether it is below 0.5. As in cleanlab, lower is more suspect.

    With suspects there are also, as far as they have the kind: ``badloc_box_scores``,
    ``no_object_box_scores`` and ``duplicate_box_scores`` of each box, and of each missing object
    ``overlooked_box_scores``, ``overlooked_bboxes`` and ``overlooked_labels``.

    Args:
        audit: the ranked list of labels
        folder: it is made where it is missing
        suspects: of any kinds

    Returns:
        the path of the file, for :func:`read_cleanlab`
    """
    ids = {name: i for i, name in enumerate(audit.classes)}
    images = _images(audit, suspects)
    by_kind = _scores_by_kind(suspects)
    data: dict[str, Any] = {
        "class_names": audit.classes,
        "labels": [
            {
                "image_name": image.file_name,
                "bboxes": [a.bbox for a in image.annotations],
                "labels": [ids[a.label] for a in image.annotations],
            }
            for image in images
        ],
        "box_scores": [[_quality(a.suspicion) for a in image.annotations] for image in images],
    }
    for kind, name in _CLEANLAB.items():
        if kind in by_kind:
            of_kind = by_kind[kind]
            data[f"{name}_box_scores"] = [
                [_quality(of_kind.get(a.annotation_id, 0.0)) for a in image.annotations]
                for image in images
            ]
    if suspects and any(image.missing for image in images):
        missing = [image.missing for image in images]
        data["overlooked_box_scores"] = [[_quality(s.score) for s in of] for of in missing]
        data["overlooked_bboxes"] = [[s.suggested_bbox for s in of] for of in missing]
        data["overlooked_labels"] = [[ids[s.suggested_label] for s in of] for of in missing]
    columns = [values for key, values in data.items() if key.endswith("box_scores")]
    worst = [min((x for of in scores for x in of), default=1.0) for scores in zip(*columns)]
    data |= {"label_quality_scores": worst, "is_issue": [score < SUSPECT for score in worst]}
    return _write(data, Path(folder) / CLEANLAB_JSON)


def _quality(suspicion: float) -> float:
    return round(1 - suspicion, 6)


def read_cleanlab(path: str | os.PathLike) -> dict[str, Any]:
    """Read what :func:`write_cleanlab` wrote, lists as the arrays that cleanlab's functions take.

    Returns:
        N images; ``labels``: N dicts with ``bboxes`` (L, 4), ``labels`` (L,) and ``image_name``;
        ``box_scores`` and those of other kinds: N arrays (L,); of M missing objects
        ``overlooked_bboxes`` (M, 4); ``label_quality_scores`` (N,); ``is_issue`` (N,) bool
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    for label in data["labels"]:
        label["bboxes"] = np.array(label["bboxes"], dtype=float).reshape(-1, 4)
        label["labels"] = np.array(label["labels"], dtype=int)
    for key in (key for key in data if key.endswith("box_scores")):
        data[key] = [np.array(scores, dtype=float) for scores in data[key]]
    if "overlooked_bboxes" in data:
        boxes = data["overlooked_bboxes"]
        data["overlooked_bboxes"] = [np.array(of, dtype=float).reshape(-1, 4) for of in boxes]
        data["overlooked_labels"] = [np.array(of, dtype=int) for of in data["overlooked_labels"]]
    data["label_quality_scores"] = np.array(data["label_quality_scores"])
    data["is_issue"] = np.array(data["is_issue"], dtype=bool)
    return data


def write_fiftyone(
    audit: LabelAudit, folder: str | os.PathLike, suspects: SuspectList | None = None
) -> Path:
    """Write ``labels.json`` and ``data.json``, a ``FiftyOneImageDetectionDataset`` of links.

    Each detection has ``mistakenness``, FiftyOne's name for a score of which higher is more
    suspect, with ``suggested_label`` and the rest as attributes. To load it::

        fiftyone.Dataset.from_dir(
            dataset_type=fiftyone.types.FiftyOneImageDetectionDataset,
            labels_path="fiftyone/labels.json", data_path="fiftyone/data.json",
        )

    With suspects there are also FiftyOne's ``mistakenness_loc`` of a box, and ``possible_spurious``
    for one whose score ``no_object`` is above 0.5; ``duplicate``; and a detection with
    ``possible_missing`` for each missing object whose score ``missing_object`` is above 0.5.

    Boxes are fractions of the image as its EXIF orientation turns it: as FiftyOne shows it, and as
    the detector saw it.

    Args:
        audit: the ranked list of labels
        folder: it is made where it is missing
        suspects: of any kinds

    Returns:
        the path of ``labels.json``

    Raises:
        OSError: an image is missing or cannot be read; names it
    """
    folder = Path(folder)
    by_kind = _scores_by_kind(suspects)
    files, labels = {}, {}
    for image in _images(audit, suspects):
        files[image.key] = os.path.abspath(image.file_name)
        size = _shown_size(image.file_name)
        labels[image.key] = [
            _detection(a.label, a.bbox, size, _about_label(a) | _about_box(a, by_kind))
            for a in image.annotations
        ] + [
            _detection(s.suggested_label, s.suggested_bbox, size,
                       {"possible_missing": True, "missing_object": s.score})
            for s in image.missing
            if s.score > SUSPECT
        ]  # fmt: skip
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


def _detection(
    label: str, bbox: Box | None, size: tuple[int, int], attributes: dict[str, Any]
) -> dict[str, Any]:
    x0, y0, x1, y1 = bbox or (0, 0, 0, 0)
    width, height = size
    return {
        "label": label,
        "bounding_box": [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
        "attributes": attributes,
    }


def _about_label(annotation: AuditedAnnotation) -> dict[str, Any]:
    return {
        "mistakenness": annotation.suspicion,
        "suggested_label": annotation.suggested_label,
        "suggested_probability": annotation.suggested_probability,
        "expected_correctness": annotation.expected_correctness,
        "sigma": annotation.confidence,
        "annotation_index": annotation.index,
    }


def _about_box(
    annotation: AuditedAnnotation, by_kind: dict[str, dict[int, float]]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: by_kind[kind].get(annotation.annotation_id, 0.0)
        for kind, name in _FIFTYONE.items()
        if kind in by_kind
    }
    if "no_object" in found:
        found["possible_spurious"] = found["no_object"] > SUSPECT
    return found


def _scores_by_kind(suspects: SuspectList | None) -> dict[str, dict[int, float]]:
    """{kind: {annotation id: score}}."""
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for s in suspects.suspects if suspects else ():
        scores[s.kind][s.annotation_id] = s.score
    return scores


class _Image(NamedTuple):
    """An image with its ranked annotations, in the order of its list, and missing objects."""

    key: str
    file_name: str
    annotations: list[AuditedAnnotation]
    missing: list[Suspect]


def _images(audit: LabelAudit, suspects: SuspectList | None) -> list[_Image]:
    images: dict[tuple[str, str], _Image] = {}

    def of(row: AuditedAnnotation | Suspect) -> _Image:
        key = row.dataset, str(row.image_id)
        return images.setdefault(key, _Image("/".join(key), row.file_name, [], []))

    for a in sorted(audit.annotations, key=lambda a: (a.dataset, str(a.image_id), a.index)):
        of(a).annotations.append(a)
    for s in suspects.suspects if suspects else ():
        if s.kind == "missing_object":
            of(s).missing.append(s)
    return [*images.values()]


def _write(data: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, data)
    return path
