"""From the config node ``DATASETS.LABEL_NOISE`` to noises."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from .asymmetric import VOC_CONFUSION, confusion_by_id, load_confusion
from .boxes import BoxJitter, MissingAnnotations, SpuriousBoxes
from .noises import MODES, AsymmetricNoise, Noise, SymmetricNoise

__all__ = ["noises_from_config", "check_label_noise", "train_classes"]

NODE = "DATASETS.LABEL_NOISE"
TYPES = ("symmetric", "symmetric_inclusive", "asymmetric")


def noises_from_config(cfg: CfgNode, class_names: Sequence[str] | None = None) -> tuple[Noise, ...]:
    """Return the noises of ``DATASETS.LABEL_NOISE`` whose rate is above 0.

    Classes change first, then boxes move, then annotations go missing, then spurious boxes come.

    Args:
        cfg: with the keys of :func:`~sl_detectron.add_superloss_config`
        class_names: that a confusion map names; None for those of ``DATASETS.TRAIN``

    Returns:
        noises for :func:`~sl_detectron.label_noise.inject`; none where a manifest is set

    Raises:
        ValueError: names the key, its value and what it can be
        FileNotFoundError: if there is no such confusion map or manifest
    """
    check_label_noise(cfg)
    node = cfg.DATASETS.LABEL_NOISE
    noises: list[Noise] = []
    if node.RATE > 0:
        noises.append(_label_noise(cfg, class_names))
    jitter, missing, spurious = node.BOX_JITTER, node.MISSING, node.SPURIOUS
    if jitter.RATE > 0:
        noises.append(BoxJitter(**_common(jitter, node), magnitude=float(jitter.MAGNITUDE)))
    if missing.RATE > 0:
        noises.append(MissingAnnotations(**_common(missing, node)))
    if spurious.RATE > 0:
        noises.append(SpuriousBoxes(**_common(spurious, node)))
    return tuple(noises)


def train_classes(cfg: CfgNode) -> list[str]:
    """Return the class names that all sets of ``DATASETS.TRAIN`` share.

    Raises:
        ValueError: if a set has none, or another list
    """
    lists = {}
    for name in cfg.DATASETS.TRAIN:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is None:
            raise ValueError(
                f"data set {name!r} of DATASETS.TRAIN has no class list, which label noise needs; "
                f"set MetadataCatalog.get({name!r}).thing_classes"
            )
        lists[name] = list(classes)
    first, *others = lists
    for name in others:
        if lists[name] != lists[first]:
            raise ValueError(f"data sets {first!r} and {name!r} have different class lists")
    return lists[first]


def check_label_noise(cfg: CfgNode) -> None:
    """Check the values of ``DATASETS.LABEL_NOISE`` without any data set.

    Args:
        cfg: with the keys of :func:`~sl_detectron.add_superloss_config`

    Raises:
        ValueError: names the key, its value and what it can be
        FileNotFoundError: if there is no such confusion map or manifest
    """
    node = cfg.DATASETS.LABEL_NOISE
    if node.TYPE not in TYPES:
        raise ValueError(f"{NODE}.TYPE must be one of {TYPES}; got {node.TYPE!r}")
    if node.MODE not in MODES:
        raise ValueError(f"{NODE}.MODE must be one of {MODES}; got {node.MODE!r}")
    rates = {f"{NODE}.RATE": node.RATE}
    for name in ("BOX_JITTER", "MISSING", "SPURIOUS"):
        rates[f"{NODE}.{name}.RATE"] = node[name].RATE
    for key, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{key} must be in [0, 1]; got {rate!r}")
        if node.MANIFEST and rate:
            raise ValueError(
                f"{NODE}.MANIFEST takes the place of rates: it is {node.MANIFEST!r} "
                f"and {key} is {rate!r}; set {key} to 0.0 or MANIFEST to ''"
            )
    magnitude = node.BOX_JITTER.MAGNITUDE
    if not 0 < magnitude < 0.5:
        raise ValueError(f"{NODE}.BOX_JITTER.MAGNITUDE must be in (0, 0.5); got {magnitude!r}")
    if node.CONFUSION and node.TYPE != "asymmetric":
        raise ValueError(
            f"{NODE}.CONFUSION is {node.CONFUSION!r}, which only TYPE 'asymmetric' reads; "
            f"TYPE is {node.TYPE!r}"
        )
    if node.CONFUSION and not PathManager.isfile(node.CONFUSION):
        raise FileNotFoundError(f"{NODE}.CONFUSION: there is no file {node.CONFUSION!r}")
    if node.MANIFEST and not PathManager.isfile(node.MANIFEST):
        raise FileNotFoundError(
            f"{NODE}.MANIFEST is {node.MANIFEST!r} and there is no such file; "
            "sl-inject-noise writes one"
        )


def _common(noise: CfgNode, node: CfgNode) -> dict[str, Any]:
    return {"rate": float(noise.RATE), "seed": noise.SEED, "mode": node.MODE}


def _label_noise(cfg: CfgNode, class_names: Sequence[str] | None) -> Noise:
    node = cfg.DATASETS.LABEL_NOISE
    common = _common(node, node)
    if node.TYPE != "asymmetric":
        return SymmetricNoise(**common, include_true=node.TYPE == "symmetric_inclusive")
    by_name = load_confusion(node.CONFUSION) if node.CONFUSION else VOC_CONFUSION
    class_names = class_names or train_classes(cfg)
    try:
        return AsymmetricNoise(**common, confusion=confusion_by_id(by_name, class_names))
    except ValueError as error:
        source = node.CONFUSION or "empty: VOC's confusable pairs"
        raise ValueError(f"{NODE}.CONFUSION ({source}): {error}") from error
