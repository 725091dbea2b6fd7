"""Noisy copies of datasets on disk.

A copy holds the annotation files with noise, ``manifest.jsonl`` (one change per line, see
:mod:`sl_detectron.data.formats.manifest`), ``noise.json`` (how it was made) and ``confusion.png``.
What makes it clean again are the byte edits in the manifest of a VOC copy, the ``original.json`` of
a COCO copy. It appears under its name only when it is complete.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import groupby
from pathlib import Path

from ..data.annotation_ids import number_annotations
from ..data.formats.annotations import Record
from ..data.formats.changes import Change
from ..data.formats.coco_json import CocoFile
from ..data.formats.devkit import copy_devkit
from ..data.formats.manifest import add_clean_images, write_manifest
from ..data.formats.restore import COPY_FILES, DESCRIPTION, MANIFEST, ORIGINAL, PICTURE
from ..data.formats.voc_set import read_voc_annotations
from ..data.voc import voc_records
from ..files import new_folder, refuse_to_overwrite, write_json
from .clean_seeds import CleanSeeds
from .noises import Noise
from .stats import NoiseStatistics, noise_statistics, plot_confusion

__all__ = ["export_noisy_coco", "export_noisy_voc"]


def export_noisy_voc(
    root: str | Path,
    split: str,
    out: str | Path,
    noises: Sequence[Noise],
    class_names: Sequence[str],
    dataset_name: str,
    num_workers: int = 1,
    progress: bool = False,
    bad_annotations: str = "error",
    seeds: CleanSeeds | None = None,
) -> NoiseStatistics:
    """Write a noisy copy of a VOC devkit folder: XML with noise, image sets, links to the rest.

    Annotations outside the split are copied as they are.

    Args:
        root: holds Annotations/, ImageSets/ and JPEGImages/
        split: the image set that gets noise, e.g. "trainval"
        out: the new folder, in root's layout
        noises: for :func:`~sl_detectron.label_noise.inject`
        class_names: K names
        dataset_name: the name that training will use; part of every annotation's hash
        num_workers: processes that write XML; the result does not depend on it
        progress: whether to show a progress bar
        bad_annotations: "error" refuses flawed boxes and images; "skip" copies them as they are
        seeds: images that no noise changes, which the manifest names; None for none

    Returns:
        what the noise did

    Raises:
        FileExistsError: ``out`` exists
        ValueError: an annotation or a noise is wrong, the noise hits nothing, ``root`` is a noisy
            copy itself, or ``out`` is inside it
    """
    root, out = Path(root).resolve(), Path(out)
    refuse_to_overwrite(out, root)
    # The copy links to what its source holds: its own files would be written into the source.
    for path in (root / name for name in COPY_FILES):
        if os.path.lexists(path):
            raise ValueError(
                f"{path} belongs to a noisy copy: restore the folder first "
                "(sl-inject-noise --restore), or rename the file if it is yours"
            )
    annotations = read_voc_annotations(root, split, class_names, bad_annotations=bad_annotations)
    records, seeds = _numbered(voc_records(root, annotations, class_names)), seeds or CleanSeeds()
    _, changes = seeds.inject(records, noises, len(class_names), dataset_name)
    _refuse_no_noise(records, noises, changes, dataset_name)
    by_image = groupby(changes, key=lambda change: change.image_id)  # they are sorted by image
    changed = {f"{i}.xml": ([*group], annotations[str(i)].positions) for i, group in by_image}
    statistics = noise_statistics(records, changes, len(class_names))
    with new_folder(out) as partial:
        copy_devkit(
            root, partial, changed, class_names, dataset_name, MANIFEST, num_workers, progress
        )
        _describe(partial, dataset_name, noises, class_names, statistics, seeds, records)
    return statistics


def export_noisy_coco(
    coco: CocoFile,
    out: str | Path,
    noises: Sequence[Noise],
    dataset_name: str,
    seeds: CleanSeeds | None = None,
) -> NoiseStatistics:
    """As :func:`export_noisy_voc`, for a COCO json file, which keeps its name in the new folder.

    Raises:
        FileExistsError: ``out`` exists
        ValueError: an annotation or a noise is wrong, the noise hits nothing, or the copy needs
            the file's name
    """
    out, file, classes = Path(out), coco.path.name, coco.class_names
    refuse_to_overwrite(out, coco.path)
    if file in COPY_FILES:
        raise ValueError(f"{coco.path}: the copy needs the name {file}; rename the file")
    records, seeds = _numbered(coco.records()), seeds or CleanSeeds()
    _, changes = seeds.inject(records, noises, len(classes), dataset_name)
    _refuse_no_noise(records, noises, changes, dataset_name)
    statistics = noise_statistics(records, changes, len(classes))
    with new_folder(out) as partial:
        (partial / file).write_bytes(coco.with_changes(changes))
        (partial / ORIGINAL).write_bytes(coco.content)
        write_manifest(partial / MANIFEST, changes, classes, dataset_name)
        _describe(partial, dataset_name, noises, classes, statistics, seeds, records, file)
    return statistics


def _numbered(records: list[Record]) -> list[Record]:
    """With annotation ids, by which noise that depends on the object finds it."""
    return number_annotations({"": records})[""]


def _refuse_no_noise(
    records: Sequence[Record], noises: Sequence[Noise], changes: Sequence[Change], name: str
) -> None:
    """A copy without any noise is none that was asked for."""
    if changes or not any(noise.rate > 0 for noise in noises):
        return
    annotations = [a for record in records for a in record["annotations"]]
    crowds = sum(bool(a.get("iscrowd", 0)) for a in annotations)
    if crowds == len(annotations):
        what = f"all {crowds} annotations are crowds (iscrowd 1)" if crowds else "no annotation"
        raise ValueError(f"dataset {name!r} has nothing that noise can change: {what}")
    raise ValueError(
        f"the noise changes none of the {len(annotations) - crowds} annotations of {name!r}: use a "
        "higher rate, another seed or the mode exact"
    )


def _describe(
    folder: Path,
    dataset_name: str,
    noises: Sequence[Noise],
    class_names: Sequence[str],
    statistics: NoiseStatistics,
    seeds: CleanSeeds,
    records: Sequence[Record],
    file: str = "",
) -> None:
    """Write how the copy was made, which images are clean seeds, and a picture of the noise."""
    if seeds.share:
        add_clean_images(folder / MANIFEST, seeds.image_ids(dataset_name, records), dataset_name)
    description = {
        "file": file,
        # Of what a restore reads.
        "sha256": {
            name: sha256((folder / name).read_bytes()).hexdigest()
            for name in ((file, ORIGINAL) if file else ())
        },
        "dataset": dataset_name,
        "noises": [repr(noise) for noise in noises],
        **({"clean_seeds": asdict(seeds)} if seeds.share else {}),
        "classes": list(class_names),
    }
    write_json(folder / DESCRIPTION, description, indent=2)
    plot_confusion(statistics, class_names, folder / PICTURE)
