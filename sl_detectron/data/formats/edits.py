"""Edits of files: what they are about changes, no other byte does, and they can be undone.

Rewriting a file through a parser loses white space and number formats. An edit replaces bytes at
an offset instead, and stores what it replaced.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Edit", "apply_edits", "undo_edits"]


@dataclass(frozen=True)
class Edit:
    """Replace ``old`` by ``new`` at byte ``start`` of the original file."""

    start: int
    old: bytes
    new: bytes

    def to_json(self) -> list[Any]:
        """Return [start, old, new], one character per byte."""
        return [self.start, self.old.decode("latin-1"), self.new.decode("latin-1")]

    @classmethod
    def from_json(cls, value: list[Any]) -> "Edit":
        """Inverse of :meth:`to_json`."""
        start, old, new = value
        return cls(start, old.encode("latin-1"), new.encode("latin-1"))


def apply_edits(original: bytes, edits: Iterable[Edit]) -> bytes:
    """Return the edited file.

    Args:
        original: content of the file
        edits: in any order, but those at the same place in order of appearance

    Raises:
        ValueError: edits overlap, or the file does not have what an edit replaces

    Example:
        >>> edits = [Edit(4, b"dog", b"horse"), Edit(0, b"a", b"the")]
        >>> apply_edits(b"a   dog", edits)
        b'the   horse'
        >>> undo_edits(b'the   horse', edits)
        b'a   dog'
    """
    pieces, position = [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        end = edit.start + len(edit.old)
        if edit.start < position or original[edit.start : end] != edit.old:
            raise ValueError(f"at byte {edit.start} there is no {edit.old!r} to replace")
        pieces += [original[position : edit.start], edit.new]
        position = end
    return b"".join([*pieces, original[position:]])


def undo_edits(edited: bytes, edits: Iterable[Edit]) -> bytes:
    """Inverse of :func:`apply_edits`, with the same edits.

    Raises:
        ValueError: the file does not have what an edit put there
    """
    inverse, shift = [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        inverse.append(Edit(edit.start + shift, edit.new, edit.old))
        shift += len(edit.new) - len(edit.old)
    return apply_edits(edited, inverse)
