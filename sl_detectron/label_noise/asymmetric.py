"""Asymmetric noise: classes are mistaken for look-alikes, by a map."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..data.formats.annotations import Annotation
from ..files import load_yaml
from .noises import NOISE_REGISTRY, Draws, Noise, Noisy, Size, fraction

__all__ = ["VOC_CONFUSION", "AsymmetricNoise", "confusion_by_id", "load_confusion"]

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


@NOISE_REGISTRY.register("asymmetric")
@dataclass(frozen=True, kw_only=True)
class AsymmetricNoise(Noise):
    """Replace the class by one it is often mistaken for.

    Args:
        confusion: {class id: {other class id: probability}}; the probabilities of a class sum to
            1, and a class that is not a key keeps its labels and does not count in the rate
    """

    kind: ClassVar[str] = "asymmetric"
    confusion: Mapping[int, Mapping[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.confusion:
            raise ValueError("confusion must map a class; got an empty one")
        for true, row in self.confusion.items():
            if true in row:
                raise ValueError(f"confusion of class {true} contains the class itself")
            if any(p < 0 for p in row.values()) or not math.isclose(sum(row.values()), 1.0):
                raise ValueError(
                    f"confusion of class {true}: probabilities must be >= 0 and sum to 1; "
                    f"got {dict(row)}"
                )

    @classmethod
    def from_config(cls, node: CfgNode, class_names: Sequence[str] | None, **values: Any) -> Noise:
        by_name = load_confusion(node.CONFUSION) if node.CONFUSION else VOC_CONFUSION
        # Any numbers will do for a check of the values.
        names = class_names or sorted({*by_name}.union(*by_name.values()))
        try:
            confusion = confusion_by_id(by_name, names)
            return super().from_config(node, names, confusion=confusion, **values)
        except ValueError as error:
            source = node.CONFUSION or "empty: VOC's confusable pairs"
            raise ValueError(f"confusion ({source}): {error}") from error

    def check_classes(self, num_classes: int) -> None:
        used = {*self.confusion}.union(*self.confusion.values())
        unknown = sorted(used - {*range(num_classes)})
        if unknown:
            raise ValueError(
                f"confusion has class ids {unknown} outside 0..{num_classes - 1}; "
                "it belongs to another class list"
            )

    def applies_to(self, annotation: Annotation) -> bool:
        return annotation["category_id"] in self.confusion

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        row = self.confusion[annotation["category_id"]]
        remaining = fraction(draws[0])
        # In the order of class ids: two maps with the same content must give the same labels.
        possible = [new for new in sorted(row) if row[new] > 0]
        for new in possible:
            remaining -= row[new]
            if remaining < 0:
                break
        return {**annotation, "category_id": new}


def load_confusion(path: str) -> dict[str, dict[str, float]]:
    """Read a confusion map, {class: {other class: probability}}, with its short forms, from YAML.

    ``cat: dog`` is short for ``cat: {dog: 1.0}``, ``cow: [horse, sheep]`` for equal shares.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"confusion {path!r} does not exist; give the path of a YAML file")
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

    Raises:
        ValueError: the map names a class outside the list

    Example:
        >>> confusion_by_id({"cat": {"dog": 1.0}}, ["dog", "cat"])
        {1: {0: 1.0}}
    """
    ids = {name: i for i, name in enumerate(class_names)}
    unknown = sorted({*confusion}.union(*confusion.values()) - ids.keys())
    if unknown:
        raise ValueError(f"confusion names {unknown}; the classes are {list(class_names)}")
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
