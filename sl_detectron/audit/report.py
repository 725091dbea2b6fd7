"""The audit as one HTML file that needs no server and asks nothing of the network.

The page's parts are in ``page/``. Data go in as JSON and reach the document as text only.
"""

import html
import importlib.resources
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import strict_json, write_text
from .crops import Crop, make_crops
from .records import AuditedAnnotation, LabelAudit

__all__ = ["REPORT", "check_crops", "write_report"]

REPORT = "index.html"
NUM_BINS = 40
SUSPECT = 0.5
_SCRIPTS = ("model.js", "charts.js", "gallery.js", "main.js")
# Columns of a row on the page that are fields of an annotation.
_FIELDS = (
    *("annotation_id", "image_id", "index", "bbox", "suspicion", "expected_correctness"),
    *("confidence", "last_confidence", "mean_loss", "last_loss", "num_samples"),
)


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
    """Refuse numbers that :func:`write_report` cannot take.

    Raises:
        ValueError: a number is out of range
    """
    if num_crops < 0:
        raise ValueError(f"the number of crops must be at least 0; got {num_crops}")
    if crop_size < 1:
        raise ValueError(f"the size of a crop must be at least 1 pixel; got {crop_size}")


def _page(
    audit: LabelAudit, shown: Sequence[AuditedAnnotation], crops: Sequence[Crop | None]
) -> str:
    parts = {
        "TITLE": html.escape(f"Label audit: {', '.join(audit.sources)}"),
        "STYLE": _part("report.css"),
        "SCRIPT": '"use strict";\n(() => {\n' + "\n".join(map(_part, _SCRIPTS)) + "})();",
        "AUDIT": _json(_page_data(audit, shown)),
        "CROPS": _json([crop and [crop.jpeg, *crop[1:3], crop.inset] for crop in crops]),
    }
    # Split first: a value that holds another marker must not be filled in again.
    pieces = _part("report.html").split("@")
    return "".join(parts.get(piece, piece) if i % 2 else piece for i, piece in enumerate(pieces))


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
