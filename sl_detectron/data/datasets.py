"""Datasets by name: loaded and checked by the readers of this package.

A set that was registered for detectron2's VOC or COCO loader is read by :mod:`.formats` first, so
that training, tests, noise and audits take the same files in the same way.
"""

import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from . import voc
from .formats.coco_json import CocoFile
from .formats.flaws import Flaws
from .many_objects import many_objects
from .record_sets import checked_records
from .registered_sets import dataset_form, is_coco_set

__all__ = [
    "check_dataset",
    "dataset_signature",
    "forget_checked_datasets",
    "is_without_annotations",
    "load_dataset",
    "read_coco",
]

Record = dict[str, Any]

logger = logging.getLogger(__name__)

# {name: (signature of the files, bad_annotations, records, flaws)} of sets that were checked and
# wait for the loader that takes them.
_checked: dict[str, tuple[Any, str, list[Record], Flaws]] = {}


@many_objects()
def load_dataset(
    name: str, bad_annotations: str = "error", *, flaws: Flaws | None = None
) -> list[Record]:
    """Load a registered set as dataset dicts, checked: VOC and COCO files, and lists of records.

    Args:
        name: in detectron2's catalogs
        bad_annotations: "error" refuses flawed boxes and images, up to 20 in one message; "skip"
            leaves them out and warns how many there were
        flaws: takes what is found, in place of ``bad_annotations``; the caller settles it

    Raises:
        FileNotFoundError, ValueError: as :func:`load_voc_dataset` and :class:`CocoFile`
        ValueError: the name is not registered, or records have flaws
    """
    _check_name(name)
    kept = None if flaws is not None else _take_checked(name, bad_annotations)
    if kept is not None:
        return kept
    kind, metadata = dataset_form(name), MetadataCatalog.get(name)
    if kind == "voc":
        return voc.load_voc_dataset(
            *(metadata.dirname, metadata.split, metadata.thing_classes),
            other_classes=metadata.get("other_classes", "error"),
            bad_annotations=bad_annotations,
            flaws=flaws,
        )
    if kind == "coco":
        found = flaws or Flaws(f"dataset {name!r}", bad_annotations)
        records = _load_coco(name, found)
        if flaws is None:
            found.settle()
        return records
    records = DatasetCatalog.get(name)
    if records is None or isinstance(records, Mapping):
        kind = type(records).__name__
        raise ValueError(f"dataset {name!r} is a {kind}, not a list of dicts")
    # A loader of another kind, such as a stream, is not read.
    if not isinstance(records, list | tuple):
        return records
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"dataset {name!r}: record {i} is {record!r:.80}, not a dict")
    found = flaws or Flaws(f"dataset {name!r}", bad_annotations)
    checked = checked_records(name, records, found)
    if flaws is None:
        found.settle()
    return checked


def check_dataset(
    name: str, bad_annotations: str = "error", any_format: bool = False, keep: bool = False
) -> list[Record] | None:
    """Read a VOC or COCO set once, so that a flaw stops a run before it starts; warns of nothing.

    Args:
        name: of the set
        bad_annotations: as :func:`load_dataset` takes it
        any_format: whether sets in other formats are read too
        keep: whether the next :func:`load_dataset` of this set takes the records, if no file has
            changed meanwhile; they must not be changed

    Returns:
        its records; None for a set in another format, which need only be registered

    Raises:
        FileNotFoundError, ValueError: as :func:`load_dataset`
    """
    _check_name(name)
    keys = {"dirname", "split", "thing_classes"}
    if (
        not any_format
        and not dataset_form(name)
        and not keys <= MetadataCatalog.get(name).as_dict().keys()
    ):
        return None
    flaws = Flaws(f"dataset {name!r}", bad_annotations, quiet=True)
    records = load_dataset(name, bad_annotations, flaws=flaws)
    flaws.settle()
    if not isinstance(records, list):
        return None
    signature = dataset_signature(name) if keep else None
    if signature is not None:
        _checked[name] = (signature, bad_annotations, records, flaws)
    return records


def forget_checked_datasets() -> None:
    """Free the records that no :func:`load_dataset` of this process will take."""
    _checked.clear()


def _take_checked(name: str, bad_annotations: str) -> list[Record] | None:
    """Records that a check of this process has read; they are handed out once."""
    signature, given, records, flaws = _checked.pop(name, (None, "", [], None))
    if flaws is None or given != bad_annotations or signature != dataset_signature(name):
        return None
    flaws.quiet = False  # a check keeps its warnings to itself
    flaws.settle()
    return records


def dataset_signature(name: str) -> Any:
    """What differs after a change of the files of a VOC or COCO set; None for other sets."""
    kind, metadata = dataset_form(name), MetadataCatalog.get(name)
    if kind == "coco":
        json_file = PathManager.get_local_path(os.fspath(metadata.json_file))
        files = [json_file, os.fspath(metadata.image_root)]
    elif kind == "voc":
        root = Path(metadata.dirname)
        files = [root / "ImageSets" / "Main" / f"{metadata.split}.txt"]
        folders = [root / "Annotations", root / "JPEGImages"]
        files += [entry.path for folder in folders[:1] for entry in os.scandir(folder)]
        files += folders[1:]
    else:
        return None
    stats = [os.stat(file) if os.path.exists(file) else None for file in files]
    marks = sorted((str(f), s and (s.st_mtime_ns, s.st_size)) for f, s in zip(files, stats))
    about = {key: str(value) for key, value in metadata.as_dict().items()}
    return hash((tuple(marks), tuple(sorted(about.items()))))


def read_coco(name: str, bad_annotations: str = "error", *, flaws: Flaws | None = None) -> CocoFile:
    """The json of a registered COCO set, without images that are not there."""
    metadata = MetadataCatalog.get(name)
    path = PathManager.get_local_path(os.fspath(metadata.json_file))
    found = flaws or Flaws(f"dataset {name!r}", bad_annotations)
    file = CocoFile(path, metadata.image_root, flaws=found)
    file.check_image_files()
    if flaws is None:
        found.settle()
    return file


def _load_coco(name: str, flaws: Flaws) -> list[Record]:
    metadata = MetadataCatalog.get(name)
    file = read_coco(name, flaws=flaws)
    classes = metadata.get("thing_classes")
    if classes is not None and list(classes) != file.class_names:
        raise ValueError(
            f"dataset {name!r}: its metadata has the thing_classes {list(classes)}, and "
            f"{file.path} by ascending category id {file.class_names}; leave thing_classes to the "
            "loader, or correct the file"
        )
    records = file.dataset_dicts(metadata.image_root)
    try:
        metadata.thing_classes = file.class_names
        metadata.thing_dataset_id_to_contiguous_id = file.class_ids
    except AssertionError as error:  # it refuses another value than it has
        raise ValueError(f"dataset {name!r}: {file.path}: {error}") from error
    logger.info("Loaded %d images in COCO format from %s", len(records), file.path)
    return records


def is_without_annotations(name: str) -> bool:
    """Whether a set is a COCO json without the key "annotations", as of a test server."""
    if not is_coco_set(name):
        return False
    flaws = Flaws(f"dataset {name!r}", "skip", quiet=True)
    return not read_coco(name, flaws=flaws).has_annotations


def _check_name(name: str) -> None:
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
        keys = "see DATASETS.CUSTOM_VOC and DATASETS.CUSTOM_COCO for custom sets"
        hint = f"did you mean {near[0]!r}?" if near else keys
        raise ValueError(f"dataset {name!r} is not registered; {hint}")
