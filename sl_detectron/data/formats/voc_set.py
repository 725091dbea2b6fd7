"""The annotations of a Pascal VOC folder, for every command alike."""

import difflib
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from ..image_finder import ImageFinder
from ..images import READ_ERRORS, image_header
from .flaws import Flaws
from .image_set import read_image_set
from .voc_xml import CORNERS, VOCAnnotation, class_ids_of, look_alikes, parse_voc_xml, zero_based

__all__ = ["OTHER_CLASSES", "check_other_classes", "read_voc_annotations"]

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
    files = ImageFinder(os.path.join(root, "Annotations"))
    for image_id in read_image_set(root, split):
        try:
            annotation = _read_one(files, split, image_id, images, require_images, found)
        except (OSError, ValueError) as error:
            found.add("image", error)
            continue
        for obj in annotation.objects:
            if obj.name not in known:
                others.setdefault(obj.name, []).append(annotation.path)
        annotations[image_id] = _without_flaws(annotation, known, found)
    found.check_boxes()
    for pair in look_alikes(class_names):
        found.note("pairs of classes that differ in case or spaces only", pair)
    _judge_classes(annotations, others, class_names, other_classes, found)
    if flaws is None:
        found.settle()
    return annotations


def _read_one(
    files: ImageFinder,
    split: str,
    image_id: str,
    images: ImageFinder,
    require_image: bool,
    flaws: Flaws,
) -> VOCAnnotation:
    """One annotation; without a size in the file it gets that of the image."""
    try:
        annotation = parse_voc_xml(Path(files.folder, f"{image_id}.xml"), flaws)
    except FileNotFoundError as error:
        alike = ", ".join(map(ascii, files.alike(image_id)))
        raise FileNotFoundError(
            f"image {image_id!r} of image set {split!r} has no annotation {error.filename}"
            + (f"; the folder has {alike}" if alike else "")
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


def check_other_classes(value: str) -> None:
    """Raise ValueError if a value is not one of ``OTHER_CLASSES``."""
    if value not in OTHER_CLASSES:
        raise ValueError(f"other_classes must be one of {OTHER_CLASSES}; got {value!r}")


def _unknown_class(name: str, class_names: Sequence[str], number: str = "") -> str:
    alike = [pair for other in class_names for pair in look_alikes([other, name])]
    if alike:
        return f"class {name!r}{number} is not in the class list; it looks like one: {alike[0]}"
    near = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
    written = "" if name.isascii() else f" (written {name!a})"
    hint = f"nearest are {', '.join(map(repr, near))}"
    if not near:
        hint = f"the list is {', '.join(map(repr, class_names))}"
    return f"class {name!r}{number}{written} is not in the class list; {hint}"
