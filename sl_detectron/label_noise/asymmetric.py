"""Which classes are mistaken for which: maps for asymmetric noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from ..files import load_yaml

__all__ = ["VOC_CONFUSION", "load_confusion", "confusion_by_id"]

# Pairs that VOC detectors confuse most: look-alikes among vehicles, animals and furniture. The
# other five classes have no look-alike in the list and keep their labels.
VOC_CONFUSION: dict[str, dict[str, float]] = {
    "aeroplane": {"bird": 1.0},
    "bicycle": {"motorbike": 1.0},
    "bird": {"aeroplane": 1.0},
    "bus": {"car": 0.5, "train": 0.5},
    "car": {"bus": 1.0},
    "cat": {"dog": 1.0},
    "chair": {"sofa": 1.0},
    "cow": {"horse": 0.5, "sheep": 0.5},
    "diningtable": {"chair": 1.0},
    "dog": {"cat": 1.0},
    "horse": {"cow": 1.0},
    "motorbike": {"bicycle": 1.0},
    "sheep": {"cow": 1.0},
    "sofa": {"chair": 1.0},
    "train": {"bus": 1.0},
}


def load_confusion(path: str) -> dict[str, dict[str, float]]:
    """Read a confusion map from YAML: ``{class: {other class: probability}}``.

    ``cat: dog`` is short for ``cat: {dog: 1.0}``, ``cow: [horse, sheep]`` for equal shares.

    Args:
        path: of the YAML file

    Returns:
        {class name: {other class name: probability}}

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: if it holds something else
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"no confusion map at {path}; give the path of a YAML file")
    with PathManager.open(path) as f:
        try:
            content = load_yaml(f.read())
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} must hold {{class: {{other class: probability}}}}")
    return {str(true): _row(row, f"{path}: {true}") for true, row in content.items()}


def confusion_by_id(
    confusion: Mapping[str, Mapping[str, float]], class_names: Sequence[str]
) -> dict[int, dict[int, float]]:
    """Translate a confusion map from class names to class ids.

    Args:
        confusion: {class name: {other class name: probability}}
        class_names: of the data set, in the order of its class ids

    Raises:
        ValueError: if the map names a class outside the list

    Example:
        >>> confusion_by_id({"cat": {"dog": 1.0}}, ["dog", "cat"])
        {1: {0: 1.0}}
    """
    ids = {name: i for i, name in enumerate(class_names)}
    named = {*confusion, *(new for row in confusion.values() for new in row)}
    unknown = sorted(named - ids.keys())
    if unknown:
        raise ValueError(f"confusion map names {unknown}; the classes are {list(class_names)}")
    return {ids[t]: {ids[n]: float(p) for n, p in row.items()} for t, row in confusion.items()}


def _row(row: Any, where: str) -> dict[str, float]:
    # A class may be named by a number, which YAML reads as one.
    if isinstance(row, str | int):
        return {str(row): 1.0}
    if isinstance(row, list) and row:
        return {str(name): 1 / len(row) for name in row}
    if isinstance(row, dict) and row and all(isinstance(p, int | float) for p in row.values()):
        return {str(name): float(p) for name, p in row.items()}
    raise ValueError(f"{where} must be a class, a list of classes or {{class: probability}}")
