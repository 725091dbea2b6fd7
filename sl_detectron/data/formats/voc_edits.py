"""Changes written into VOC's XML files: only the changed values differ, no other byte."""

import re
from collections.abc import Sequence
from xml.parsers import expat
from xml.sax.saxutils import escape

from .changes import Change
from .edits import Edit
from .voc_xml import CORNERS, one_based

__all__ = ["voc_edits", "voc_object"]

# An attribute's value may hold ">".
_TAG = re.compile(rb"""<(?:[^>"']|"[^"]*"|'[^']*')*>""")
_OBJECT = """
\t<object>
\t\t<name>{}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>{}</xmin>
\t\t\t<ymin>{}</ymin>
\t\t\t<xmax>{}</xmax>
\t\t\t<ymax>{}</ymax>
\t\t</bndbox>
\t</object>"""

Span = tuple[int, int]


def voc_edits(
    xml: bytes, changes: Sequence[Change], class_names: Sequence[str]
) -> list[list[Edit]]:
    """Return for each change of an image the edits that put it into the clean XML file.

    Raises:
        ValueError: the file does not have the annotation that a change is about
    """
    objects, end = _locate(xml)
    edits = []
    for change in changes:
        if change.what == "spurious":
            name = class_names[change.new["category_id"]]
            edits.append([Edit(end, b"", voc_object(name, change.new["bbox"]))])
            continue
        if change.index >= len(objects):
            raise ValueError(f"{change}: the file has only {len(objects)} objects")
        spans = objects[change.index]
        if change.what == "label":
            name = _encode(escape(class_names[change.new]))
            edits.append([_replace(xml, spans["object/name"], name)])
        elif change.what == "box":
            edits.append(_move(xml, spans, change))
        else:
            edits.append([_replace(xml, spans["object"], b"")])
    return edits


def voc_object(name: str, box: Sequence[float]) -> bytes:
    """Return the XML of an object, its box (x0, y0, x1, y1) in pixels, 0-based edges."""
    return _encode(_OBJECT.format(escape(name), *map(_number, one_based(box))))


def _locate(xml: bytes) -> tuple[list[dict[str, Span]], int]:
    """Return the byte spans of every object and its parts, and where another could follow."""
    objects: list[dict[str, Span]] = []
    path: list[str] = []
    starts: list[int] = []
    last_end = 0
    parser = expat.ParserCreate()

    def start_element(name: str, _: dict[str, str]) -> None:
        path.append(name)
        starts.append(parser.CurrentByteIndex)
        if path[1:] == ["object"]:
            objects.append({})

    def end_element(_: str) -> None:
        nonlocal last_end
        start, end = starts.pop(), parser.CurrentByteIndex
        key = "/".join(path[1:])
        # The depth tells an object's own name and box from those of its parts.
        if key == "object":
            last_end = xml.index(b">", end) + 1
            objects[-1][key] = (len(xml[:start].rstrip()), last_end)
        elif key.startswith("object/"):
            # Of elements that come twice, parsers read the first.
            objects[-1].setdefault(key, _content(xml, start, end))
        elif not key and not last_end:
            last_end = len(xml[:end].rstrip())
        path.pop()

    parser.StartElementHandler = start_element
    parser.EndElementHandler = end_element
    parser.Parse(xml, True)
    return objects, last_end


def _content(xml: bytes, start: int, end: int) -> Span:
    """Return where the text of the element at ``start`` is, without white space around it."""
    start = next(_TAG.finditer(xml, start)).end()
    text = xml[start:end]
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def _replace(xml: bytes, span: Span, new: bytes) -> Edit:
    return Edit(span[0], xml[slice(*span)], new)


def _move(xml: bytes, spans: dict[str, Span], change: Change) -> list[Edit]:
    # A coordinate that stays keeps its text: files hold more digits than a float needs.
    old, new = (one_based(box) for box in (change.old, change.new))
    return [
        _replace(xml, spans[f"object/bndbox/{corner}"], _encode(_number(new[i])))
        for i, corner in enumerate(CORNERS)
        if new[i] != old[i]
    ]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _encode(text: str) -> bytes:
    # Character references are right in every encoding that the file may declare.
    return text.encode("ascii", "xmlcharrefreplace")
