"""Sets in detectron2's catalogs: registered from a config, and the form of each.

A set that was registered for detectron2's VOC or COCO loader is read by this package's readers.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin, coco, pascal_voc, register_coco_instances

from . import voc

__all__ = [
    "custom_entries",
    "dataset_form",
    "is_coco_set",
    "register_coco_datasets",
    "register_custom_datasets",
]

_COCO_KEYS = ("NAME", "JSON_FILE", "IMAGE_ROOT")
# Sets that detectron2 registers by itself: a config does not need to locate them.
_BUILTIN = {name for group in builtin._PREDEFINED_SPLITS_COCO.values() for name in group}
_BUILTIN |= {f"voc_{y}_{s}" for y in (2007, 2012) for s in ("trainval", "train", "val", "test")}


def register_custom_datasets(node: Mapping[str, Any]) -> None:
    """Register the sets of ``DATASETS.CUSTOM_VOC`` and ``DATASETS.CUSTOM_COCO``.

    Args:
        node: ``cfg.DATASETS``

    Raises:
        ValueError: an entry is wrong, or its name is taken by another set
    """
    voc.register_voc_datasets(node["CUSTOM_VOC"])
    register_coco_datasets(node["CUSTOM_COCO"])


def register_coco_datasets(entries: Iterable[Any]) -> None:
    """Register the sets of ``DATASETS.CUSTOM_COCO`` by detectron2's ``register_coco_instances``.

    Args:
        entries: ``{"NAME", "JSON_FILE", "IMAGE_ROOT"}`` each

    Raises:
        ValueError: an entry is wrong, or its name is taken by another set
    """
    for i, entry in enumerate(entries):
        key = f"DATASETS.CUSTOM_COCO[{i}]"
        if not isinstance(entry, Mapping) or {*entry} != {*_COCO_KEYS}:
            raise ValueError(f"{key} needs the keys {', '.join(_COCO_KEYS)}; got {entry!r}")
        for field in _COCO_KEYS:
            if not isinstance(entry[field], str) or not entry[field]:
                raise ValueError(f"{key}.{field} must be a string; got {entry[field]!r}")
        name, json_file, image_root = (entry[field] for field in _COCO_KEYS)
        if name not in DatasetCatalog:
            register_coco_instances(name, {}, json_file, image_root)
            continue
        metadata = MetadataCatalog.get(name)
        given = [str(metadata.get(k, "")) for k in ("json_file", "image_root")]
        if [*map(os.path.abspath, given)] != [*map(os.path.abspath, (json_file, image_root))]:
            raise ValueError(
                f"{key}: dataset name {name!r} is taken by another set; choose another"
            )


def custom_entries(names: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Entries of ``CUSTOM_VOC`` and ``CUSTOM_COCO`` for sets that a program registered.

    Args:
        names: of registered sets; those of other formats, and detectron2's own, get none

    Returns:
        {"CUSTOM_VOC": entries, "CUSTOM_COCO": entries}, with absolute paths
    """
    entries: dict[str, list[dict[str, Any]]] = {"CUSTOM_VOC": [], "CUSTOM_COCO": []}
    for name in names:
        kind, metadata = dataset_form(name), MetadataCatalog.get(name)
        if name in _BUILTIN:
            continue
        if kind == "voc":
            entry = {"NAME": name, "ROOT": os.path.abspath(metadata.dirname)}
            entry |= {"SPLIT": metadata.split, "CLASSES": list(metadata.thing_classes)}
            entry |= {"YEAR": metadata.get("year", 2012)}
            other_classes = metadata.get("other_classes", "error")
            entries["CUSTOM_VOC"].append({**entry, "OTHER_CLASSES": other_classes})
        elif kind == "coco":
            paths = (metadata.json_file, metadata.image_root)
            entry = dict(zip(_COCO_KEYS, (name, *map(os.path.abspath, paths))))
            entries["CUSTOM_COCO"].append(entry)
    return entries


def dataset_form(name: str) -> str:
    """The format of a set that this package's readers take: "voc", "coco" or none."""
    metadata = MetadataCatalog.get(name).as_dict()
    module = getattr(DatasetCatalog[name], "__module__", "") if name in DatasetCatalog else ""
    if module in (pascal_voc.__name__, voc.__name__):
        return "voc" if {"dirname", "split", "thing_classes"} <= metadata.keys() else ""
    return (
        "coco" if module == coco.__name__ and {"json_file", "image_root"} <= metadata.keys() else ""
    )


def is_coco_set(name: str) -> bool:
    """Whether a set was registered for detectron2's COCO loader."""
    return dataset_form(name) == "coco"
