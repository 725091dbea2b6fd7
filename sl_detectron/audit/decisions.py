"""What a person, or a threshold, decided about suspects: the file between report and correction.

``decisions.json`` holds the class names, where each dataset is, and one entry per decision::

    {"dataset": "voc_2007_trainval", "image_id": "000005", "index": 2,
     "bbox": [164, 10, 252, 145], "given": "chair", "verdict": "wrong", "label": "person"}

``verdict`` is "wrong", "right" or "unsure". ``label`` counts for "wrong" only: the right class, or
null where the box should go.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.formats.voc_xml import class_ids_of
from ..files import write_json
from .files import VERSION, read_json
from .records import LabelAudit

__all__ = ["Decision", "Decisions", "decisions_above", "read_decisions", "write_decisions"]

VERDICTS = ("wrong", "right", "unsure")
# The key under which a source of each format says where its files are.
PATH_KEYS = {"voc": "root", "coco": "json_file"}


@dataclass(frozen=True)
class Decision:
    """The verdict on one annotation.

    Args:
        dataset: name of its dataset
        image_id: of its image
        index: position in the image's annotations, from 0
        bbox: (x0, y0, x1, y1) in pixels, 0-based edges
        given: the class that it has
        verdict, label: see above
    """

    dataset: str
    image_id: str | int
    index: int
    bbox: tuple[float, float, float, float]
    given: str
    verdict: str
    label: str | None


@dataclass(frozen=True)
class Decisions:
    """Decisions about the annotations of one audit.

    Args:
        classes: K names in the order of the class ids
        sources: {dataset name: where its files are}
        decisions: at most one per annotation
    """

    classes: tuple[str, ...]
    sources: dict[str, dict[str, Any]]
    decisions: tuple[Decision, ...]


def decisions_above(audit: LabelAudit, threshold: float) -> Decisions:
    """Call wrong every annotation whose suspicion reaches a threshold, and believe the suggestion.

    Args:
        audit: the ranked list
        threshold: of ``suspicion``, above 0.5: below, the given class is the more probable one

    Raises:
        ValueError: the threshold is not in (0.5, 1]
    """
    if not 0.5 < threshold <= 1:
        raise ValueError(f"the threshold of suspicion must be in (0.5, 1]; got {threshold}")
    decisions = tuple(
        Decision(a.dataset, a.image_id, a.index, a.bbox, a.label, "wrong", a.suggested_label)
        for a in audit.annotations
        if a.suspicion >= threshold
    )
    return Decisions(audit.classes, audit.sources, decisions)


def write_decisions(decisions: Decisions, path: str | os.PathLike) -> None:
    """Write a file that :func:`read_decisions` reads."""
    write_json(Path(path), {"version": VERSION, **asdict(decisions)}, indent=1)


def read_decisions(path: str | os.PathLike) -> Decisions:
    """Read and check a file of decisions, from the report or from :func:`write_decisions`.

    Args:
        path: of the json file

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is not a file of decisions, or an entry is wrong; names it
    """

    def parse(data: dict[str, Any]) -> tuple[Decisions, list[Any]]:
        classes, sources = tuple(map(str, data["classes"])), dict(data["sources"])
        class_ids_of(classes)
        for name, source in sources.items():
            _check_source(name, source)
        return Decisions(classes, sources, ()), list(data["decisions"])

    empty, rows = read_json(path, "file of decisions", "the report saves one", parse)
    decisions = [_decision(row, f"{path}: decisions[{i}]", empty) for i, row in enumerate(rows)]
    counts = Counter((d.dataset, str(d.image_id), d.index) for d in decisions)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two decisions on (dataset, image, index) {twice[0]}")
    return replace(empty, decisions=tuple(decisions))


def _decision(row: Any, where: str, of: Decisions) -> Decision:
    keys = [field.name for field in fields(Decision)]
    if not isinstance(row, dict) or not set(keys) <= row.keys():
        raise ValueError(f"{where} needs the keys {keys}; got {row!r}")
    box, index, datasets = row["bbox"], row["index"], [*of.sources]
    is_box = isinstance(box, list) and [_is_coordinate(x) for x in box] == [True] * 4
    allowed = {
        "dataset": (row["dataset"] in datasets, f"one of {datasets}"),
        "image_id": (_is_image_id(row["image_id"]), "an integer or a plain relative name"),
        "index": (type(index) is int and index >= 0, "an integer from 0"),
        "bbox": (is_box, "four numbers"),
        "given": (row["given"] in of.classes, f"one of {[*of.classes]}"),
        "verdict": (row["verdict"] in VERDICTS, f"one of {VERDICTS}"),
        "label": (row["label"] in (None, *of.classes), f"null or one of {[*of.classes]}"),
    }
    for key, (fits, accepted) in allowed.items():
        if not fits:
            raise ValueError(f"{where}: {key} must be {accepted}; got {row[key]!r}")
    return Decision(**{**{key: row[key] for key in keys}, "bbox": tuple(box)})


def _check_source(name: str, source: Any) -> None:
    """Where the files of a dataset are; the form of one decides which correction reads it."""
    if not isinstance(source, dict) or not isinstance(source.get("format"), str):
        raise ValueError(f"source {name!r} needs a format")
    key = PATH_KEYS.get(source["format"])
    if key and not (isinstance(source.get(key), str) and source[key]):
        raise ValueError(
            f"source {name!r} of format {source['format']!r} needs a path as its {key}"
        )
    if key == "root" and not isinstance(source.get("split"), str):
        raise ValueError(f"source {name!r} of format 'voc' needs the name of its split")


def _is_coordinate(value: Any) -> bool:
    return type(value) in (int, float) and -1e9 < value < 1e9


def _is_image_id(value: Any) -> bool:
    """Image ids name files: none may lead out of its folder."""
    if type(value) is int:
        return True
    if not isinstance(value, str) or "\0" in value:
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts and str(path) == value
