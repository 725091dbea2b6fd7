"""Noisy copies of data sets on disk.

A copy holds the annotation files with noise, ``manifest.jsonl`` (one change per line, see
:mod:`sl_detectron.data.label_noise.manifest`, with the byte edits that undo it), ``noise.json``
(how it was made) and ``confusion.png``. It appears under its name only when it is complete.
"""

import functools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..voc import load_voc_dataset
from ..voc_folder import parse_voc_xml
from .changes import Change, Record
from .coco import CocoFile
from .edits import Edit, apply_edits
from .folder import (
    DESCRIPTION,
    MANIFEST,
    OWN_FILES,
    PICTURE,
    complete_or_nothing,
    refuse_to_overwrite,
)
from .injection import inject
from .manifest import manifest_lines
from .plot import plot_confusion
from .stats import NoiseStatistics, noise_statistics
from .types import Annotation, Noise
from .voc import voc_edits

__all__ = ["export_noisy_voc", "export_noisy_coco"]

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
        ValueError: if an annotation or a noise is wrong, ``root`` is a noisy copy itself, or
            ``out`` is inside it
    """
    root, out = Path(root).resolve(), Path(out)
    refuse_to_overwrite(out, root)
    _refuse_noisy_copy(root)
    records = load_voc_dataset(root, split, class_names, require_images=False)
    noisy, changes = inject(records, noises, len(class_names), dataset_name)
    statistics = noise_statistics(records, changes, len(class_names))
    by_image = _by_image(changes)
    changed = _changed_files(by_image, noisy)
    with complete_or_nothing(out) as partial, _pool(num_workers) as run:
        _link_devkit(root, partial)
        folder = root / "Annotations"
        names = _files(folder)
        write = functools.partial(
            _write_voc_file, source=folder, target=partial / "Annotations", class_names=class_names
        )
        written = run(write, names, [changed.get(name, ([], [])) for name in names])
        bar = tqdm(written, total=len(names), unit="file", disable=not progress)
        edits = {name: groups for groups, name in zip(bar, names)}
        ordered = (group for image_id in sorted(by_image) for group in edits[f"{image_id}.xml"])
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
        ValueError: if an annotation or a noise is wrong, or the file has a name that the copy
            needs
    """
    out, file, classes = Path(out), coco.path.name, coco.class_names
    refuse_to_overwrite(out, coco.path)
    if file in OWN_FILES:
        raise ValueError(f"{coco.path}: the copy needs the name {file}; rename the file")
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


@contextmanager
def _pool(num_workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    if num_workers < 1:
        raise ValueError(f"the number of workers must be at least 1; got {num_workers}")
    if num_workers == 1:
        yield map
        return
    with ProcessPoolExecutor(num_workers) as pool:
        yield lambda function, *args: pool.map(function, *args, chunksize=64)


def _refuse_noisy_copy(root: Path) -> None:
    # The copy links to what its source holds: its own files would be written into the source.
    for name in OWN_FILES:
        if os.path.lexists(root / name):
            raise ValueError(
                f"{root / name} belongs to a noisy copy: make the folder clean first "
                "(tools/inject_noise.py --restore), or rename the file if it is yours"
            )


def _files(folder: Path) -> list[str]:
    """Return the path of every file in the folder, relative to it."""
    walk = os.walk(folder, followlinks=True)
    paths = (Path(parent, name) for parent, _, names in walk for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _changed_files(
    by_image: dict[str, Changes], noisy: Iterable[Record]
) -> dict[str, tuple[Changes, list[Annotation]]]:
    """Return for each XML file that gets noise its changes and what shall load from it."""
    annotations = {str(record["image_id"]): record["annotations"] for record in noisy}
    return {f"{i}.xml": (changes, annotations[i]) for i, changes in by_image.items()}


def _link_devkit(root: Path, partial: Path) -> None:
    for entry in sorted(root.iterdir()):
        if entry.name == "ImageSets":
            shutil.copytree(entry, partial / entry.name)
        elif entry.name != "Annotations":
            (partial / entry.name).symlink_to(entry)


def _write_voc_file(
    name: str,
    noise: tuple[Changes, list[Annotation]],
    source: Path,
    target: Path,
    class_names: Sequence[str],
) -> list[list[Edit]]:
    changes, annotations = noise
    content = (source / name).read_bytes()
    edits = voc_edits(content, changes, class_names) if changes else []
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    (target / name).write_bytes(apply_edits(content, (e for group in edits for e in group)))
    if changes and _loaded(target / name) != [
        (class_names[a["category_id"]], list(a["bbox"])) for a in annotations
    ]:
        raise ValueError(f"{source / name}: its layout is not understood, noise cannot be put in")
    return edits


def _loaded(path: Path) -> list[tuple[str, list[float]]]:
    """Return name and box (XYXY, 0-based) of every object, as training will read them."""
    return [
        (name, [x1 - 1.0, y1 - 1.0, x2, y2])
        for name, (x1, y1, x2, y2), _ in parse_voc_xml(path).objects
    ]


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
    with (folder / MANIFEST).open("x", encoding="ascii", newline="\n") as f:
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
