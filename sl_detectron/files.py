"""Files that appear whole or not at all, and YAML from strangers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

__all__ = ["MAX_YAML_VALUES", "load_yaml", "replacing", "write_text"]

# detectron2's own defaults have about 500 values. Aliases let a file of 1 kB stand for billions.
MAX_YAML_VALUES = 100_000


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place if all goes well.

    Args:
        path: of a file that is there or not; until the end it stays as it is

    Raises:
        OSError: it cannot be written; nothing is left behind
    """
    # One name, so that what a killed process left behind is overwritten by the next.
    partial = path.with_name(f".{path.name}.tmp")
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


def load_yaml(text: str | IO[str], loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """``yaml.safe_load`` that does not build what a small file's aliases blow up to.

    Args:
        text: a document
        loader: for rules of one's own

    Raises:
        yaml.YAMLError: it is no YAML, has tags beyond plain values, is nested too deeply, or stands
            for over :data:`MAX_YAML_VALUES` values

    Example:
        >>> load_yaml("a: &a [1, 2]\\nb: *a")
        {'a': [1, 2], 'b': [1, 2]}
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        # Before the values are made: merge keys copy what their aliases stand for.
        if _num_values(node, {}) > MAX_YAML_VALUES:
            raise yaml.YAMLError(f"it stands for over {MAX_YAML_VALUES} values")
        return reader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    finally:
        reader.dispose()


def _num_values(node: yaml.Node, known: dict[int, float]) -> float:
    """Of a node with its aliases written out; infinite where one is inside of itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_num_values(child, known) for child in children)
    return known[id(node)]
