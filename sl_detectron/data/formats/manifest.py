"""Manifests: label noise as a JSON-lines file that any project can train on.

One line is one change::

    {"dataset": "voc_2007_trainval", "image_id": "000005", "annotation": 2, "what": "label",
     "old": "chair", "new": "person"}

A line with "what" "clean" says that noise left an image alone by intent, as a clean seed::

    {"dataset": "voc_2007_trainval", "image_id": "000007", "annotation": 0, "what": "clean",
     "old": null, "new": null, "edits": []}

Classes go by name, so that the order of a project's class list does not matter; boxes are in the
record's own mode (VOC: 0-based XYXY, COCO: XYWH). Lines are sorted by image id and annotation;
the manifests of several datasets can be concatenated. Training needs no further keys.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from .changes import CHANGES, Change
from .edits import Edit

__all__ = [
    "CLEAN",
    "add_clean_images",
    "changes_from_manifest",
    "manifest_lines",
    "read_manifest",
    "write_manifest",
]

# No change: what a line is about.
CLEAN = "clean"

Line = dict[str, Any]
_KEYS = ("dataset", "image_id", "annotation", "what", "old", "new")


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    return numbers and len(value) == 4 and all(map(math.isfinite, value))


def _is_annotation(value: Any) -> bool:
    is_object = isinstance(value, dict) and value.keys() == {"category", "bbox"}
    return is_object and isinstance(value["category"], str) and _is_box(value["bbox"])


# What each value of a line must be: a check, and its words.
_Rule = tuple[Callable[[Any], bool], str]
_NAME: _Rule = (lambda value: isinstance(value, str), "a string")
_BOX: _Rule = (_is_box, "four finite numbers")
_NONE: _Rule = (lambda value: value is None, "null")
_ANNOTATION: _Rule = (_is_annotation, '{"category": name, "bbox": four finite numbers}')
_IMAGE_ID: _Rule = (lambda value: type(value) in (str, int), "a string or an integer")
_INDEX: _Rule = (lambda value: type(value) is int and value >= 0, "an integer of at least 0")
_COMMON = {"dataset": _NAME, "image_id": _IMAGE_ID, "annotation": _INDEX}
_VALUES = {
    "label": {**_COMMON, "old": _NAME, "new": _NAME},
    "box": {**_COMMON, "old": _BOX, "new": _BOX},
    "missing": {**_COMMON, "old": _ANNOTATION, "new": _NONE},
    "spurious": {**_COMMON, "old": _NONE, "new": _ANNOTATION},
    CLEAN: {**_COMMON, "old": _NONE, "new": _NONE},
}


def manifest_lines(
    changes: Iterable[Change], class_names: Sequence[str], dataset_name: str
) -> Iterator[Line]:
    """Yield the manifest's lines, each a dict for ``json.dumps``.

    Example:
        >>> line = next(manifest_lines([Change("7", 0, "label", 1, 0)], ["cat", "dog"], "pets"))
        >>> line["what"], line["old"], line["new"]
        ('label', 'dog', 'cat')
    """
    for change in changes:
        values = (dataset_name, change.image_id, change.index, change.what)
        named = (_translate(v, class_names, "category") for v in (change.old, change.new))
        yield dict(zip(_KEYS, (*values, *named)))


def write_manifest(
    path: Path,
    changes: Iterable[Change],
    class_names: Sequence[str],
    dataset_name: str,
    edits: Iterable[Sequence[Edit]] | None = None,
) -> None:
    """Write :func:`manifest_lines`, each with the byte edits that its change took, if given."""
    lines = manifest_lines(changes, class_names, dataset_name)
    if edits is not None:
        groups = ([edit.to_json() for edit in group] for group in edits)
        lines = ({**line, "edits": group} for line, group in zip(lines, groups))
    with path.open("x", encoding="ascii", newline="\n") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)


def add_clean_images(path: Path, image_ids: Iterable[str | int], dataset_name: str) -> None:
    """Add to a manifest the images that noise left alone by intent, after its changes."""
    with path.open("a", encoding="ascii", newline="\n") as f:
        for image_id in sorted(image_ids, key=str):
            line = dict(zip(_KEYS, (dataset_name, image_id, 0, CLEAN, None, None)))
            f.write(json.dumps({**line, "edits": []}) + "\n")


def read_manifest(path: str) -> list[Line]:
    """Read and check a manifest.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: a line is not a change; names file and line
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"no manifest at {path}; sl-inject-noise writes one")
    lines = []
    # Undecodable bytes become what no JSON string of ours holds, and are found by line.
    with PathManager.open(path, encoding="utf-8", errors="replace") as f:
        for number, text in enumerate(f, start=1):
            try:
                lines.append(_parse(text))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return lines


def _parse(text: str) -> Line:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    missing = [k for k in _KEYS if k not in line] if isinstance(line, dict) else _KEYS
    if missing:
        raise ValueError(f"a change needs the keys {list(missing)}")
    if line["what"] not in (*CHANGES, CLEAN):
        raise ValueError(f"what must be one of {(*CHANGES, CLEAN)}; got {line['what']!r}")
    for key, (fits, expected) in _VALUES[line["what"]].items():
        if not fits(line[key]):
            raise ValueError(f"{key} must be {expected}; got {line[key]!r}")
    return line


def changes_from_manifest(
    lines: Iterable[Line], class_names: Sequence[str], dataset_name: str
) -> list[Change]:
    """The changes of one dataset, from the lines of several.

    Raises:
        ValueError: a line names a class outside the list
    """
    ids = {name: i for i, name in enumerate(class_names)}
    changes = []
    for line in lines:
        if line["dataset"] != dataset_name or line["what"] == CLEAN:
            continue
        try:
            old, new = (_translate(line[key], ids, "category_id") for key in ("old", "new"))
        except KeyError as error:
            raise ValueError(f"{line}: {error} is not one of {list(class_names)}") from error
        changes.append(Change(line["image_id"], line["annotation"], line["what"], old, new))
    return changes


def _translate(value: Any, classes: Any, key: str) -> Any:
    """Put ``classes[c]`` in the place of a class c; under ``key`` where it has a box beside it."""
    if isinstance(value, dict):
        (old,) = value.keys() - {"bbox"}
        return {key: classes[value[old]], "bbox": value["bbox"]}
    return classes[value] if isinstance(value, int | str) else value
