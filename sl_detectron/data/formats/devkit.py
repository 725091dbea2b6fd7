"""Copies of VOC devkit folders in which some annotation files change and all else is linked."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.concurrent import process_map

from .changes import Change
from .edits import Edit, apply_edits
from .flaws import Flaws
from .manifest import write_manifest
from .voc_edits import voc_edits
from .voc_xml import parse_voc_xml, zero_based

__all__ = ["FileChanges", "copy_devkit"]

# The changes of one file, whose indices count the objects that a reader took, and the positions of
# these objects among all of the file.
FileChanges = tuple[Sequence[Change], Sequence[int]]
# The name of an object, and its box: XYXY in pixels, 0-based.
NamedBox = tuple[str, list[float]]


def copy_devkit(
    root: Path,
    target: Path,
    changed: Mapping[str, FileChanges],
    class_names: Sequence[str],
    dataset_name: str,
    manifest: str,
    num_workers: int = 1,
    progress: bool = False,
    leave_out: Sequence[str] = (),
) -> None:
    """Copy a devkit folder: image sets, annotations with changes, links to everything else.

    Args:
        root: a devkit folder
        target: an empty folder
        changed: {name in Annotations/: changes}, in the order of the manifest
        class_names: K names in the order of the class ids
        dataset_name: written into every line of the manifest
        manifest: name of the file in ``target`` that lists the changes and their edits
        num_workers: processes that write XML; the result does not depend on it
        progress: whether to show a progress bar
        leave_out: names in root that the copy does not get

    Raises:
        ValueError: a file that changes has a layout that is not understood
    """
    if num_workers < 1:
        raise ValueError(f"the number of workers must be at least 1; got {num_workers}")
    for entry in sorted(root.iterdir()):
        if entry.name == "ImageSets":
            shutil.copytree(entry, target / entry.name)
        elif entry.name != "Annotations" and entry.name not in leave_out:
            (target / entry.name).symlink_to(entry)
    folder = root / "Annotations"
    paths = (Path(parent, f) for parent, _, fs in os.walk(folder, followlinks=True) for f in fs)
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    copy = partial(_copy, source=folder, target=target / "Annotations", class_names=class_names)
    files = names, [changed.get(name, ([], [])) for name in names]
    bar: dict[str, Any] = {"total": len(names), "unit": "file", "disable": not progress}
    if num_workers == 1:
        written = list(tqdm(map(copy, *files), **bar))
    else:
        written = process_map(copy, *files, max_workers=num_workers, chunksize=64, **bar)
    edits = dict(zip(names, written))
    changes = [change for group, _ in changed.values() for change in group]
    groups = [group for name in changed for group in edits[name]]
    write_manifest(target / manifest, changes, class_names, dataset_name, groups)


def _copy(
    name: str, change: FileChanges, source: Path, target: Path, class_names: Sequence[str]
) -> list[list[Edit]]:
    """Copy one file and return for each change its edits."""
    given, positions = change
    content = (source / name).read_bytes()
    changes = [c if c.what == "spurious" else replace(c, index=positions[c.index]) for c in given]
    edits = voc_edits(content, changes, class_names) if changes else []
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(apply_edits(content, (e for group in edits for e in group)))
    if changes:
        expected = _changed(_objects(source / name), changes, class_names)
        if [*_objects(path).values()] != expected:
            raise ValueError(f"{source / name}: its layout is not understood, it cannot be changed")
    return edits


def _objects(path: Path) -> dict[int, NamedBox]:
    """{position in a file: its object} for the objects without a flaw."""
    annotation = parse_voc_xml(path, Flaws(str(path), "skip", quiet=True))
    found = [(obj.name, zero_based(obj.box)) for obj in annotation.objects]
    return dict(zip(annotation.positions, found))


def _changed(
    objects: Mapping[int, NamedBox], changes: Sequence[Change], class_names: Sequence[str]
) -> list[NamedBox]:
    """The objects that a file has to have after changes."""
    left, added = dict(objects), []
    for change in changes:
        if change.what == "spurious":
            added.append((class_names[change.new["category_id"]], _floats(change.new["bbox"])))
        elif change.what == "missing":
            del left[change.index]
        elif change.what == "label":
            left[change.index] = (class_names[change.new], left[change.index][1])
        else:
            left[change.index] = (left[change.index][0], _floats(change.new))
    return [*left.values(), *added]


def _floats(box: Sequence[float]) -> list[float]:
    return [*map(float, box)]
