"""Config files from strangers: plain values only, and not more than a config can hold."""

import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..files import load_yaml

__all__ = ["merge_config_file", "refuse_lazy"]

BASE_KEY = "_BASE_"


def merge_config_file(cfg: CfgNode, config_file: str | os.PathLike) -> None:
    """``cfg.merge_from_file`` without running what a file's tags say, in place.

    Args:
        cfg: a config that can be changed
        config_file: a YAML file, with or without ``_BASE_``

    Raises:
        ValueError: the file or one of its bases is no config, has tags such as ``!!python/...``,
            names itself as its base, or stands for more values than any config has
        KeyError, AssertionError: of yacs, about a key or a value
    """
    _check(Path(config_file), ())
    cfg.merge_from_file(os.fspath(config_file), allow_unsafe=False)


def refuse_lazy(file: str | os.PathLike, advice: str) -> None:
    """Name a LazyConfig, or what its training left as config.yaml, before yacs stumbles.

    Args:
        file: a config; one that does not exist is left to what reads it
        advice: what to do, after "... is a LazyConfig, "

    Raises:
        ValueError: the file is one
    """
    path = Path(file)
    if path.suffix == ".py" or (
        path.is_file() and "_target_:" in path.read_text("utf-8", "replace")
    ):
        raise ValueError(f"{path} is a LazyConfig, {advice}")


def _check(path: Path, above: tuple[Path, ...]) -> None:
    named = f"{path} (_BASE_ of {above[-1]})" if above else f"{path}"
    if path.resolve() in {p.resolve() for p in above}:
        raise ValueError(f"{named}: a config cannot be its own base")
    if not path.is_file():
        raise ValueError(f"config file {named} does not exist")
    content = _load(path, named)
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{named} is not a config: it holds {found}, not KEY: value")
    bases = content.get(BASE_KEY, ())
    for base in bases if isinstance(bases, list | tuple) else [bases]:
        if not isinstance(base, str):
            raise ValueError(f"{named}: {BASE_KEY} must be a path; got {base!r}")
        if not base.startswith(("http://", "https://")):
            _check(path.parent / os.path.expanduser(base), (*above, path))


def _load(path: Path, named: str) -> Any:
    try:
        # Decoded here: yaml names no file for bytes that are not text.
        return load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} is not UTF-8 text: {error}") from error
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{named}{line}: refused, a config holds values only: {error.problem}"
        ) from (error)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{named} is not a config: {reason}") from error
