"""The image sets of a Pascal VOC folder: which images are in a split."""

import logging
import os
from collections import Counter
from pathlib import Path, PurePath

from detectron2.utils.logger import log_first_n

from ..image_finder import is_image_name
from .flaws import MAX_LISTED

__all__ = ["read_image_set"]


def read_image_set(root: str | os.PathLike, split: str) -> list[str]:
    """Read the image ids of ``ImageSets/Main/<split>.txt``, one per line.

    Lines may be names of image files, and may have the column of a class's image set: 1, 0 or -1,
    where -1 leaves the image out.

    Raises:
        FileNotFoundError: the folder or the image set is missing
        ValueError: the set is empty or elsewhere, or an id repeats or is no path in the folder
    """
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"there is no VOC folder {os.fspath(root)}; for detectron2's own sets, set the "
            "environment variable DETECTRON2_DATASETS to the folder that holds VOC2007 and VOC2012"
        )
    if os.path.isabs(split) or ".." in PurePath(split).parts:
        raise ValueError(f"image set {split!r} leads out of {os.fspath(root)}")
    path = Path(root, "ImageSets", "Main", f"{split}.txt")
    if not path.is_file():
        raise FileNotFoundError(f"there is no image set {path}; {_image_sets(path)}")
    # Windows editors put a byte order mark before the first id.
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text, save it as UTF-8: {error}") from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ValueError(f"{path} holds no image id")
    ids = [_without_suffix(i, Path(root)) for i in _without_column(ids, path, Path(root))]
    image_id, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path} names image {image_id!r} {count} times")
    for image_id in ids:
        _check_image_id(image_id, path)
    return ids


def _image_sets(path: Path) -> str:
    """The part of a message that lists what exists instead of an image set."""
    names = sorted(p.stem for p in path.parent.glob("*.txt"))
    if not names:
        root = path.parent.parent.parent
        inside = sorted(p.parent.name for p in root.glob("*/ImageSets"))
        advice = f"; {root} has {', '.join(map(repr, inside[:5]))}: is it one of them?"
        return f"{path.parent} has none{advice if inside else ''}"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    listed = ", ".join(map(repr, names[:MAX_LISTED])) + more
    per_class = [name for name in names if name.endswith(f"_{path.stem}")]
    advice = (
        f"; those of one class each, as {per_class[0]!r}, can be given too" if per_class else ""
    )
    return f"the folder has: {listed}{advice}"


def _without_column(lines: list[str], path: Path, root: Path) -> list[str]:
    """Image ids of lines such as "000005 -1", which VOC writes for each class."""
    rows = [line.rsplit(maxsplit=1) for line in lines]
    has_column = all(len(row) == 2 and row[1] in ("-1", "0", "1", "+1") for row in rows)
    # An id may end in " 1" too.
    if not has_column or (root / "Annotations" / f"{lines[0]}.xml").is_file():
        return lines
    ids = [row[0].strip() for row in rows if row[1] != "-1"]
    if not ids:
        raise ValueError(f"{path}: all {len(rows)} images have -1 in the column of the class")
    left_out = len(rows) - len(ids)
    if left_out:
        message = f"{path}: {left_out} of {len(rows)} images have -1 and are left out"
        log_first_n(logging.WARNING, message, key="message", name=__name__)
    return ids


def _without_suffix(image_id: str, root: Path) -> str:
    """The id of a line that names an image file."""
    stem = os.path.splitext(image_id)[0]
    if os.path.isabs(stem) or ".." in PurePath(stem).parts or not is_image_name(image_id):
        return image_id
    folder = root / "Annotations"
    is_file = not (folder / f"{image_id}.xml").is_file() and (folder / f"{stem}.xml").is_file()
    return stem if is_file else image_id


def _check_image_id(image_id: str, path: Path) -> None:
    if any(character < " " for character in image_id):
        raise ValueError(f"{path}: image id {image_id!r:.80} has control characters")
    advice = ""
    if is_image_name(image_id) and len(PurePath(image_id).parts) > 1:
        advice = "; the paths of a YOLO set are not image ids: convert it (docs/data.md, YOLO)"
    if os.path.isabs(image_id) or ".." in PurePath(image_id).parts:
        raise ValueError(f"{path}: image id {image_id!r} leads out of the set's folder{advice}")
    # "./a" finds the files of "a", but detections of "a" would not be its detections.
    if image_id != str(PurePath(image_id)):
        plain = str(PurePath(image_id))
        raise ValueError(f"{path}: write image id {image_id!r} as {plain!r}{advice}")
    if advice:
        raise ValueError(f"{path}: there is no annotation for {image_id!r}{advice}")
