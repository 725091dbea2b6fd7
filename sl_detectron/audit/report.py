"""The audit as one HTML file that needs no server and asks nothing of the network.

The page's parts are in ``page/``. Data go in as JSON and reach the document as text only.
"""

import html
import importlib.resources
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from ..files import strict_json, write_text
from .crops import Crop, check_crops, make_crops
from .kinds import KINDS
from .records import AuditedAnnotation, Box, LabelAudit, Suspect, SuspectList
from .suspects import wrong_classes

__all__ = ["REPORT", "write_report"]

REPORT = "index.html"
NUM_BINS = 40
SUSPECT = 0.5
_SCRIPTS = ("model.js", "charts.js", "gallery.js", "main.js")
# Columns of a row on the page that are fields of a suspect, and of what the audit says about the
# class of its annotation.
_FIELDS = ("annotation_id", "image_id", "index", "bbox", "suggested_bbox")
_CLASS_FIELDS = (
    *("expected_correctness", "confidence", "last_confidence", "mean_loss", "last_loss"),
    "num_samples",
)


def write_report(
    audit: LabelAudit,
    folder: str | os.PathLike,
    num_crops: int = 10_000,
    crop_size: int = 128,
    progress: bool = False,
    suspects: SuspectList | None = None,
) -> Path:
    """Write ``index.html`` into a folder, in the place of an older one once it is complete.

    Args:
        audit: the ranked list of labels
        folder: it is made where it is missing
        num_crops: how many suspects the gallery has, the most suspect first; the summary
            counts all
        crop_size: longer side of a crop, in pixels
        progress: whether to show a progress bar
        suspects: of any kinds, which the gallery then shows; None for those of the audit

    Returns:
        the path of the page

    Raises:
        ValueError: a number is out of range
    """
    check_crops(num_crops, crop_size)
    path = Path(folder) / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = wrong_classes(audit) if suspects is None else suspects
    shown = listed.suspects[:num_crops]
    boxes: dict[str, list[Box]] = defaultdict(list)
    for a in audit.annotations:
        boxes[a.file_name].append(a.bbox)
    crops = make_crops(shown, crop_size, progress, boxes)
    write_text(path, _page(audit, listed, shown, crops))
    return path


def _page(
    audit: LabelAudit,
    listed: SuspectList,
    shown: Sequence[Suspect],
    crops: Sequence[Crop | None],
) -> str:
    parts = {
        "TITLE": html.escape(f"Label audit: {', '.join(audit.sources)}"),
        "STYLE": _part("report.css"),
        "SCRIPT": '"use strict";\n(() => {\n' + "\n".join(map(_part, _SCRIPTS)) + "})();",
        "AUDIT": _json(_page_data(audit, listed, shown)),
        "CROPS": _json(crops),
    }
    return Template(_part("report.html")).substitute(parts)


def _part(name: str) -> str:
    folder = importlib.resources.files(__package__) / "page"
    return (folder / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no "<" can end it or begin a comment."""
    return strict_json(value, separators=(",", ":")).replace("<", "\\u003c")


def _page_data(audit: LabelAudit, listed: SuspectList, shown: Sequence[Suspect]) -> dict[str, Any]:
    ids = {name: i for i, name in enumerate(audit.classes)}
    datasets = list(audit.sources)
    by_id = {a.annotation_id: a for a in audit.annotations}
    rows = [
        [
            KINDS.index(s.kind),
            s.score,
            *(getattr(s, name) for name in _FIELDS),
            datasets.index(s.dataset),
            ids.get(s.label),
            ids[s.suggested_label],
            *_about_class(by_id.get(s.annotation_id), ids),
        ]
        for s in shown
    ]
    counts = Counter(s.kind for s in listed.suspects if s.score > SUSPECT)
    return {
        "subtitle": ", ".join(datasets),
        # Decisions are about annotations: they outlive a report of more or fewer of them.
        "fingerprint": audit.fingerprint,
        "classes": audit.classes,
        "datasets": datasets,
        "sources": audit.sources,
        "kinds": KINDS,
        "summary": {
            **_summary(audit, ids),
            "num_listed": len(listed.suspects),
            "suspects_by_kind": [counts[kind] for kind in KINDS],
        },
        "columns": [
            *("kind", "suspicion", *_FIELDS, "dataset", "label", "suggested"),
            *(*_CLASS_FIELDS, "top"),
        ],
        "rows": rows,
    }


def _about_class(audited: AuditedAnnotation | None, ids: dict[str, int]) -> list[Any]:
    """What is known about the class of an annotation; of a missing object nothing."""
    if audited is None:
        return [*([None] * len(_CLASS_FIELDS)), []]
    top = [[ids[name], probability] for name, probability in audited.top_labels]
    return [*(getattr(audited, name) for name in _CLASS_FIELDS), top]


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
