"""The shipped configs by name, as detectron2's model zoo does for its own."""

from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from .config import add_superloss_config

__all__ = ["get_config", "get_config_file"]


def get_config_file(name: str) -> str:
    """Path of a shipped config.

    Args:
        name: relative to ``configs/``

    Returns:
        the file's path

    Raises:
        ValueError: there is no such config; the message lists those that are

    Example:
        >>> Path(get_config_file("Toy/faster_rcnn.yaml")).name
        'faster_rcnn.yaml'
    """
    package = Path(__file__).parent
    # In a wheel the configs are part of the package; in a checkout they stand beside it.
    root = next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
    if not (root / name).is_file():
        known = sorted(
            str(p.relative_to(root)) for p in root.rglob("*.yaml") if not p.name.startswith("Base-")
        )
        raise ValueError(f"there is no config {name!r}; choose one of {known}")
    return str(root / name)


def get_config(name: str) -> CfgNode:
    """A shipped config, merged over the defaults of detectron2 and sl_detectron.

    Args:
        name: relative to ``configs/``

    Returns:
        a config that can still be changed

    Raises:
        ValueError: there is no such config
    """
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    return cfg
