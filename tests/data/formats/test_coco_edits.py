"""Edits of a COCO json against the same changes of what it holds, whatever its white space."""

import json
import random

import pytest

from sl_detectron.data.formats.coco_edits import Rewrite, coco_edits
from sl_detectron.data.formats.edits import apply_edits, undo_edits

KEYS = {"bbox": [1.5, 2, 3, 4], "category_id": 7}


def file_of(num, rng):
    """A file with odd values, and white space that no writer makes."""
    annotations = [
        {
            "id": i,
            "note": ',]}"[{\\ ü',
            "bbox": [i, 1, 2, 3],
            "category_id": i % 3,
            "deep": [[], {}],
        }
        for i in range(num)
    ]
    head = {"info": {"annotations": [1, {"x": "]"}]}, "annotations": annotations, "ü": "é"}
    text = json.dumps(head, indent=rng.choice([None, 0, 3]), ensure_ascii=rng.random() < 0.5)
    spaced = text.replace(": ", rng.choice([": ", ":", " \t: "]))
    content = spaced.replace('": [', '":\n[').encode()
    return (b"\xef\xbb\xbf" if rng.random() < 0.3 else b"") + content


def loaded(content):
    return json.loads(content.decode("utf-8-sig"))


@pytest.mark.parametrize("seed", range(60))
def test_any_mix_of_changes(seed):
    rng = random.Random(seed)
    num = rng.choice([0, 1, 2, 3, 6])
    content = file_of(num, rng)
    expected = loaded(content)
    rewrites = []
    for position in rng.sample(range(num), rng.randint(0, num)):
        values = (
            None if rng.random() < 0.5 else dict(rng.sample([*KEYS.items()], rng.choice([1, 2])))
        )
        rewrites.append(Rewrite(position, values))
        old = expected["annotations"][position]
        expected["annotations"][position] = values and {**old, **values}
    for i in range(rng.choice([0, 0, 1, 2])):
        rewrites.append(Rewrite(None, {"id": 100 + i}))
        expected["annotations"].append({"id": 100 + i})
    expected["annotations"] = [a for a in expected["annotations"] if a is not None]
    edits = [edit for group in coco_edits(content, rewrites) for edit in group]
    edited = apply_edits(content, edits)
    assert loaded(edited) == expected
    assert undo_edits(edited, edits) == content


def test_all_else_keeps_its_bytes():
    content = b'{"annotations": [ {"id": 1.0,"bbox":[1,2,3e0,4] , "category_id": 3 } ]}\n\n'
    ((edit,),) = coco_edits(content, [Rewrite(0, {"category_id": 5})])
    assert apply_edits(content, [edit]) == content.replace(b": 3 ", b": 5 ")
    assert coco_edits(content, []) == []
