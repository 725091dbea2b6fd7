"""Changes written into a COCO json: the text of what changes, no other byte does."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .edits import Edit

__all__ = ["Rewrite", "coco_edits"]

_SPACE = re.compile(r"[ \t\n\r]*")
_value_at = json.JSONDecoder().raw_decode


class Rewrite(NamedTuple):
    """What happens to one annotation of the file.

    Args:
        position: of it in the file's list; None for one that is added at the end
        values: those of its keys that change, all of one that is added; None to remove it
    """

    position: int | None
    values: Mapping[str, Any] | None


class _Item(NamedTuple):
    """An element of a list, or a member of an object with its key: where its value is."""

    start: int
    end: int
    key: str = ""


def coco_edits(content: bytes, rewrites: Sequence[Rewrite]) -> list[list[Edit]]:
    """The edits that each rewrite takes.

    Args:
        content: a valid COCO json in UTF-8 with a list of annotations
        rewrites: of annotations, each removed at most once and not changed then
    """
    if not rewrites:
        return []
    # A character a byte: what is not ASCII is inside of strings.
    text = content.decode("latin-1")
    first = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    members = {m.key: m for m in _items(text, _skip(text, first))}
    start = members["annotations"].start
    items = [*_items(text, start)]
    gone = {r.position for r in rewrites if r.values is None}
    last = max((i for i in range(len(items)) if i not in gone), default=-1)
    has_one, edits = last >= 0, []
    for position, values in rewrites:
        if values is None:
            edits.append([_edit(content, _removed(items, position or 0, last), b"")])
        elif position is None:
            place = items[-1].end if items else start + 1
            before = _separator(text, items) if has_one else ""
            edits.append([Edit(place, b"", (before + json.dumps(values)).encode())])
            has_one = True
        else:
            found = {m.key: m for m in _items(text, items[position].start)}
            edits.append([_edit(content, found[key], json.dumps(value).encode())
                          for key, value in values.items()])  # fmt: skip
    return edits


def _items(text: str, start: int) -> Iterator[_Item]:
    """The elements of the list, or the members of the object, that starts there."""
    closing = {"[": "]", "{": "}"}[text[start]]
    position = _skip(text, start + 1)
    while text[position] != closing:
        key = ""
        if closing == "}":
            key, position = _value_at(text, position)
            position = _skip(text, _skip(text, position) + 1)
        _, end = _value_at(text, position)
        yield _Item(position, end, key)
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """Where the white space at a position ends."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _removed(items: Sequence[_Item], position: int, last: int) -> _Item:
    """What goes with an element: a comma beside it, so that none is left over.

    Args:
        items: of the list
        position: of the element
        last: position of the last element that stays, -1 for none
    """
    item = items[position]
    if position < last:
        return _Item(item.start, items[position + 1].start)
    return _Item(items[position - 1].end if position else item.start, item.end)


def _separator(text: str, items: Sequence[_Item]) -> str:
    return text[items[0].end : items[1].start] if len(items) > 1 else ", "


def _edit(content: bytes, item: _Item, new: bytes) -> Edit:
    return Edit(item.start, content[item.start : item.end], new)
