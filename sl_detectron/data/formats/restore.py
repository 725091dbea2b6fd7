"""The clean set again, from a noisy copy and its manifest alone."""

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from ...files import new_folder, refuse_to_overwrite
from .edits import Edit, undo_edits
from .manifest import read_manifest

__all__ = ["DESCRIPTION", "MANIFEST", "OWN_FILES", "PICTURE", "restore_clean"]

MANIFEST = "manifest.jsonl"
DESCRIPTION = "noise.json"
PICTURE = "confusion.png"
# What a noisy copy holds beside the files of its source.
OWN_FILES = (MANIFEST, DESCRIPTION, PICTURE)


def restore_clean(noisy: str | Path, out: str | Path | None = None, progress: bool = False) -> Path:
    """Undo a noisy copy by its manifest: every file gets its clean bytes back.

    Args:
        noisy: folder that an export wrote
        out: new folder for the clean set; None to put it in the place of ``noisy``
        progress: whether to show a progress bar

    Returns:
        the folder of the clean set

    Raises:
        FileNotFoundError: if ``noisy`` has no manifest
        FileExistsError: if ``out`` exists
        ValueError: if a file is not what the export wrote, or ``out`` is inside ``noisy``
    """
    noisy = Path(os.path.realpath(noisy))
    target = noisy if out is None else Path(out)
    if out is not None:
        refuse_to_overwrite(target, noisy)
    edits = _read_edits(noisy, _read_file_name(noisy / DESCRIPTION))
    with new_folder(target, replaces=out is None) as partial:
        own = [str(noisy / name) for name in OWN_FILES]
        shutil.copytree(
            noisy,
            partial,
            symlinks=True,
            # Only at the top: a folder of the set may hold files of these names.
            ignore=lambda folder, names: [n for n in names if os.path.join(folder, n) in own],
            dirs_exist_ok=True,
        )
        for name, file_edits in tqdm(edits.items(), unit="file", disable=not progress):
            try:
                clean = undo_edits((noisy / name).read_bytes(), file_edits)
            except ValueError as error:
                raise ValueError(f"{noisy / name} changed since it was written: {error}") from error
            (partial / name).write_bytes(clean)
    return target


def _read_file_name(path: Path) -> str:
    """Return the name of a COCO copy's annotation file; empty for a VOC copy."""
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
    return file


def _read_edits(noisy: Path, file: str) -> dict[str, list[Edit]]:
    """Return the edits of every changed file of a noisy copy."""
    edits: dict[str, list[Edit]] = defaultdict(list)
    for number, line in enumerate(read_manifest(str(noisy / MANIFEST)), start=1):
        name = file or f"Annotations/{line['image_id']}.xml"
        # A manifest may come from elsewhere: it names images, never a way out of this folder.
        is_here = os.path.realpath(noisy / name) == str(noisy / name)
        if "edits" not in line or not is_here or not (noisy / name).is_file():
            raise ValueError(f"{noisy / MANIFEST} was not written for the files here: {line}")
        try:
            edits[name] += map(Edit.from_json, line["edits"])
        except (AttributeError, TypeError, ValueError) as error:
            where = f"{noisy / MANIFEST}, line {number}"
            raise ValueError(f"{where}: edits must be [[start, old, new], ...]: {error}") from error
    return edits
