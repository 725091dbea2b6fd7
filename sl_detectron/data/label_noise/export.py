"""Noisy copies of data sets on disk, and back.

A copy holds the annotation files with noise, ``manifest.jsonl`` (one change per line, see
:mod:`sl_detectron.data.noise_manifest`, with the byte edits that undo it), ``noise.json`` (how it
was made) and ``confusion.png``. It appears under its name only when it is complete.
"""

import functools
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..voc import load_voc_dataset
from .changes import Change
from .coco import CocoFile
from .edits import Edit, apply_edits, undo_edits
from .folder import complete_or_nothing, refuse_to_overwrite
from .injection import inject
from .manifest import manifest_lines, read_manifest
from .plot import plot_confusion
from .stats import NoiseStatistics, noise_statistics
from .types import Noise
from .voc import voc_edits

__all__ = ["export_noisy_voc", "export_noisy_coco", "restore_clean", "MANIFEST", "DESCRIPTION"]

MANIFEST = "manifest.jsonl"
DESCRIPTION = "noise.json"
PICTURE = "confusion.png"

Changes = list[Change]


def export_noisy_voc(
    root: str | Path,
    split: str,
    out: str | Path,
    noises: Sequence[Noise],
    class_names: Sequence[str],
    dataset_name: str,
    num_workers: int = 1,
    progress: bool = False,
) -> NoiseStatistics:
    """Write a noisy copy of a VOC devkit folder: XML with noise, image sets, links to the rest.

    Annotations outside the split are copied as they are.

    Args:
        root: holds Annotations/, ImageSets/ and JPEGImages/
        split: the image set that gets noise, e.g. "trainval"
        out: the new folder, in root's layout
        noises: for :func:`~sl_detectron.data.label_noise.inject`
        class_names: K names
        dataset_name: the name that training will use; part of every annotation's hash
        num_workers: processes that write XML; the result does not depend on it
        progress: whether to show a progress bar

    Returns:
        what the noise did

    Raises:
        FileExistsError: if ``out`` exists
        ValueError: if an annotation or a noise is wrong
    """
    root, out = Path(root).resolve(), Path(out)
    refuse_to_overwrite(out)
    records = load_voc_dataset(root, split, class_names, require_images=False)
    _, changes = inject(records, noises, len(class_names), dataset_name)
    statistics = noise_statistics(records, changes, len(class_names))
    by_image = _by_image(changes)
    with complete_or_nothing(out) as partial, _pool(num_workers) as run:
        _link_devkit(root, partial)
        folder = root / "Annotations"
        names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.xml"))
        write = functools.partial(
            _write_voc_file, source=folder, target=partial / "Annotations", class_names=class_names
        )
        image_ids = [name.removesuffix(".xml") for name in names]
        written = run(write, names, [by_image.get(image_id, []) for image_id in image_ids])
        bar = tqdm(written, total=len(names), unit="file", disable=not progress)
        edits = {image_id: groups for groups, image_id in zip(bar, image_ids)}
        ordered = (group for image_id in sorted(by_image) for group in edits[image_id])
        _write_manifest(partial, changes, ordered, class_names, dataset_name)
        _describe(partial, dataset_name, noises, class_names)
        plot_confusion(statistics, class_names, partial / PICTURE)
    return statistics


