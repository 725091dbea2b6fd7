"""One annotation file of a Pascal VOC folder, for every command alike."""

import math
import os
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .flaws import Flaws, whole_number

__all__ = [
    "CORNERS",
    "VOCAnnotation",
    "VOCObject",
    "class_ids_of",
    "look_alikes",
    "one_based",
    "parse_voc_xml",
    "zero_based",
]

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OBJECT_TAGS = ("object", "bndbox")
_DECLARED = re.compile(rb"""[^<]*<\?xml[^>]*encoding\s*=\s*["']([\w.-]*)""")


class VOCObject(NamedTuple):
    """One object; its box (xmin, ymin, xmax, ymax) in pixels as in the file: 1-based, inclusive."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VOCAnnotation(NamedTuple):
    """One file.

    Args:
        path: of the file
        size: (width, height) of the image in pixels as detectron2 reads it; None if neither the
            file nor the image says it
        objects: those without a flaw
        positions: of these objects among all of the file
        image: its file, as far as it was looked for; else empty
    """

    path: str
    size: tuple[int, int] | None
    objects: list[VOCObject]
    positions: list[int]
    image: str = ""


def parse_voc_xml(path: str | os.PathLike, flaws: Flaws | None = None) -> VOCAnnotation:
    """Read a VOC annotation; what training needs no more than pose or truncated may be absent.

    Args:
        path: of the XML file
        flaws: where flaws of objects are kept; None to raise them

    Raises:
        FileNotFoundError: there is no such file
        ValueError: the file is not XML, or holds objects where they are not looked for; without
            ``flaws`` also if an object lacks a name or a box
    """
    path = os.fspath(path)
    root = _parse_root(path)
    _check_places(root, path)
    kept = Flaws(path) if flaws is None else flaws
    objects, positions = [], []
    for i, element in enumerate(root.findall("object")):
        try:
            objects.append(_parse_object(element, f"{path}: object {i}", kept))
            positions.append(i)
        except ValueError as error:
            kept.add("box", error)
    if flaws is None:
        kept.settle()
    return VOCAnnotation(path, _parse_size(root), objects, positions)


def zero_based(box: Sequence[float]) -> list[float]:
    """Turn VOC's corners, 1-based and inclusive pixels, into the 0-based edges around them."""
    return [box[0] - 1.0, box[1] - 1.0, box[2], box[3]]


def one_based(box: Sequence[float]) -> list[float]:
    """Inverse of :func:`zero_based`."""
    return [box[0] + 1, box[1] + 1, box[2], box[3]]


def class_ids_of(class_names: Sequence[str]) -> dict[str, int]:
    """Return {name: id} of K names in the order of the class ids.

    Raises:
        ValueError: there is no name, or one is empty or repeats
    """
    class_ids = {name: i for i, name in enumerate(class_names)}
    repeats = len(class_ids) < len(class_names)
    if isinstance(class_names, str) or not class_ids or repeats or "" in class_ids:
        raise ValueError(f"class names must be a list of different names; got {class_names!r}")
    return class_ids


def look_alikes(class_names: Sequence[str]) -> list[str]:
    """Pairs of names that differ in case, in spaces or in Unicode's form of a letter only.

    Example:
        >>> look_alikes(["disc", "block", "Disc "])
        ["'disc' and 'Disc '"]
    """
    first: dict[str, str] = {}
    pairs = []
    for name in class_names:
        plain = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        if plain in first:
            pairs.append(f"{first[plain]!a} and {name!a}")
        first.setdefault(plain, name)
    return pairs


def _extends_ascii(data: bytes) -> bool:
    """Whether an XML file's declared encoding, if any, writes ASCII letters as ASCII does."""
    declared = _DECLARED.match(data)
    try:
        return declared is None or "<!ENTITY".encode(declared[1].decode()) == b"<!ENTITY"
    except (LookupError, UnicodeError):
        return True  # not text, or unknown: the parser reports it


