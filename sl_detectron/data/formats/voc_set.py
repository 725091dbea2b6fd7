"""The image sets of a Pascal VOC folder and their annotations, for every command alike."""

import difflib
import logging
import os
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path, PurePath

from detectron2.utils.logger import log_first_n

from ..images import READ_ERRORS, ImageFinder, image_header, is_image_name
from .flaws import MAX_LISTED, Flaws
from .voc_xml import CORNERS, VOCAnnotation, class_ids_of, parse_voc_xml, zero_based

__all__ = ["OTHER_CLASSES", "check_other_classes", "read_image_set", "read_voc_annotations"]

# What an object whose class is not in the list does.
OTHER_CLASSES = ("error", "ignore")


def read_voc_annotations(
    root: str | os.PathLike,
    split: str,
    class_names: Sequence[str],
    other_classes: str = "error",
    *,
    bad_annotations: str = "error",
    require_images: bool = False,
    flaws: Flaws | None = None,
) -> dict[str, VOCAnnotation]:
    """Read the annotations of a split from disk, without any cache.

    Args:
        root: holds Annotations/ and ImageSets/Main/
        split: an image set
        class_names: of the objects to read
        other_classes: whether an object of another class is an "error", or left out with a warning
            that counts them: "ignore"
        bad_annotations: whether flaws are an "error", or what has them is left out and counted:
            "skip"
        require_images: whether an annotation without an image is a flaw
        flaws: takes what is found, in place of ``bad_annotations``; the caller settles it

    Returns:
        {image id: annotation} in the order of the image set

    Raises:
        FileNotFoundError: a folder, the image set or an annotation is missing
        ValueError: the image set or an annotation is wrong, or no object is of the classes
    """
    check_other_classes(other_classes)
    found = flaws or Flaws(f"image set {split!r} of {os.fspath(root)}", bad_annotations)
    known = class_ids_of(class_names)
    annotations: dict[str, VOCAnnotation] = {}
    others: dict[str, list[str]] = {}
    images = ImageFinder(os.path.join(root, "JPEGImages"))
    for image_id in read_image_set(root, split):
        try:
            annotation = _read_one(Path(root), split, image_id, images, require_images, found)
        except (OSError, ValueError) as error:
            found.add("image", error)
            continue
        for obj in annotation.objects:
            if obj.name not in known:
                others.setdefault(obj.name, []).append(annotation.path)
        annotations[image_id] = _without_flaws(annotation, known, found)
    found.check_boxes()
    _judge_classes(annotations, others, class_names, other_classes, found)
    if flaws is None:
        found.settle()
    return annotations


def _read_one(
    root: Path, split: str, image_id: str, images: ImageFinder, require_image: bool, flaws: Flaws
) -> VOCAnnotation:
    """One annotation; its size is that of the image where the file says none."""
    try:
        annotation = parse_voc_xml(root / "Annotations" / f"{image_id}.xml", flaws)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"image {image_id!r} of image set {split!r} has no annotation {error.filename}"
        ) from None
    size, image = annotation.size, ""
    if require_image or size is None:
        try:
            image = images.find(image_id)
        except FileNotFoundError:
            if require_image:
                raise
    if size is None and image:
        try:
            size = image_header(image)[:2]
        except READ_ERRORS as error:
            raise ValueError(
                f"{annotation.path}: there is no <size> with width and height, and {image} cannot "
                f"be read: {error}"
            ) from error
    if annotation.size is None:
        source = "the images are read" if image else "no size is known"
        flaws.note(f"files without a <size> of at least 1 x 1 pixel, so {source}", annotation.path)
    return annotation._replace(size=size, image=image)


def _without_flaws(annotation: VOCAnnotation, known: Container[str], flaws: Flaws) -> VOCAnnotation:
    """The annotation with those of its objects that are of known classes and in the image."""
    objects, positions = [], []
    for obj, position in zip(annotation.objects, annotation.positions):
        where = f"{annotation.path}: object {position} ({obj.name!r})"
        given = ", ".join(f"{key}={x:g}" for key, x in zip(CORNERS, obj.box))
        try:
            flaws.check_box(where, given, obj.box, zero_based(obj.box), annotation.size)
        except ValueError as error:
            flaws.add("box", error)
            continue
        if obj.name in known:
            objects.append(obj)
            positions.append(position)
    return annotation._replace(objects=objects, positions=positions)


def _judge_classes(
    annotations: Mapping[str, VOCAnnotation],
    others: Mapping[str, Sequence[str]],
    class_names: Sequence[str],
    other_classes: str,
    flaws: Flaws,
) -> None:
    """Keep as flaws, or note, what the class list does not have, or all that is there."""
    counts = ", ".join(f"{name!r} ({len(paths)})" for name, paths in sorted(others.items()))
    if others and not any(a.objects for a in annotations.values()):
        listed = ", ".join(map(repr, class_names))
        error = f"{flaws.where} has no object of the classes {listed}; it has {counts}"
        flaws.add("class", ValueError(f"{error}: give the set's class list"))
    elif others and other_classes == "ignore":
        flaws.note(
            f"objects of classes outside the class list are ignored, {counts}",
            next(iter(others.values()))[0],
            sum(map(len, others.values())),
        )
    elif others:
        for name, paths in others.items():
            number = f" ({len(paths)} objects)" if len(paths) > 1 else ""
            unknown = _unknown_class(name, class_names, number)
            flaws.add("class", ValueError(f"{paths[0]}: {unknown}"))
    elif annotations and not any(a.objects for a in annotations.values()):
        first = next(iter(annotations.values())).path
        flaws.note(
            "images without any object, so the set has none; <annotation><object> is read",
            first,
            len(annotations),
        )


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
    """What a message says is there instead of an image set."""
    names = sorted(p.stem for p in path.parent.glob("*.txt"))
    if not names:
        return f"{path.parent} has none"
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
    advice = ""
    if is_image_name(image_id) and len(PurePath(image_id).parts) > 1:
        advice = "; the paths of a YOLO set are no image ids: convert it (docs/data.md, YOLO)"
    if os.path.isabs(image_id) or ".." in PurePath(image_id).parts:
        raise ValueError(f"{path}: image id {image_id!r} leads out of the set's folder{advice}")
    # "./a" finds the files of "a", but detections of "a" would not be its detections.
    if image_id != str(PurePath(image_id)):
        plain = str(PurePath(image_id))
        raise ValueError(f"{path}: write image id {image_id!r} as {plain!r}{advice}")
    if advice:
        raise ValueError(f"{path}: there is no annotation for {image_id!r}{advice}")


def check_other_classes(value: str) -> None:
    """Raise ValueError if a value is not one of ``OTHER_CLASSES``."""
    if value not in OTHER_CLASSES:
        raise ValueError(f"other_classes must be one of {OTHER_CLASSES}; got {value!r}")


def _unknown_class(name: str, class_names: Sequence[str], number: str = "") -> str:
    near = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
    hint = f"nearest are {', '.join(map(repr, near))}"
    if not near:
        hint = f"the list is {', '.join(map(repr, class_names))}"
    return f"class {name!r}{number} is not in the class list; {hint}"
