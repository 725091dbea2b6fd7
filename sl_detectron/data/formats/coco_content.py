"""What a COCO json file has beside annotations: its parts, categories, images and their sizes."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..images import READ_ERRORS, image_header
from .coco_fields import Id, is_text, plain_id
from .flaws import Flaws, whole_number
from .voc_xml import class_ids_of, look_alikes

__all__ = ["json_object", "missing_images", "parse_coco", "read_categories", "read_images"]

_PARTS = ("categories", "images", "annotations")
_WITHOUT_ANNOTATIONS = {"images", "categories", "info", "licenses", "type"}
# Folders beside the file that are searched for its images if none is given.
_FOLDERS = (".", "images")


def parse_coco(path: Path, content: bytes) -> dict[str, Any]:
    """The object that a COCO json holds, with lists of objects as its parts.

    Raises:
        ValueError: it is no COCO json in UTF-8
    """
    try:
        data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=json_object)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a COCO json: it is not UTF-8, save it as UTF-8: {error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a COCO json: {error!r}") from error
    if not isinstance(data, dict):
        found = f"it holds a {type(data).__name__}"
        raise ValueError(f"{path} is not a COCO json: {found}, not an object with {_PARTS}")
    for key in _PARTS:
        if key == "annotations" and data.keys() <= _WITHOUT_ANNOTATIONS:
            continue
        if key not in data:
            raise ValueError(f"{path} is not a COCO json: KeyError({key!r}); it has {[*data]}")
        if not isinstance(data[key], list):
            kind = type(data[key]).__name__
            raise ValueError(f"{path} is not a COCO json: {key} is a {kind}, not a list")
        for i, entry in enumerate(data[key]):
            if not isinstance(entry, dict):
                what = f"{key}[{i}] is {entry!r:.80}"
                raise ValueError(f"{path} is not a COCO json: {what}, not an object")
    return data


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object, as ``object_pairs_hook``; ValueError for a key that comes twice.

    All its values but one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        key, number = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the key {key!r:.80} {number} times")
    return found


def read_categories(
    path: Path, categories: Sequence[Mapping[str, Any]], flaws: Flaws
) -> tuple[list[Any], dict[Id, int], list[str]]:
    """Ids as in the file, {plain id: class id} and names, all in the order of the class ids.

    Raises:
        ValueError: an id or a name is missing or repeats; names that look alike are noted
    """
    ids: dict[Id, Any] = {}
    for i, category in enumerate(categories):
        plain = plain_id(category.get("id"))
        # An empty name is refused with the others, below.
        if plain is None or not (category.get("name") == "" or is_text(category.get("name"))):
            raise ValueError(
                f"{path} is not a COCO json: categories[{i}] needs an id and a name; got "
                f"{category!r:.200}"
            )
        if plain in ids:
            raise ValueError(f"{path}: two categories have the id {plain!r:.80}")
        ids[plain] = category
    if len({type(i) for i in ids}) > 1:
        raise ValueError(f"{path}: the ids of categories are numbers and names: {[*ids]!r:.200}")
    order = sorted(ids, key=lambda i: (str(type(i)), i))
    names = [ids[i]["name"] for i in order]
    try:
        class_ids_of(names)
    except ValueError as error:
        raise ValueError(f"{path}: categories: {error}") from error
    for pair in look_alikes(names):
        flaws.note("pairs of classes that differ in case or spaces only", pair)
    return [ids[i]["id"] for i in order], {old: new for new, old in enumerate(order)}, names


def read_images(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    image_root: str | os.PathLike | None,
    flaws: Flaws,
) -> dict[Id, dict[str, Any]]:
    """{plain id: image in plain form}, with a height and a width as far as they are known.

    Args:
        path: of the json
        entries: its images
        image_root: as :class:`~.coco_json.CocoFile` takes it
        flaws: takes what is found

    Raises:
        ValueError: some ids are numbers, others names
    """
    images: dict[Id, dict[str, Any]] = {}
    for i, image in enumerate(entries):
        where = f"{path}: images[{i}]"
        plain, name = plain_id(image.get("id")), image.get("file_name")
        if plain is None or not is_text(name):
            error = f"{where} needs an id and a file_name; got {image!r:.200}"
            flaws.add("image", ValueError(error))
        elif plain in images:
            flaws.add("image", ValueError(f"{where}: two images have the id {plain!r:.80}"))
        else:
            size = _size(image, path, image_root, f"{where} ({name!r:.200})", flaws)
            rest = {k: v for k, v in image.items() if k not in ("height", "width")}
            images[plain] = {**rest, "id": plain, **size}
    if len({type(i) for i in images}) > 1:
        raise ValueError(f"{path}: some ids of images are numbers, others names")
    files = Counter(image["file_name"] for image in images.values())
    for name, number in files.items():
        if number > 1:
            text = "images that share a file with another, so that each has a part of the objects"
            flaws.note(text, f"{path}: {name!r:.200}", number)
    return images


def _size(
    image: Mapping[str, Any],
    path: Path,
    image_root: str | os.PathLike | None,
    where: str,
    flaws: Flaws,
) -> dict[str, int]:
    """Height and width; those of the image file where the json has none."""
    height, width = (whole_number(image.get(key)) for key in ("height", "width"))
    if height is not None and width is not None:
        return {"height": height, "width": width}
    roots = [path.parent / folder for folder in _FOLDERS] if image_root is None else [image_root]
    files = [os.path.join(root, image["file_name"]) for root in roots]
    if image_root is None:
        files = [file for file in files if os.path.isfile(file)]
    if not files:
        text = "images without height and width, and not beside the json, so that boxes outside "
        flaws.note(text + "of them are not found (say where they are: --images)", where)
        return {}
    try:
        header = image_header(files[0])
    except READ_ERRORS as error:
        text = f"{where} has no height and width, and cannot be read: {error}"
        flaws.add("image", ValueError(text))
        return {}
    flaws.note("images without height and width, so the files are read", where)
    return {"height": header.height, "width": header.width}


def missing_images(
    path: Path, image_root: str | os.PathLike | None, file_names: Mapping[Id, str], flaws: Flaws
) -> list[Id]:
    """Keep as flaws the images that are not in the folder; returns the ids of those to leave out.

    Args:
        path: of the json
        image_root: folder of its images; nothing is looked for in a remote store, or without one
        file_names: {plain id: file name}
        flaws: takes what is found; that none is there is one flaw
    """
    if image_root is None or "://" in os.fspath(image_root):
        return []
    folders: dict[str, set[str]] = {}
    missing: dict[Id, str] = {}
    for image_id, file_name in file_names.items():
        file = os.path.join(image_root, file_name)
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = {*os.listdir(folder)} if os.path.isdir(folder) else set()
        if name not in folders[folder]:
            missing[image_id] = file
    if missing and len(missing) == len(file_names):
        first = next(iter(missing.values()))
        have = ", ".join(sorted(folders[os.path.dirname(first)])[:5]) or "nothing"
        error = f"{path}: none of its {len(missing)} images is there; the first would be "
        flaws.add("class", FileNotFoundError(error + f"{first}, and that folder has {have}"))
        return []
    for image_id, file in missing.items():
        flaws.add("image", FileNotFoundError(f"{path}: image {image_id!r:.80} has no file {file}"))
    return [*missing]
