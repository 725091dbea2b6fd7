"""Copies of VOC devkit folders in which some annotation files change and all else is linked."""

import functools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .changes import Change
from .edits import Edit, apply_edits
from .voc_edits import voc_edits
from .voc_xml import parse_voc_xml, zero_based

__all__ = ["FileChanges", "LoadedObject", "link_devkit", "loaded_objects", "write_annotations"]

# Name and box (XYXY in pixels, 0-based) of an object as training reads it.
LoadedObject = tuple[str, list[float]]
# The changes of one file, and every object that shall load from it afterwards.
FileChanges = tuple[Sequence[Change], list[LoadedObject]]


def link_devkit(root: Path, target: Path, leave_out: Sequence[str] = ()) -> None:
    """Copy ImageSets/ and link everything else but Annotations/.

    Args:
        root: a devkit folder
        target: an empty folder
        leave_out: names in root that the copy does not get
    """
    for entry in sorted(root.iterdir()):
        if entry.name == "ImageSets":
            shutil.copytree(entry, target / entry.name)
        elif entry.name != "Annotations" and entry.name not in leave_out:
            (target / entry.name).symlink_to(entry)


def write_annotations(
    root: Path,
    target: Path,
    changed: Mapping[str, FileChanges],
    class_names: Sequence[str],
    run: Callable[..., Iterable[Any]] = map,
    progress: bool = False,
) -> dict[str, list[list[Edit]]]:
    """Write every annotation file of a devkit folder, those that change by edits of their bytes.

    Args:
        root: a devkit folder
        target: the copy
        changed: {name in Annotations/: changes}
        class_names: K names in the order of the class ids
        run: the built-in ``map`` or that of a pool
        progress: whether to show a progress bar

    Returns:
        {name: for each change its edits}, for all files

    Raises:
        ValueError: a file that changes has a layout that is not understood
    """
    folder = root / "Annotations"
    names = _files(folder)
    write = functools.partial(
        _write, source=folder, target=target / "Annotations", class_names=class_names
    )
    written = run(write, names, [changed.get(name, ([], [])) for name in names])
    bar = tqdm(written, total=len(names), unit="file", disable=not progress)
    return {name: groups for groups, name in zip(bar, names)}


def loaded_objects(path: Path) -> list[LoadedObject]:
    """Return every object of an annotation file, as training will read it."""
    return [(obj.name, zero_based(obj.box)) for obj in parse_voc_xml(path).objects]


def _files(folder: Path) -> list[str]:
    """Return the path of every file in the folder, relative to it."""
    walk = os.walk(folder, followlinks=True)
    paths = (Path(parent, name) for parent, _, names in walk for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _write(
    name: str, change: FileChanges, source: Path, target: Path, class_names: Sequence[str]
) -> list[list[Edit]]:
    changes, objects = change
    content = (source / name).read_bytes()
    edits = voc_edits(content, changes, class_names) if changes else []
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_bytes(apply_edits(content, (e for group in edits for e in group)))
    if changes and loaded_objects(target / name) != objects:
        raise ValueError(f"{source / name}: its layout is not understood, it cannot be changed")
    return edits
