"""Files and folders that appear whole or not at all, strict JSON, and YAML of plain values.

Code in YAML is refused here, in pickles by :mod:`sl_detectron.checkpoint`; entity declarations in
XML by :mod:`sl_detectron.data.formats.voc_xml`. A LazyConfig is Python and cannot be refused.
"""

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "finite",
    "load_yaml",
    "new_folder",
    "refuse_to_overwrite",
    "replacing",
    "strict_json",
    "write_json",
    "write_text",
]


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes the place of this file if all goes well.

    Args:
        path: the file to be
        shared: whether other processes may write the same file meanwhile; the last one stays

    Raises:
        OSError: it cannot be written; nothing is left behind
    """
    # Else one name, so that what a killed process left behind is overwritten by the next.
    unique = f".{uuid.uuid4().hex[:8]}" if shared else ""
    partial = path.with_name(f".{path.name}{unique}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        # A folder that is gone or read-only is no second error.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 that is there as a whole or not at all, also if this is killed."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(path: Path, replaces: bool = False) -> Iterator[Path]:
    """A hidden folder beside ``path`` that becomes ``path`` if all goes well, else vanishes.

    Args:
        path: the folder to be; its parents are made
        replaces: whether ``path`` exists and is to be replaced; a link to it stays a link

    Raises:
        OSError: it cannot be written, or another process made a folder there meanwhile
    """
    # A name such as "." has no parent to work in, and a rename would move a link, not its folder.
    path = Path(os.path.realpath(path))
    unique = uuid.uuid4().hex[:8]
    partial = path.with_name(f".{path.name}.partial-{unique}")
    before = path.with_name(f".{path.name}.before-{unique}")
    partial.mkdir(parents=True)
    try:
        yield partial
        if replaces:
            path.rename(before)
        partial.rename(path)
    except BaseException:
        if before.exists() and not path.exists():
            before.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # The new folder is in place: what cannot be removed of the old one must not undo that.
    shutil.rmtree(before, ignore_errors=True)


def refuse_to_overwrite(out: Path, source: Path) -> None:
    """Refuse an output folder that exists or lies inside what it is made from.

    Links are followed: a devkit's JPEGImages/ is often one to a folder elsewhere.

    Raises:
        FileExistsError: there is anything at ``out``
        ValueError: ``out`` is inside ``source``, or inside a folder that a link in it leads to
    """
    # An empty folder would be replaced by a rename without a word.
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists; name a new folder, or remove it")
    real, root = Path(os.path.realpath(out)), os.path.realpath(source)
    # What links lead to is not walked: it may be the root of a disk.
    paths = (os.path.join(parent, name) for parent, names, _ in os.walk(root) for name in names)
    for folder in [root, *(os.path.realpath(path) for path in paths if os.path.islink(path))]:
        if real.is_relative_to(folder):
            where = "" if folder == root else f" by a link to {folder}"
            raise ValueError(
                f"{out} is inside {source}{where}, which is only read; give a folder outside"
            )


def strict_json(value: Any, **options: Any) -> str:
    """``json.dumps`` that every reader takes: a number that is not finite becomes null.

    Example:
        >>> strict_json({"loss": [float("nan"), 1.5], "class": "Säge"})
        '{"loss": [null, 1.5], "class": "Säge"}'
    """
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, **options)


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Write :func:`strict_json` and an end of line by :func:`write_text`."""
    write_text(path, strict_json(value, **options) + "\n")


def finite(value: Any) -> Any:
    """The value with None for every number in it that is not finite, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def load_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """``yaml.safe_load`` of a file by others; an alias must not hold aliases.

    detectron2's dumps have one level. With more, 1 kB can expand to billions of values.

    Raises:
        yaml.YAMLError: it is no YAML, has tags beyond plain values, an alias inside an anchored
            value, or is nested too deeply

    Example:
        >>> load_yaml("a: &a [1, 2]\\nb: *a")
        {'a': [1, 2], 'b': [1, 2]}
    """
    anchored = [False]
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.AliasEvent) and anchored[-1]:
            raise yaml.YAMLError(f"alias *{event.anchor} is inside another anchor's value")
        if isinstance(event, yaml.CollectionStartEvent):
            anchored.append(anchored[-1] or event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored.pop()
    try:
        return yaml.load(text, loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (TypeError, KeyError, AttributeError) as error:  # a tag that its value does not fit
        raise yaml.YAMLError(f"a value does not fit its tag: {error!r}") from error
