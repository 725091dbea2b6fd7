"""Folders that appear under their name only when they are complete."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "complete_or_nothing",
    "refuse_to_overwrite",
    "MANIFEST",
    "DESCRIPTION",
    "PICTURE",
    "OWN_FILES",
]

MANIFEST = "manifest.jsonl"
DESCRIPTION = "noise.json"
PICTURE = "confusion.png"
# What a noisy copy holds beside the files of its source.
OWN_FILES = (MANIFEST, DESCRIPTION, PICTURE)


@contextmanager
def complete_or_nothing(out: Path, replaces: bool = False) -> Iterator[Path]:
    """Give a hidden folder beside ``out`` that becomes ``out`` if all goes well, else vanishes.

    Args:
        out: the folder to be; its parents are made
        replaces: whether ``out`` exists and is to be replaced; a link to it stays a link
    """
    # A name such as "." has no parent to work in, and a rename would move a link, not its folder.
    out = Path(os.path.realpath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        # mkdtemp makes it private; the copy shall be as readable as any new folder.
        partial.chmod(0o777 & ~_umask())
        yield partial
        if replaces:
            _replace(out, partial)
        else:
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(out: Path, partial: Path) -> None:
    before = partial.with_name(partial.name.replace(".partial-", ".before-"))
    try:
        out.rename(before)
        partial.rename(out)
    except BaseException:
        if not os.path.lexists(out):
            before.rename(out)
        raise
    # The new folder is in place: what cannot be removed of the old one must not undo that.
    shutil.rmtree(before, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_to_overwrite(out: Path, source: Path) -> None:
    """Refuse an output folder that exists or lies inside what it is made from.

    Links are followed: a devkit's JPEGImages/ is often one to a folder elsewhere.

    Args:
        out: the folder to be
        source: a file or a folder

    Raises:
        FileExistsError: if there is anything at ``out``
        ValueError: if ``out`` is inside ``source``, or inside of a folder that a link in it leads
            to
    """
    # An empty folder would be replaced by a rename without a word.
    if os.path.lexists(out):
        raise FileExistsError(f"{out} exists; give the name of a new folder, or remove it")
    real = Path(os.path.realpath(out))
    for folder in _real_folders(source):
        if real.is_relative_to(folder):
            where = "" if folder == os.path.realpath(source) else f" by a link to {folder}"
            raise ValueError(
                f"{out} is inside {source}{where}, which is only read; give a folder outside"
            )


def _real_folders(source: Path) -> Iterator[str]:
    """Yield the real paths of the source and of all folders that links in it lead to.

    What is below those is not walked: a link may lead to the root of a disk.
    """
    root = os.path.realpath(source)
    yield root
    for parent, folders, _ in os.walk(root):
        paths = (os.path.join(parent, name) for name in folders)
        yield from (os.path.realpath(path) for path in paths if os.path.islink(path))
