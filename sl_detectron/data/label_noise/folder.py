"""Folders that appear under their name only when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["complete_or_nothing", "refuse_to_overwrite"]


@contextmanager
def complete_or_nothing(out: Path, replaces: bool = False) -> Iterator[Path]:
    """Give a hidden folder beside ``out`` that becomes ``out`` if all goes well, else vanishes.

    Args:
        out: the folder to be; its parents are made
        replaces: whether ``out`` exists and is to be replaced
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        # mkdtemp makes it private; the copy shall be as readable as any new folder.
        partial.chmod(0o777 & ~_umask())
        yield partial
        if replaces:
            before = partial.with_name(partial.name.replace(".partial-", ".before-"))
            out.rename(before)
            partial.rename(out)
            shutil.rmtree(before)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_to_overwrite(out: Path) -> None:
    """Raise FileExistsError if there is anything at ``out``."""
    # An empty folder would be replaced by a rename without a word.
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists; give the name of a new folder, or remove it")