def export_noisy_coco(
    coco: CocoFile, out: str | Path, noises: Sequence[Noise], dataset_name: str
) -> NoiseStatistics:
    """Write a noisy copy of a COCO json file into a new folder, under the same file name.

    Args:
        coco: the clean set
        out: the new folder
        noises: for :func:`~sl_detectron.data.label_noise.inject`
        dataset_name: the name that training will use; part of every annotation's hash

    Returns:
        what the noise did

    Raises:
        FileExistsError: if ``out`` exists
        ValueError: if an annotation or a noise is wrong
    """
    out, file, classes = Path(out), coco.path.name, coco.class_names
    refuse_to_overwrite(out)
    if file == DESCRIPTION:
        raise ValueError(f"{coco.path}: the copy needs the name {DESCRIPTION}; rename the file")
    records = coco.records()
    _, changes = inject(records, noises, len(classes), dataset_name)
    edits = coco.edits(changes)
    statistics = noise_statistics(records, changes, len(classes))
    with complete_or_nothing(out) as partial:
        noisy = apply_edits(coco.content, (edit for group in edits for edit in group))
        (partial / file).write_bytes(noisy)
        _write_manifest(partial, changes, edits, classes, dataset_name)
        _describe(partial, dataset_name, noises, classes, file)
        plot_confusion(statistics, classes, partial / PICTURE)
    return statistics


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
        ValueError: if a file is not what the export wrote
    """
    noisy = Path(noisy)
    if not (noisy / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{noisy} has no {DESCRIPTION}; it is not a complete noisy copy")
    file = json.loads((noisy / DESCRIPTION).read_text())["file"]
    edits: dict[str, list[Edit]] = defaultdict(list)
    for line in read_manifest(str(noisy / MANIFEST)):
        # A manifest may come from elsewhere: it names images, never a way out of this folder.
        name = file or f"Annotations/{line['image_id']}.xml"
        if "edits" not in line or ".." in Path(name).parts or not (noisy / name).is_file():
            raise ValueError(f"{noisy / MANIFEST} was not written for the files here: {line}")
        edits[name] += map(Edit.from_json, line["edits"])
    target = noisy if out is None else Path(out)
    if out is not None:
        refuse_to_overwrite(target)
    with complete_or_nothing(target, replaces=out is None) as partial:
        extras = shutil.ignore_patterns(MANIFEST, DESCRIPTION, PICTURE)
        shutil.copytree(noisy, partial, symlinks=True, ignore=extras, dirs_exist_ok=True)
        for name, file_edits in tqdm(edits.items(), unit="file", disable=not progress):
            try:
                clean = undo_edits((noisy / name).read_bytes(), file_edits)
            except ValueError as error:
                raise ValueError(f"{noisy / name} changed since it was written: {error}") from error
            (partial / name).write_bytes(clean)
    return target


@contextmanager
def _pool(num_workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    if num_workers < 1:
        raise ValueError(f"the number of workers must be at least 1; got {num_workers}")
    if num_workers == 1:
        yield map
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield lambda function, *args: pool.map(function, *args, chunksize=64)


def _link_devkit(root: Path, partial: Path) -> None:
    for entry in sorted(root.iterdir()):
        if entry.name == "ImageSets":
            shutil.copytree(entry, partial / entry.name)
        elif entry.name != "Annotations":
            (partial / entry.name).symlink_to(entry)


def _write_voc_file(
    name: str, changes: Changes, source: Path, target: Path, class_names: Sequence[str]
) -> list[list[Edit]]:
    xml = (source / name).read_bytes()
    edits = voc_edits(xml, changes, class_names) if changes else []
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_bytes(apply_edits(xml, (e for group in edits for e in group)))
    return edits


def _by_image(changes: Iterable[Change]) -> dict[str, Changes]:
    by_image: dict[str, Changes] = defaultdict(list)
    for change in changes:
        by_image[str(change.image_id)].append(change)
    return by_image


def _write_manifest(
    folder: Path,
    changes: Changes,
    edits: Iterable[list[Edit]],
    class_names: Sequence[str],
    dataset_name: str,
) -> None:
    with (folder / MANIFEST).open("w", encoding="ascii", newline="\n") as f:
        for line, group in zip(manifest_lines(changes, class_names, dataset_name), edits):
            f.write(json.dumps({**line, "edits": [edit.to_json() for edit in group]}) + "\n")


def _describe(
    folder: Path,
    dataset_name: str,
    noises: Sequence[Noise],
    class_names: Sequence[str],
    file: str = "",
) -> None:
    description = {
        "file": file,
        "dataset": dataset_name,
        "noises": [repr(noise) for noise in noises],
        "classes": list(class_names),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
