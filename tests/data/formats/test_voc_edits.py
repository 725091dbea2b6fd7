"""Edits of the bytes of an XML file, and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.label_noise_records import CLASSES, XML
from sl_detectron.data.formats.changes import Change
from sl_detectron.data.formats.edits import Edit, apply_edits, undo_edits
from sl_detectron.data.formats.voc_edits import voc_edits


@given(
    pieces=st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5), st.binary(max_size=5)))
)
def test_edits_replace_and_come_back(pieces):
    """Any file is gaps and replaced parts; the result is put together by hand."""
    original, expected, edits = b"", b"", []
    for gap, old, new in pieces:
        edits.append(Edit(len(original) + len(gap), old, new))
        original, expected = original + gap + old, expected + gap + new
    assert apply_edits(original, edits) == expected
    restored = [Edit.from_json(json.loads(json.dumps(edit.to_json()))) for edit in edits]
    assert undo_edits(expected, restored) == original


@pytest.mark.parametrize(
    "edits",
    [
        [Edit(0, b"x", b"y")],
        [Edit(0, b"ab", b""), Edit(1, b"b", b"")],
        [Edit(2, b"cd", b"")],
    ],
)
def test_edits_that_do_not_fit_are_refused(edits):
    with pytest.raises(ValueError, match="at byte"):
        apply_edits(b"abc", edits)


def test_the_first_object_of_an_empty_annotation():
    xml = b"<annotation>\n\t<size/>\n</annotation>\n"
    change = Change("a", 0, "spurious", None, {"category_id": 1, "bbox": [0.0, 0.5, 9.0, 9.0]})
    edited = apply_edits(xml, voc_edits(xml, [change], CLASSES)[0])
    assert edited.startswith(b"<annotation>\n\t<size/>\n\t<object>\n\t\t<name>dog</name>")
    assert b"<xmin>1</xmin>\n\t\t\t<ymin>1.5</ymin>\n\t\t\t<xmax>9</xmax>" in edited
    assert edited.endswith(b"</object>\n</annotation>\n")


def test_a_change_of_another_file_is_refused():
    with pytest.raises(ValueError, match="only 2 objects"):
        voc_edits(XML, [Change("a", 2, "missing", {}, None)], CLASSES)
