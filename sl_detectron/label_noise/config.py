"""From the node ``DATASETS.LABEL_NOISE`` of a config with our keys to noises."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..config import train_sets
from ..data.annotation_ids import dataset_source
from ..data.formats.manifest import read_manifest
from ..data.formats.restore import DESCRIPTION
from .asymmetric import AsymmetricNoise
from .clean_seeds import CleanSeeds
from .noises import NOISE_REGISTRY, Noise

__all__ = [
    "check_label_noise",
    "check_seeds_of_copy",
    "clean_seeds",
    "has_label_noise",
    "manifest_of",
    "noises_from_config",
    "refuse_noisy_copy",
    "shared_classes",
    "train_classes",
    "without_noise",
]

logger = logging.getLogger(__name__)

NODE = "DATASETS.LABEL_NOISE"


def noises_from_config(cfg: CfgNode, class_names: Sequence[str] | None = None) -> tuple[Noise, ...]:
    """Return the noises of ``DATASETS.LABEL_NOISE`` whose rate is above 0.

    Classes change first, then boxes move, then annotations go missing, then spurious boxes come.
    Without ``class_names`` they are those of ``DATASETS.TRAIN``.

    Raises:
        FileNotFoundError, ValueError: as :func:`check_label_noise`
        ValueError: the noise does not fit the classes
    """
    check_label_noise(cfg)
    active = [entry for entry in _nodes(cfg) if entry[1].RATE > 0]
    if active and class_names is None:
        class_names = train_classes(cfg)
    return tuple(_build(cfg, class_names, *entry) for entry in active)


def has_label_noise(cfg: CfgNode) -> bool:
    """Whether ``DATASETS.LABEL_NOISE`` puts noise into the training sets."""
    root = cfg.DATASETS.LABEL_NOISE
    nodes = [root, *(node for node in root.values() if isinstance(node, CfgNode))]
    return bool(root.MANIFEST) or any(node.RATE > 0 for node in nodes)


def without_noise(cfg: CfgNode) -> CfgNode:
    """A copy of a config whose training sets have the annotations that are on disk."""
    cfg = cfg.clone()
    cfg.defrost()
    root = cfg.DATASETS.LABEL_NOISE
    root.MANIFEST = root.CONFUSION = ""
    for node in (root, *(node for node in root.values() if isinstance(node, CfgNode))):
        node.RATE = 0.0
    return cfg


def check_label_noise(cfg: CfgNode) -> None:
    """Check the values of ``DATASETS.LABEL_NOISE`` without any dataset.

    Raises:
        ValueError: names the key, its value and what it can be
        FileNotFoundError: there is no such confusion map or manifest
    """
    root = cfg.DATASETS.LABEL_NOISE
    clean_seeds(cfg)
    for key, node, noise in _nodes(cfg):
        _build(cfg, None, key, node, noise)
        if root.MANIFEST and node.RATE:
            raise ValueError(
                f"{NODE}.MANIFEST replaces the rates: it is {root.MANIFEST!r} "
                f"and {key}.RATE is {node.RATE!r}; set {key}.RATE to 0.0 or MANIFEST to ''"
            )
    if root.CONFUSION and not issubclass(NOISE_REGISTRY.get(root.TYPE), AsymmetricNoise):
        raise ValueError(
            f"{NODE}.CONFUSION is {root.CONFUSION!r}, which applies only to TYPE 'asymmetric'; "
            f"TYPE is {root.TYPE!r}"
        )
    if root.MANIFEST and not PathManager.isfile(root.MANIFEST):
        raise FileNotFoundError(
            f"{NODE}.MANIFEST is {root.MANIFEST!r}, but there is no such file; "
            "sl-inject-noise writes one"
        )


def clean_seeds(cfg: CfgNode) -> CleanSeeds:
    """Which images ``DATASETS.LABEL_NOISE`` keeps clean.

    Raises:
        ValueError: the share is out of range
    """
    root = cfg.DATASETS.LABEL_NOISE
    try:
        return CleanSeeds(root.CLEAN_SHARE, root.SEED)
    except ValueError as error:
        raise ValueError(f"{NODE}.CLEAN_{str(error).replace('share', 'SHARE', 1)}") from error


def train_classes(cfg: CfgNode) -> list[str]:
    """Return the class names that all sets of ``DATASETS.TRAIN`` share.

    Raises:
        ValueError: a set has none, or another list
    """
    return shared_classes(train_sets(cfg))


def shared_classes(names: Sequence[str]) -> list[str]:
    """Return the class names that all of these training sets share.

    Raises:
        ValueError: a set has none, or another list
    """
    lists = {name: MetadataCatalog.get(name).get("thing_classes") for name in names}
    for name, classes in lists.items():
        if classes is None:
            raise ValueError(
                f"dataset {name!r} of DATASETS.TRAIN has no class list, which label noise needs; "
                f"set MetadataCatalog.get({name!r}).thing_classes"
            )
        if list(classes) != list(lists[names[0]]):
            raise ValueError(f"datasets {names[0]!r} and {name!r} have different class lists")
    return list(lists[names[0]])


def refuse_noisy_copy(name: str) -> None:
    """Refuse noise in memory on that of a copy on disk: it would be more than the config says."""
    description = _description_of_copy(name)
    if description:
        raise ValueError(
            f"dataset {name!r} is already a noisy copy ({description}): set the rates of "
            "DATASETS.LABEL_NOISE to 0.0, or use the clean dataset"
        )


def check_seeds_of_copy(name: str, seeds: CleanSeeds) -> None:
    """Refuse to take images of a noisy copy on disk for clean that it did not keep clean."""
    description = _description_of_copy(name) if seeds.share else ""
    if not description:
        return
    try:
        with open(description, encoding="utf-8") as file:
            content = {**json.load(file)}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{description} is damaged: {error}") from error
    kept = content.get("clean_seeds")
    if kept != {"share": seeds.share, "seed": seeds.seed} or content.get("dataset") != name:
        raise ValueError(
            f"{NODE}.CLEAN_SHARE {seeds.share} with SEED {seeds.seed}: dataset {name!r} is a noisy "
            f"copy ({description}) of {content.get('dataset')!r} with the clean seeds {kept}: set "
            "both keys as the copy has them, or write one by sl-inject-noise --clean-share"
        )


def _description_of_copy(name: str) -> str:
    """Path of what describes a noisy copy on disk; "" where the set is none."""
    source = dataset_source(name)
    if source["format"] == "other":
        return ""
    folder = source["root"] if "root" in source else os.path.dirname(source["json_file"])
    path = os.path.join(folder, DESCRIPTION)
    return path if os.path.isfile(path) else ""


def manifest_of(cfg: CfgNode) -> list[dict[str, Any]] | None:
    """The changes of ``DATASETS.LABEL_NOISE.MANIFEST``; None without one.

    Raises:
        ValueError: it is of other sets, or no manifest
    """
    path = cfg.DATASETS.LABEL_NOISE.MANIFEST
    if not path:
        return None
    lines = read_manifest(path)
    if not lines:
        logger.warning("%s records no change: the labels stay those of the files", path)
    others = sorted({line["dataset"] for line in lines} - {*train_sets(cfg)})
    if others:
        raise ValueError(
            f"{path} is for the datasets {others}, which are not in DATASETS.TRAIN "
            f"{train_sets(cfg)}; register the set under the manifest's name"
        )
    return lines


def _nodes(cfg: CfgNode) -> Iterator[tuple[str, CfgNode, type[Noise]]]:
    """Yield key, node and class: of ``TYPE``'s noise, then of every noise that has its own node."""
    root = cfg.DATASETS.LABEL_NOISE
    nodes = {name: node for name, node in root.items() if isinstance(node, CfgNode)}
    types = tuple(name for name, _ in NOISE_REGISTRY if name.upper() not in nodes)
    if root.TYPE not in types:
        raise ValueError(f"{NODE}.TYPE must be one of {types}; got {root.TYPE!r}")
    yield NODE, root, NOISE_REGISTRY.get(root.TYPE)
    for name, node in nodes.items():
        if name.lower() not in NOISE_REGISTRY:
            raise ValueError(f"{NODE}.{name}: no noise is registered as {name.lower()!r}")
        yield f"{NODE}.{name}", node, NOISE_REGISTRY.get(name.lower())


def _build(
    cfg: CfgNode, class_names: Sequence[str] | None, key: str, node: CfgNode, noise: type[Noise]
) -> Noise:
    mode = cfg.DATASETS.LABEL_NOISE.MODE
    try:
        Noise.from_config(node, class_names, mode=mode)  # first what all noises share
        return noise.from_config(node, class_names, mode=mode)
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        # The message of a noise starts with the argument: that is the key in small letters.
        argument, _, rest = str(error).partition(" ")
        is_key = argument.upper() in node
        message = f"{key}.{argument.upper()} {rest}" if is_key else f"{key}: {error}"
        raise kind(message) from error
