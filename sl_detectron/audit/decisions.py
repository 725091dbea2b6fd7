"""What a person, or a threshold, decided about suspects: the file between report and correction.

``decisions.json`` holds the class names, where each dataset is, and one entry per decision::

    {"dataset": "voc_2007_trainval", "image_id": "000005", "kind": "wrong_class", "index": 2,
     "bbox": [164, 10, 252, 145], "given": "chair", "verdict": "wrong", "label": "person",
     "box": null}

``verdict`` is "wrong", "right" or "unsure" of the annotation, whatever it is suspected of. The
last two keys count for "wrong" only. ``label`` is the right class, or null where the box should go;
``box`` is where the box should be, or null where it stays. A missing object has the index -1 and
null for bbox and given; its box is where it is, whatever the verdict. An entry without kind and box
is of the kind ``wrong_class``.
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..data.formats.voc_xml import class_ids_of
from ..files import write_json
from .files import VERSION, read_json
from .kinds import KINDS
from .records import Box, LabelAudit, Suspect, SuspectList
from .suspects import wrong_classes

__all__ = [
    "Decision",
    "Decisions",
    "check_threshold",
    "decisions_above",
    "read_decisions",
    "write_decisions",
]

VERDICTS = ("wrong", "right", "unsure")
# The key under which a source of each format says where its files are.
PATH_KEYS = {"voc": "root", "coco": "json_file"}
_AREA = "four numbers x0 < x1, y0 < y1"


@dataclass(frozen=True)
class Decision:
    """The verdict on one suspect.

    Args:
        dataset: name of its dataset
        image_id: of its image
        index: position in the image's annotations, from 0; -1 for a missing object
        bbox: (x0, y0, x1, y1) in pixels, 0-based edges, as annotated; None for a missing object
        given: the class that it has; None for a missing object
        verdict, label, box: see above
        kind: one of :data:`~sl_detectron.audit.kinds.KINDS`
    """

    dataset: str
    image_id: str | int
    index: int
    bbox: Box | None
    given: str | None
    verdict: str
    label: str | None
    box: Box | None = None
    kind: str = "wrong_class"


@dataclass(frozen=True)
class Decisions:
    """Decisions about the annotations of one audit.

    Args:
        classes: K names in the order of the class ids
        sources: {dataset name: where its files are}
        decisions: at most one per suspect
    """

    classes: tuple[str, ...]
    sources: dict[str, dict[str, Any]]
    decisions: tuple[Decision, ...]


def check_threshold(threshold: float, of_classes: bool) -> None:
    """Refuse a threshold that :func:`decisions_above` cannot take.

    Args:
        threshold: of the score
        of_classes: whether wrong classes are among the suspects
    """
    least = 0.5 if of_classes else 0
    if not least < threshold <= 1:
        raise ValueError(f"the threshold of suspicion must be in ({least}, 1]; got {threshold}")


def decisions_above(audit: LabelAudit | SuspectList, threshold: float) -> Decisions:
    """Call wrong every suspect whose score reaches a threshold, and believe the suggestion.

    Args:
        audit: the ranked list, of wrong classes or of any kinds
        threshold: of the score; where there are wrong classes above 0.5: below, the given class is
            the more probable one

    Raises:
        ValueError: the threshold is not in (0.5, 1], or not in (0, 1] without wrong classes
    """
    check_threshold(threshold, isinstance(audit, LabelAudit))
    listed = wrong_classes(audit) if isinstance(audit, LabelAudit) else audit
    check_threshold(threshold, any(s.kind == "wrong_class" for s in listed.suspects))
    chosen = (_accepted(s) for s in listed.suspects if s.score >= threshold)
    return Decisions(listed.classes, listed.sources, tuple(chosen))


def _accepted(suspect: Suspect) -> Decision:
    goes = suspect.kind in ("no_object", "duplicate")
    moves = suspect.kind in ("misplaced_box", "missing_object")
    return Decision(
        *(suspect.dataset, suspect.image_id, suspect.index, suspect.bbox, suspect.label or None),
        "wrong",
        label=None if goes else suspect.suggested_label,
        box=suspect.suggested_bbox if moves else None,
        kind=suspect.kind,
    )


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
    # Of missing objects there are several in an image.
    counts = Counter(
        (d.dataset, str(d.image_id), d.index, d.kind, d.box if d.index < 0 else None)
        for d in decisions
    )
    twice = [key[:4] for key, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two decisions on (dataset, image, index, kind) {twice[0]}")
    return replace(empty, decisions=tuple(decisions))


def _decision(row: Any, where: str, of: Decisions) -> Decision:
    keys = [field.name for field in fields(Decision)]
    older = {"box": None, "kind": "wrong_class"}
    if not isinstance(row, dict) or not {*keys} - {*older} <= row.keys():
        raise ValueError(f"{where} needs the keys {keys}; got {row!r}")
    row = {**older, **row}
    is_added, datasets, classes = row["kind"] == "missing_object", [*of.sources], [*of.classes]
    index, label = row["index"], row["label"]
    allowed = {
        "dataset": (row["dataset"] in datasets, f"one of {datasets}"),
        "kind": (row["kind"] in KINDS, f"one of {KINDS}"),
        "image_id": (_is_image_id(row["image_id"]), "an integer or a plain relative name"),
        "index": (type(index) is int and index >= 0, "an integer from 0"),
        "bbox": (_is_box(row["bbox"]), "four numbers"),
        "given": (row["given"] in classes, f"one of {classes}"),
        "verdict": (row["verdict"] in VERDICTS, f"one of {VERDICTS}"),
        "label": (label in (None, *classes), f"null or one of {classes}"),
        "box": (row["box"] is None or _has_area(row["box"]), f"null or {_AREA}"),
    }
    if is_added:
        nothing = {"index": -1, "bbox": None, "given": None}
        of_missing = "for a missing object"
        allowed |= {k: (row[k] == v, f"{v} {of_missing}") for k, v in nothing.items()}
        allowed["box"] = (_has_area(row["box"]), f"{_AREA} {of_missing}")
        if row["verdict"] == "wrong":
            allowed["label"] = (label in classes, f"one of {classes} {of_missing}")
    for key, (fits, accepted) in allowed.items():
        if not fits:
            raise ValueError(f"{where}: {key} must be {accepted}; got {row[key]!r}")
    boxes = {key: row[key] and tuple(row[key]) for key in ("bbox", "box")}
    return Decision(**{**{key: row[key] for key in keys}, **boxes})


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


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and [_is_coordinate(x) for x in value] == [True] * 4


def _has_area(value: Any) -> bool:
    return _is_box(value) and value[0] < value[2] and value[1] < value[3]


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
