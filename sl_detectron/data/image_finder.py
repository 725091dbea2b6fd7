"""Image files found by the ids of a VOC folder."""

import os
import unicodedata
from pathlib import PurePath

from PIL import Image

__all__ = ["ImageFinder", "is_image_name"]

# Tried first, in this order; then any other that Pillow opens.
_SUFFIXES = (".jpg", ".jpeg", ".JPG", ".JPEG", ".png")


class ImageFinder:
    """The files of a folder by image id, whatever their suffix.

    Args:
        folder: JPEGImages/ of a VOC set, or Annotations/
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._files: dict[str, dict[str, list[str]]] = {}

    def find(self, image_id: str) -> str:
        """The file with this stem, in any suffix that Pillow opens.

        Raises:
            FileNotFoundError: there is none; lists what has that stem
        """
        stem = os.path.join(self.folder, image_id)
        for suffix in _SUFFIXES:
            if os.path.isfile(stem + suffix):
                return stem + suffix
        parent, name = os.path.split(stem)
        files = self.alike(image_id)
        same = [file for file in files if os.path.splitext(file)[0] == name]
        readable = [file for file in same if is_image_name(file)]
        if readable:
            return os.path.join(parent, min(readable))
        tried = f"no {stem}.jpg, nor one with another suffix that Pillow opens, in either case"
        found = f"; the folder has {', '.join(map(ascii, files))}" if files else ""
        raise FileNotFoundError(f"image {image_id!r} has an annotation but {tried}{found}")

    def alike(self, image_id: str) -> list[str]:
        """Files of this stem, in any case, Unicode form and suffix."""
        parent, name = os.path.split(os.path.join(self.folder, image_id))
        return self._listing(parent).get(_plain(name), [])

    def _listing(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._files:
            by_stem: dict[str, list[str]] = {}
            self._files[folder] = by_stem
            for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                by_stem.setdefault(_plain(os.path.splitext(file)[0]), []).append(file)
        return self._files[folder]


def _plain(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def is_image_name(name: str) -> bool:
    """Whether Pillow opens files of this suffix, in either case."""
    known = Image.registered_extensions()
    return known.get(PurePath(name).suffix.lower()) in Image.OPEN
