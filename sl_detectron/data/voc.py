"""Pascal VOC style sets: any class list, and every flaw named before training starts.

A set's root folder holds ``Annotations/*.xml``, ``ImageSets/Main/<split>.txt`` and ``JPEGImages/``;
a split is the name of an image set, e.g. "trainval". Class names are K in the order of the class
ids.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import pascal_voc
from detectron2.structures import BoxMode

from .formats.flaws import Flaws
from .formats.voc_set import check_other_classes, read_voc_annotations
from .formats.voc_xml import VOCAnnotation, class_ids_of, zero_based

__all__ = [
    "load_voc_dataset",
    "register_voc_dataset",
    "register_voc_datasets",
    "voc_metadata",
    "voc_records",
]

_ENTRY_KEYS = ("NAME", "ROOT", "SPLIT")
# Where detectron2 looks for its datasets; a shipped config can name no path of this machine.
_DATASETS = "$DETECTRON2_DATASETS"
# Further keys, and the arguments that they are.
_OPTIONAL_KEYS = {"CLASSES": "class_names", "YEAR": "year", "OTHER_CLASSES": "other_classes"}


def load_voc_dataset(
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    require_images: bool = True,
    *,
    other_classes: str = "error",
    bad_annotations: str = "error",
    flaws: Flaws | None = None,
) -> list[dict[str, Any]]:
    """Load a VOC style set as detectron2's dataset dicts, those of its ``load_voc_instances``.

    Each annotation also carries ``difficult``; as in detectron2, difficult objects are trained on.

    Args:
        root, split, class_names: see the top of this module
        require_images: whether an annotation without image is an error
        other_classes: "error" refuses objects of a class that is not in class_names, so that a
            misspelt one is found; "ignore" leaves them out and warns how many there were
        bad_annotations: "error" refuses flawed boxes and images, up to 20 in one message; "skip"
            leaves them out and warns how many there were
        flaws: takes what is found, in place of ``bad_annotations``; the caller settles it

    Returns:
        one record per image; boxes are XYXY in pixels, 0-based

    Raises:
        FileNotFoundError: a folder, the image set, an annotation or an image is missing
        ValueError: the image set or an annotation is wrong
    """
    annotations = read_voc_annotations(
        *(root, split, class_names, other_classes),
        bad_annotations=bad_annotations,
        require_images=require_images,
        flaws=flaws,
    )
    return voc_records(root, annotations, class_names)


def voc_records(
    root: str | os.PathLike, annotations: Mapping[str, VOCAnnotation], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Dataset dicts of annotations that were read; without a size where it is unknown."""
    class_ids = class_ids_of(class_names)
    records: list[dict[str, Any]] = []
    for image_id, annotation in annotations.items():
        file = annotation.image or os.path.join(root, "JPEGImages", f"{image_id}.jpg")
        record: dict[str, Any] = {"file_name": file, "image_id": image_id}
        if annotation.size is not None:
            record["width"], record["height"] = annotation.size
        instances = [
            {
                "category_id": class_ids[obj.name],
                "bbox": zero_based(obj.box),
                "bbox_mode": BoxMode.XYXY_ABS,
                "difficult": int(obj.difficult),
            }
            for obj in annotation.objects
        ]
        records.append({**record, "annotations": instances})
    return records


def register_voc_dataset(
    name: str,
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str] = pascal_voc.CLASS_NAMES,
    year: int = 2012,
    *,
    other_classes: str = "error",
) -> None:
    """Register a custom VOC style set with detectron2; it is read when first used.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``
        root, split, class_names: see the top of this module
        year: 2007 selects VOC07's 11-point AP as the default metric, any other the area
        other_classes: "error" or "ignore", see :func:`load_voc_dataset`

    Raises:
        ValueError: the name is taken by another set, the class names repeat, or other_classes is
            unknown

    Example:
        >>> register_voc_dataset("my_train", "datasets/mine", "train", ["cat", "dog"])
        >>> MetadataCatalog.get("my_train").thing_classes
        ['cat', 'dog']
    """
    class_ids_of(class_names)
    check_other_classes(other_classes)
    metadata = voc_metadata(root, split, class_names, year, other_classes)
    if name in DatasetCatalog:
        given = {"other_classes": "error", **MetadataCatalog.get(name).as_dict()}
        if any(given.get(key) != value for key, value in metadata.items()):
            raise ValueError(f"dataset name {name!r} is taken by another set; choose another")
        return
    DatasetCatalog.register(
        name, lambda: load_voc_dataset(root, split, class_names, other_classes=other_classes)
    )
    MetadataCatalog.get(name).set(**metadata)


def register_voc_datasets(entries: Iterable[Mapping[str, Any]]) -> None:
    """Register the sets of ``DATASETS.CUSTOM_VOC``.

    Args:
        entries: ``{"NAME", "ROOT", "SPLIT"}`` each, and as needed "CLASSES", a list of names
            (VOC's twenty), "YEAR", 2007 for the 11-point metric (2012), and "OTHER_CLASSES",
            "error" or "ignore" as in :func:`load_voc_dataset` ("error"). In ROOT the word
            ``$DETECTRON2_DATASETS`` stands for that variable of the environment, or "datasets"

    Raises:
        ValueError: an entry is wrong, or its name is taken by another set
    """
    for i, entry in enumerate(entries):
        key = f"DATASETS.CUSTOM_VOC[{i}]"
        _check_entry(key, entry)
        options = {_OPTIONAL_KEYS[k]: v for k, v in entry.items() if k in _OPTIONAL_KEYS}
        try:
            folder = os.path.expanduser(os.getenv(_DATASETS[1:], "datasets"))
            root = entry["ROOT"].replace(_DATASETS, folder)
            register_voc_dataset(entry["NAME"], root, entry["SPLIT"], **options)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


def voc_metadata(
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    year: int = 2012,
    other_classes: str = "error",
) -> dict[str, Any]:
    """What evaluators and visualisers read from the metadata of such a set."""
    return {
        "thing_classes": list(class_names),
        "dirname": os.fspath(root),
        "split": split,
        "year": year,
        "other_classes": other_classes,
        "evaluator_type": "pascal_voc",
    }


def _check_entry(key: str, entry: Any) -> None:
    """Refuse an entry of ``DATASETS.CUSTOM_VOC`` whose keys or types are wrong."""
    allowed = {*_ENTRY_KEYS, *_OPTIONAL_KEYS}
    if not isinstance(entry, Mapping) or not {*_ENTRY_KEYS} <= {*entry} <= allowed:
        raise ValueError(
            f"{key} needs the keys {', '.join(_ENTRY_KEYS)} and may have "
            f"{', '.join(_OPTIONAL_KEYS)}; got {entry!r}"
        )
    for field in _ENTRY_KEYS:
        if not isinstance(entry[field], str) or not entry[field]:
            raise ValueError(f"{key}.{field} must be a string; got {entry[field]!r}")
    classes = entry.get("CLASSES", pascal_voc.CLASS_NAMES)
    if not isinstance(classes, (list, tuple)) or not all(isinstance(c, str) for c in classes):
        raise ValueError(f"{key}.CLASSES must be a list of names; got {classes!r}")
    year = entry.get("YEAR", 2012)
    if not isinstance(year, int) or isinstance(year, bool):
        raise ValueError(f"{key}.YEAR must be a year, e.g. 2007; got {year!r}")
