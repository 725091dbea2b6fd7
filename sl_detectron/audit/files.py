"""``label_audit.json`` and ``label_audit.csv``: the ranked list as files.

The json holds everything and is read back; the csv is for spreadsheets. In both, higher
``suspicion`` is more suspect and the most suspect annotation comes first. A number that is not
finite is null in the json, which has no word for it, and an empty cell in the csv.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..files import finite, replacing, strict_json
from .records import AuditedAnnotation, LabelAudit

__all__ = ["AUDIT_JSON", "read_audit", "read_json", "write_audit", "write_list"]

AUDIT_JSON = "label_audit.json"
# Of the json files of an audit and of decisions.
VERSION = 1

T = TypeVar("T")
_NAMES = [f.name for f in fields(AuditedAnnotation)]


def write_audit(audit: LabelAudit, folder: str | os.PathLike) -> None:
    """Write both files into a folder, in the place of older ones.

    Args:
        audit: the ranked list
        folder: it is made where it is missing
    """
    head: dict[str, Any] = {
        "score": "suspicion, in [0, 1]; higher is more suspect",
        "classes": audit.classes,
        "sources": audit.sources,
        "num_unseen": audit.num_unseen,
        "fingerprint": audit.fingerprint,
    }
    # One at a time: as dicts, a million annotations would take gigabytes.
    rows = ({name: getattr(a, name) for name in _NAMES} for a in audit.annotations)
    columns = [n for n in _NAMES if n not in ("bbox", "top_labels")]
    write_list(Path(folder, AUDIT_JSON), head, "annotations", rows, columns, {"bbox": ""})


def write_list(
    path: Path,
    head: dict[str, Any],
    name: str,
    rows: Iterable[dict[str, Any]],
    columns: Sequence[str],
    boxes: dict[str, str],
) -> None:
    """Write a ranked list as ``path`` and, beside it, as csv, into a folder that may be missing.

    Args:
        path: of the json
        head: what stands before the rows in the json
        name: of the rows in the json
        rows: most suspect first
        columns: keys of the rows that the csv has, after their rank
        boxes: {key of a box or None in the rows: beginning of the names of its columns, last}
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    body = strict_json({"version": VERSION, **head}, indent=1)[:-2]
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    edges = [f"{start}{x}" for start in boxes.values() for x in ("x0", "y0", "x1", "y1")]
    with (
        replacing(path) as partial,
        replacing(path.with_suffix(".csv")) as partial_csv,
        open(partial, "w", encoding="utf-8") as file,
        open(partial_csv, "w", encoding="utf-8", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow(["rank", *columns, *edges])
        file.write(f'{body},\n "{name}": [')
        rank = 0
        for rank, given in enumerate(rows, start=1):
            row = finite(given)
            # One row a line: such a file can be read, compared and cut by line.
            file.write((",\n" if rank > 1 else "\n") + encode(row))
            corners = [x for key in boxes for x in row[key] or (None,) * 4]
            writer.writerow([rank, *(row[column] for column in columns), *corners])
        file.write("\n]}\n" if rank else "\n\n]}\n")


def read_audit(path: str | os.PathLike) -> LabelAudit:
    """Read what :func:`write_audit` wrote; null as nan.

    Args:
        path: of the json file

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is not an audit
    """

    def parse(data: dict[str, Any]) -> LabelAudit:
        annotations = tuple(_annotation(row) for row in data["annotations"])
        numbers = int(data["num_unseen"]), int(data["fingerprint"])
        return LabelAudit(tuple(data["classes"]), data["sources"], annotations, *numbers)

    return read_json(path, "label audit", "sl-audit makes one", parse)


def read_json(
    path: str | os.PathLike, what: str, remedy: str, parse: Callable[[dict[str, Any]], T]
) -> T:
    """What ``parse`` makes of a file of ours; an error names the file and ``what`` it is."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} {path}; {remedy}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']!r} is not {VERSION}")
        return parse(data)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a {what}: {error!r}") from error


def _annotation(row: dict[str, Any]) -> AuditedAnnotation:
    row = {key: math.nan if value is None else value for key, value in row.items()}
    top_labels = tuple((str(n), math.nan if p is None else float(p)) for n, p in row["top_labels"])
    return AuditedAnnotation(**{**row, "bbox": tuple(row["bbox"]), "top_labels": top_labels})
