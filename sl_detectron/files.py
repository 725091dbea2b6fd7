"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing", "write_text"]


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
