"""The original set again, from a noisy or a corrected copy alone."""

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
from .edits import Edit, undo_edits
from .manifest import read_manifest

__all__ = [
    "CORRECTION",
    "CORRECTIONS",
    "COPY_FILES",
    "DESCRIPTION",
    "MANIFEST",
    "ORIGINAL",
    "PICTURE",
    "restore_clean",
]

MANIFEST = "manifest.jsonl"
DESCRIPTION = "noise.json"
PICTURE = "confusion.png"
# The clean file of a noisy COCO copy; other copies hold the edits of their files instead.
ORIGINAL = "original.json"
# What a noisy copy holds beside the files of its source.
COPY_FILES = (MANIFEST, DESCRIPTION, PICTURE, ORIGINAL)
# What a corrected copy holds beside them, in the place of manifest and description.
CORRECTIONS = "corrections.jsonl"
CORRECTION = "correction.json"


def restore_clean(noisy: str | Path, out: str | Path | None = None, progress: bool = False) -> Path:
    """Make a noisy or a corrected copy what its source was: every file gets its bytes back.

    Args:
        noisy: folder that an export of noise or a correction wrote
        out: new folder for the original set, to be returned; None to take the place of ``noisy``
        progress: whether to show a progress bar

    Raises:
        FileNotFoundError: ``noisy`` is not a complete copy
        FileExistsError: ``out`` exists
        ValueError: a file is not what was written, or ``out`` is inside ``noisy``
    """
    noisy = Path(os.path.realpath(noisy))
    target = noisy if out is None else Path(out)
    if out is not None:
        refuse_to_overwrite(target, noisy)
    # A noisy copy of a corrected one has a link to the description of the latter.
    corrected = (noisy / CORRECTION).is_file() and not (noisy / DESCRIPTION).is_file()
    description = _read_description(noisy / (CORRECTION if corrected else DESCRIPTION))
    if description["file"] and not corrected:
        clean = _clean_coco(noisy, description)
    else:
        clean = _undone(noisy, CORRECTIONS if corrected else MANIFEST, description)
    left_out = (CORRECTION, CORRECTIONS) if corrected else COPY_FILES
    with new_folder(target, replaces=out is None) as partial:

        def ignore(folder: str, _: list[str]) -> Sequence[str]:
            # Only at the top: a folder of the set may hold files of these names.
            return left_out if Path(folder) == noisy else ()

        shutil.copytree(noisy, partial, symlinks=True, ignore=ignore, dirs_exist_ok=True)
        for name, content in tqdm(clean, unit="file", disable=not progress):
            (partial / name).write_bytes(content)
    return target


def _read_description(path: Path) -> dict[str, Any]:
    """Return the description by the export; ``file`` names a COCO file, empty for a VOC copy."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {path.name}; it is not a complete noisy copy, nor one that "
            "sl-audit --apply corrected"
        )
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    file = description.get("file") if isinstance(description, dict) else None
    if not isinstance(file, str) or file != Path(file).name:
        raise ValueError(f'{path} must hold {{"file": a name in its folder, or ""}}; got {file!r}')
    return description


def _clean_coco(noisy: Path, description: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    file, digests = description["file"], description.get("sha256")
    for name in (file, ORIGINAL):
        found = hashlib.sha256(_read(noisy, name)).hexdigest()
        if not isinstance(digests, dict) or found != digests.get(name):
            raise ValueError(f"{noisy / name} changed since it was written: its SHA-256 is {found}")
    yield file, _read(noisy, ORIGINAL)


def _undone(copy: Path, manifest: str, description: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    edits: dict[str, list[Edit]] = defaultdict(list)
    for number, line in enumerate(read_manifest(str(copy / manifest)), start=1):
        name = description["file"] or f"Annotations/{line['image_id']}.xml"
        try:
            edits[name] += map(Edit.from_json, line["edits"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            where = f"{copy / manifest}, line {number}"
            raise ValueError(f"{where}: edits must be [[start, old, new], ...]: {error}") from error
    digests = description.get("sha256") or {}
    for name, file_edits in edits.items():
        content = _read(copy, name)
        try:
            # An annotation that is gone leaves nothing to compare; a noisy VOC copy has no digests.
            found = hashlib.sha256(content).hexdigest()
            if isinstance(digests, dict) and digests.get(name, found) != found:
                raise ValueError(f"its SHA-256 is {found}")
            content = undo_edits(content, file_edits)
        except ValueError as error:
            raise ValueError(f"{copy / name} changed since it was written: {error}") from error
        yield name, content


def _read(noisy: Path, name: str) -> bytes:
    # A copy may come from elsewhere: what it names is in its folder, never a way out of it.
    path = noisy / name
    if os.path.realpath(path) != str(path) or not path.is_file():
        raise ValueError(f"the manifest in {noisy} was not written for its files: no {name}")
    return path.read_bytes()
