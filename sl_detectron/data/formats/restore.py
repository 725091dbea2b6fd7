"""The clean set again, from a noisy copy alone."""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...files import new_folder, refuse_to_overwrite
from .manifest import read_manifest
from .voc_edits import Edit, undo_edits

__all__ = ["DESCRIPTION", "MANIFEST", "ORIGINAL", "COPY_FILES", "PICTURE", "restore_clean"]

MANIFEST = "manifest.jsonl"
DESCRIPTION = "noise.json"
PICTURE = "confusion.png"
# The clean file of a COCO copy; a VOC copy holds the edits of its files instead.
ORIGINAL = "original.json"
# What a noisy copy holds beside the files of its source.
COPY_FILES = (MANIFEST, DESCRIPTION, PICTURE, ORIGINAL)


def restore_clean(noisy: str | Path, out: str | Path | None = None, progress: bool = False) -> Path:
    """Make a noisy copy clean: every file gets its clean bytes back.

    Args:
        noisy: folder that an export wrote
        out: new folder for the clean set, to be returned; None to take the place of ``noisy``
        progress: whether to show a progress bar

    Raises:
        FileNotFoundError: ``noisy`` is not a complete copy
        FileExistsError: ``out`` exists
        ValueError: a file is not what the export wrote, or ``out`` is inside ``noisy``
    """
    noisy = Path(os.path.realpath(noisy))
    target = noisy if out is None else Path(out)
    if out is not None:
        refuse_to_overwrite(target, noisy)
    description = _read_description(noisy / DESCRIPTION)
    clean = _clean_coco(noisy, description) if description["file"] else _clean_voc(noisy)
    with new_folder(target, replaces=out is None) as partial:

        def ignore(folder: str, _: list[str]) -> Sequence[str]:
            # Only at the top: a folder of the set may hold files of these names.
            return COPY_FILES if Path(folder) == noisy else ()

        shutil.copytree(noisy, partial, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        for name, content in tqdm(clean, unit="file", disable=not progress):
            (partial / name).write_bytes(content)
    return target


def _read_description(path: Path) -> dict[str, Any]:
    """Return the description by the export; ``file`` names a COCO file, empty for a VOC copy."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}; it is not a complete noisy copy"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    file = description.get("file") if isinstance(description, dict) else None
    if not isinstance(file, str) or file != Path(file).name:
        raise ValueError(f'{path} must say {{"file": a name in its folder, or ""}}; got {file!r}')
    return description


def _clean_coco(noisy: Path, description: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    file, digests = description["file"], description.get("sha256")
    for name in (file, ORIGINAL):
        found = hashlib.sha256(_read(noisy, name)).hexdigest()
        if not isinstance(digests, dict) or found != digests.get(name):
            raise ValueError(f"{noisy / name} changed since it was written: its SHA-256 is {found}")
    yield file, _read(noisy, ORIGINAL)


def _clean_voc(noisy: Path) -> Iterator[tuple[str, bytes]]:
    edits: dict[str, list[Edit]] = defaultdict(list)
    for number, line in enumerate(read_manifest(str(noisy / MANIFEST)), start=1):
        try:
            edits[f"Annotations/{line['image_id']}.xml"] += map(Edit.from_json, line["edits"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            where = f"{noisy / MANIFEST}, line {number}"
            raise ValueError(f"{where}: edits must be [[start, old, new], ...]: {error}") from error
    for name, file_edits in edits.items():
        content = _read(noisy, name)
        try:
            content = undo_edits(content, file_edits)
        except ValueError as error:
            raise ValueError(f"{noisy / name} changed since it was written: {error}") from error
        yield name, content


def _read(noisy: Path, name: str) -> bytes:
    # A copy may come from elsewhere: what it names is in its folder, never a way out of it.
    path = noisy / name
    if os.path.realpath(path) != str(path) or not path.is_file():
        raise ValueError(f"{noisy / MANIFEST} was not written for the files here: no {name}")
    return path.read_bytes()
