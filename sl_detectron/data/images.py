"""Image files: their size as detectron2 reads it, and those that it cannot read right.

detectron2 turns an image as its EXIF orientation says, and takes every mode that Pillow opens for
8 bits a channel. Here an image is checked before that, wherever one is read: in training, tests,
audits and pictures.
"""

import logging
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import detection_utils
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image

__all__ = [
    "BROKEN_IMAGES",
    "READ_ERRORS",
    "BrokenImage",
    "CheckedImages",
    "broken_image",
    "check_image",
    "image_header",
    "image_name",
    "read_image",
    "warn_of_turned",
]

# What an image does that cannot be read.
BROKEN_IMAGES = ("error", "skip")
# Headers that a warning about a set reads.
_MOST_HEADERS = 5000
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNED = (5, 6, 7, 8)  # values that exchange width and height


class BrokenImage(ValueError):
    """An image that is missing, cut off or does not match its annotation; names id and file."""


# What reading such an image raises; SyntaxError is Pillow's word for a broken PNG.
READ_ERRORS = (
    *(OSError, SyntaxError, EOFError, struct.error, zlib.error),
    *(SizeMismatchError, Image.DecompressionBombError, BrokenImage),
)


class ImageHeader(NamedTuple):
    """The header of an image file: size in pixels as detectron2 reads it, and as stored."""

    width: int
    height: int
    stored: tuple[int, int]
    orientation: int
    mode: str

    @property
    def is_turned(self) -> bool:
        """Whether detectron2 turns or mirrors what is stored."""
        return self.orientation > 1


def image_header(path: str | os.PathLike) -> ImageHeader:
    """Read the header of an image file.

    Raises:
        READ_ERRORS: it is missing or no image
    """
    with PathManager.open(os.fspath(path), "rb") as file:
        image = Image.open(file)
        given = image.getexif().get(_ORIENTATION)
        # It may be any type; values that detectron2 does not support do not rotate the image.
        orientation = next((known for known in range(2, 9) if known == given), 1)
        width, height = image.size
        mode = image.mode
    turned = (height, width) if orientation in _TURNED else (width, height)
    return ImageHeader(*turned, (width, height), orientation, mode)


def check_image(record: Mapping[str, Any]) -> None:
    """Refuse an image that detectron2 would read as something else than its annotation is of.

    Args:
        record: with file_name, and width and height if they are known

    Raises:
        BrokenImage: it is missing or no image, has other channels than of 8 bits, or another size
    """
    if not isinstance(record.get("file_name"), str | os.PathLike):
        raise broken_image(record, "it has no file_name")
    try:
        header = image_header(record["file_name"])
    except READ_ERRORS as error:
        raise broken_image(record, error) from error
    wrong = _mode_flaw(header.mode) or _size_flaw(header, record)
    if wrong:
        raise broken_image(record, wrong)


def warn_of_turned(records: Sequence[Mapping[str, Any]], where: str) -> None:
    """Count the images that detectron2 turns; only headers are read, some 0.1 ms each.

    Of a large set 5,000 to 10,000 are read, evenly spread: all would take seconds to minutes.

    Args:
        records: with file_name; what cannot be read, or is in a remote store, is not counted
        where: what they are of, in the message
    """
    # A stream would be used up.
    if not comm.is_main_process() or not isinstance(records, list):
        return
    turned = []
    looked_at = records[:: max(len(records) // _MOST_HEADERS, 1)]
    for record in looked_at:
        with suppress(KeyError, TypeError, *READ_ERRORS):
            if "://" in os.fspath(record["file_name"]):
                continue
            header = image_header(record["file_name"])
            if header.is_turned:
                turned.append(f"{record['file_name']}, orientation {header.orientation}")
    if turned:
        message = f"{where}: images that their EXIF orientation turns, so boxes must be those of "
        of = f" of {len(looked_at)} looked at" if len(looked_at) < len(records) else ""
        message += f"the turned image: {len(turned)}{of} (the first: {turned[0]})"
        log_first_n(logging.WARNING, message, key="message", name=__name__)


def _mode_flaw(mode: str) -> str:
    if mode[0] not in "IF":
        return ""
    bits = "16-bit or 32-bit" if mode[0] == "I" else "float"
    return (
        f"its pixels are {bits} (mode {mode}), which are read as all white or all black; convert "
        "it to 8 bits a channel"
    )


def _size_flaw(header: ImageHeader, record: Mapping[str, Any]) -> str:
    given = (record.get("width"), record.get("height"))
    if not all(given) or given == (header.width, header.height):
        return ""
    has = f"{header.stored[0]} x {header.stored[1]}"
    if header.orientation in _TURNED and given == header.stored:
        return (
            f"its EXIF orientation {header.orientation} turns it from {has} to {header.width} x "
            f"{header.height} pixels, and its annotation is of the stored {has}: remove the "
            "orientation from the file, not from the annotation (exiftool -Orientation= FILE)"
        )
    has = f"{header.width} x {header.height}"
    return f"it has {has} pixels, but its annotation has {given[0]} x {given[1]}"


def image_name(record: Any) -> Any:
    """What messages call an image: its id, or its file where it has none."""
    return record.get("image_id", record.get("file_name")) if isinstance(record, Mapping) else None


def broken_image(record: Mapping[str, Any], reason: Exception | str) -> BrokenImage:
    """The error for a record's image, in one line."""
    if isinstance(reason, BrokenImage):
        return reason
    text = " ".join(str(reason).split()) or type(reason).__name__
    return BrokenImage(
        f"image {image_name(record)!r}, {record.get('file_name')}: {text}; repair it, or set "
        "DATALOADER.BROKEN_IMAGES skip to leave such images out"
    )


def read_image(record: Mapping[str, Any], image_format: str) -> np.ndarray:
    """The image of a record, (H, W, 3) uint8, after :func:`check_image`.

    Args:
        record: a dataset dict
        image_format: "RGB" or "BGR"

    Raises:
        BrokenImage: as :func:`check_image`, or it is cut off
    """
    check_image(record)
    try:
        return detection_utils.read_image(record["file_name"], image_format)
    except READ_ERRORS as error:
        raise broken_image(record, error) from error


class CheckedImages:
    """:func:`check_image` before a mapper that reads images as detectron2 does."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]):
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        """What the mapper makes of the record.

        Raises:
            BrokenImage: as :func:`check_image`
        """
        check_image(record)
        return self.mapper(record)