def _parse_root(path: str) -> ET.Element:
    data = Path(path).read_bytes()
    # Nested entities expand to gigabytes and external ones read other files; an annotation needs
    # neither. Where ASCII letters are other bytes, as in UTF-16, the declaration is not found.
    if b"<!ENTITY" in data or b"\0" in data or not _extends_ascii(data):
        raise ValueError(f"{path}: entity declarations and UTF-16 are not accepted; save as UTF-8")
    try:
        return ET.XML(data)
    except (ET.ParseError, LookupError, ValueError) as error:
        line, column = getattr(error, "position", (1, 0))
        # The parser has no tables of Chinese, Japanese and Korean encodings.
        declared = _DECLARED.match(data)
        encoding = declared[1].decode() if declared else "UTF-8"
        is_other = encoding.upper() not in ("UTF-8", "UTF8")
        advice = f"; save it as UTF-8, it declares {encoding!r}" if is_other else ""
        if not is_other and data.decode(errors="ignore").encode() != data:
            advice = "; save it as UTF-8, which it is not"
        where = f"{path}, line {line}, column {column}"
        raise ValueError(f"{where}: not XML: {error}{advice}") from error


def _check_places(root: ET.Element, path: str) -> None:
    """Refuse objects and boxes outside their expected place: they would count as none."""
    here = root.findall("object")
    # Parts of an object have boxes too, but no object is inside of another.
    boxes = {id(element) for obj in here for element in obj.iter() if element.tag == "bndbox"}
    read = boxes | set(map(id, here))
    astray = [e for e in root.iter() if id(e) not in read and _plain(e.tag) in _OBJECT_TAGS]
    if astray or (not here and root.tag != "annotation"):
        tags = [_plain(e.tag) for e in (root, *root)]
        found = f"{len(astray)} <{astray[0].tag}> elsewhere" if astray else "none"
        raise ValueError(
            f"{path}: objects are read from <annotation><object>, and there are {len(here)}; the "
            f"file has {found} (<{root.tag}> with {', '.join(f'<{t}>' for t in tags[1:]) or 'no'})"
        )


def _plain(tag: Any) -> str:
    """An element's name without namespace, in small letters."""
    return str(tag).rpartition("}")[2].casefold()


def _parse_object(obj: ET.Element, where: str, flaws: Flaws) -> VOCObject:
    name = (obj.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{where} has no <name>")
    where += f" ({name!r})"
    corners = obj.find("bndbox")
    if corners is None:
        raise ValueError(f"{where} has no <bndbox>")
    for parent, keys in ((obj, ("name", "bndbox")), (corners, CORNERS)):
        for key in keys:
            number = len(parent.findall(key))
            if number > 1:
                flaws.note(f"objects with {number} <{key}>, of which the first is read", where)
    if (obj.findtext("deleted") or "").strip() == "1":
        flaws.note("objects that are read though <deleted> is 1", where)
    texts = {key: corners.findtext(key) for key in CORNERS}
    try:
        # Python reads "1_0" as 10, which no one means.
        numbers = ((text or "").replace("_", "?") for text in texts.values())
        xmin, ymin, xmax, ymax = map(float, numbers)
    except ValueError:
        given = ", ".join(f"{key}={text!r}" for key, text in texts.items())
        raise ValueError(f"{where} needs numbers; got {given}") from None
    finite = all(map(math.isfinite, (xmin, ymin, xmax, ymax)))
    # One pixel has xmin = xmax, as VOC counts.
    if not (finite and xmin <= xmax and ymin <= ymax):
        raise ValueError(
            f"{where} needs xmin <= xmax and ymin <= ymax; got "
            f"xmin={xmin:g}, ymin={ymin:g}, xmax={xmax:g}, ymax={ymax:g}"
        )
    return VOCObject(name, (xmin, ymin, xmax, ymax), _difficult(obj, where, flaws))


def _difficult(obj: ET.Element, where: str, flaws: Flaws) -> bool:
    """Only evaluation reads it, so that an odd spelling must not stop a training run."""
    element = obj.find("difficult")
    text = "0" if element is None else (element.text or "").strip()
    if text in ("0", "1"):
        return text == "1"
    is_difficult = text.casefold() in ("true", "yes")
    with suppress(ValueError):
        is_difficult = abs(float(text)) > 0
    flaws.note(f"<difficult> of {text!r} is read as {int(is_difficult)}", where)
    return is_difficult


def _parse_size(root: ET.Element) -> tuple[int, int] | None:
    size = root.find("size")
    if size is None:
        return None
    width, height = (whole_number(size.findtext(key)) for key in ("width", "height"))
    return None if width is None or height is None else (width, height)
