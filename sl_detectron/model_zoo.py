"""The shipped configs by name, as detectron2's model zoo does for its own."""

import difflib
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from .config import add_superloss_config

__all__ = ["find_config", "get_config", "get_config_file"]


def find_config(path: str) -> str:
    """Path of what a command line names as its config: a file, or a shipped config.

    The name of a shipped one may have ``configs/`` before it; "" stays "".

    Raises:
        ValueError: there is neither; the message names the nearest
    """
    if not path or Path(path).is_file():
        return path
    return get_config_file(path.removeprefix("configs/"))


def get_config_file(name: str) -> str:
    """Path of a shipped config.

    Args:
        name: relative to ``configs/``

    Raises:
        ValueError: there is no such config; the message names the nearest

    Example:
        >>> Path(get_config_file("Toy/faster_rcnn.yaml")).name
        'faster_rcnn.yaml'
    """
    package = Path(__file__).parent
    # In a wheel the configs are part of the package; in a checkout they stand beside it.
    root = next(p for p in (package / "configs", package.parent / "configs") if p.is_dir())
    if not (root / name).is_file():
        known = sorted(
            p.relative_to(root).as_posix()
            for p in (*root.rglob("*.yaml"), *root.rglob("*.py"))
            if not p.name.startswith(("Base-", "__"))
        )
        near = difflib.get_close_matches(name, known, n=3, cutoff=0)
        raise ValueError(
            f"there is no file and no shipped config {name!r}; did you mean {', '.join(near)}? "
            f"All that are shipped are in {root}"
        )
    return str(root / name)


def get_config(name: str) -> CfgNode:
    """A shipped config, merged over the defaults of detectron2 and sl_detectron, not yet frozen.

    Args:
        name: relative to ``configs/``

    Raises:
        ValueError: there is no such config
    """
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.merge_from_file(get_config_file(name), allow_unsafe=False)
    return cfg
