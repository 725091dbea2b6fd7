"""The pure core: what noise depends on, and what stays as it was."""

import copy
import json
import math
import os
import random
import struct
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from detectron2.structures import BoxMode

from helpers.label_noise_records import NUM_CLASSES, labels, make_records
from sl_detectron.data.formats.changes import Change
from sl_detectron.data.formats.manifest import manifest_lines, read_manifest
from sl_detectron.label_noise import (
    BoxJitter,
    MissingAnnotations,
    SpuriousBoxes,
    SymmetricNoise,
    inject,
)
from sl_detectron.label_noise.injection import apply_changes

ALL_NOISES = (
    SymmetricNoise(rate=0.4, seed=3),
    BoxJitter(rate=0.3, seed=3),
    MissingAnnotations(rate=0.2, seed=3),
    SpuriousBoxes(rate=0.2, seed=3),
)


def manifest(changes):
    names = [f"class{i}" for i in range(NUM_CLASSES)]
    return "\n".join(json.dumps(line) for line in manifest_lines(changes, names, "set"))


def inject_all(records):
    return inject(records, ALL_NOISES, NUM_CLASSES, "set")[1]


def test_draws_are_the_documented_hash():
    """The noise of an image can be computed by anyone from the hash in the module's docstring."""
    records = make_records(num_images=20)
    noisy, _ = inject(records, [SymmetricNoise(rate=0.5, seed=7)], NUM_CLASSES, "voc")
    for record, result in zip(records, noisy):
        for index, annotation in enumerate(record["annotations"]):
            key = json.dumps(["symmetric", 7, "voc", record["image_id"]]) + str(index)
            decision, choice = struct.unpack("<5Q", blake2b(key.encode(), digest_size=40).digest())[
                :2
            ]
            others = [c for c in range(NUM_CLASSES) if c != annotation["category_id"]]
            wrong = others[choice * len(others) // 2**64]
            expected = wrong if decision / 2**64 < 0.5 else annotation["category_id"]
            assert result["annotations"][index]["category_id"] == expected


def test_order_of_the_set_does_not_matter():
    records = make_records()
    shuffled = random.Random(1).sample(records, len(records))
    assert manifest(inject_all(records)) == manifest(inject_all(shuffled))
    exact = [SymmetricNoise(rate=0.4, mode="exact")]
    assert inject(records, exact, NUM_CLASSES)[1] == inject(shuffled, exact, NUM_CLASSES)[1]


def test_bernoulli_noise_does_not_depend_on_the_other_images():
    records = make_records()
    whole = inject(records, ALL_NOISES, NUM_CLASSES, "set")[0]
    for i in (0, 17, 199):
        assert inject([records[i]], ALL_NOISES, NUM_CLASSES, "set")[0] == [whole[i]]


@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_manifest_is_the_same_for_any_number_of_workers(num_workers):
    records = make_records()
    chunks = [records[i::num_workers] for i in range(num_workers)]
    with ProcessPoolExecutor(num_workers) as pool:
        changes = [change for part in pool.map(inject_all, chunks) for change in part]
    changes.sort(key=lambda change: (change.image_id, change.index, change.what))
    assert manifest(changes).encode() == manifest(inject_all(records)).encode()


def test_python_hash_seed_does_not_matter(capsys):
    """This process has one, the other process another."""
    script = (
        "from sl_detectron.label_noise import inject, SymmetricNoise, AsymmetricNoise\n"
        "records = [{'image_id': str(i), 'annotations': [{'category_id': i % 3}]}"
        " for i in range(300)]\n"
        "confusion = {0: {1: 0.3, 2: 0.7}}\n"
        "noises = [SymmetricNoise(rate=0.4), AsymmetricNoise(rate=0.5, confusion=confusion)]\n"
        "print(inject(records, noises, 3, 'set'))"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    exec(script, {})
    here = capsys.readouterr().out
    assert len(here) > 300
    assert here == other.stdout


@pytest.mark.parametrize("part", ["seed", "name", "image_id"])
def test_every_part_of_the_identity_changes_the_noise(part):
    records = make_records(num_images=50)
    noise, name = SymmetricNoise(rate=0.5), "a"
    reference = list(labels(inject(records, [noise], NUM_CLASSES, name)[0]).values())
    if part == "seed":
        noise = SymmetricNoise(rate=0.5, seed=1)
    elif part == "name":
        name = "b"
    else:
        records = [{**r, "image_id": "x" + r["image_id"]} for r in records]
    assert list(labels(inject(records, [noise], NUM_CLASSES, name)[0]).values()) != reference


def test_numbers_and_strings_are_the_same_image():
    numbered = [{**r, "image_id": i} for i, r in enumerate(make_records())]
    named = [{**r, "image_id": np.str_(r["image_id"])} for r in numbered]
    a, b = (inject(rs, ALL_NOISES, NUM_CLASSES)[1] for rs in (numbered, named))
    by_key = lambda changes: {(str(c.image_id), c.index, c.what): c.new for c in changes}  # noqa: E731
    assert by_key(a) == by_key(b)
    assert type(a[0].image_id) is int
    assert type(b[0].image_id) is str


def test_rate_zero_is_the_identity():
    records = make_records()
    noises = [SymmetricNoise(rate=0.0), BoxJitter(rate=0), SpuriousBoxes(rate=0.0)]
    noisy, changes = inject(records, noises, NUM_CLASSES)
    assert noisy == records
    assert changes == []


def test_higher_rates_keep_the_noise_of_lower_ones():
    records = make_records()
    for mode in ("bernoulli", "exact"):
        low, high = (
            inject(records, [SymmetricNoise(rate=rate, mode=mode)], NUM_CLASSES)[1]
            for rate in (0.2, 0.6)
        )
        assert len(low) < len(high)
        assert {(c.image_id, c.index, c.new) for c in low} < {
            (c.image_id, c.index, c.new) for c in high
        }


def test_inputs_are_not_changed_and_other_fields_survive():
    records = make_records(
        segmentation=[[0.0, 0.0, 9.0, 0.0, 9.0, 9.0]],
        keypoints=[1.5, 2.5, 2],
        iscrowd=0,
        custom="x",
    )
    before = copy.deepcopy(records)
    noises = [SymmetricNoise(rate=1.0), BoxJitter(rate=1.0)]
    noisy, _ = inject(records, noises, NUM_CLASSES)
    assert records == before
    for old_record, record in zip(records, noisy):
        assert {k: v for k, v in record.items() if k not in ("annotations", "label_noise")} == {
            k: v for k, v in old_record.items() if k != "annotations"
        }
        for old, new in zip(old_record["annotations"], record["annotations"]):
            assert new["true_category_id"] == old["category_id"]
            assert new["true_bbox"] == old["bbox"]
            for key in ("segmentation", "keypoints", "iscrowd", "custom", "bbox_mode"):
                assert new[key] == old[key]


def test_changes_are_net_and_can_be_applied_again():
    records = make_records()
    noises = (*ALL_NOISES, SymmetricNoise(rate=0.5, seed=4), BoxJitter(rate=0.5, seed=4))
    noisy, changes = inject(records, noises, NUM_CLASSES)
    keys = [(c.image_id, c.index, c.what) for c in changes]
    assert len(set(keys)) == len(keys)
    assert all(c.old != c.new for c in changes)
    again, same = apply_changes(records, changes[::-1], NUM_CLASSES)
    assert same == changes
    assert [r["annotations"] for r in again] == [r["annotations"] for r in noisy]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("nowhere", 0, "label", 0, 1), "no image 'nowhere'"),
        (Change("000000", 5, "label", 0, 1), "only 5 annotations"),
        (Change("000000", 0, "label", 99, 1), "not the same set"),
        (Change("000000", 0, "box", [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0]), "not the same"),
        (Change("000000", 0, "colour", 0, 1), "what must be one of"),
    ],
)
def test_changes_of_another_set_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        apply_changes(make_records(num_images=1), [change], NUM_CLASSES)


def test_a_spurious_annotation_follows_the_last_one():
    new = {"category_id": 1, "bbox": [1.0, 1.0, 9.0, 9.0]}
    records = make_records(num_images=1)
    for index in (4, 6):
        change = Change("000000", index, "spurious", None, new)
        with pytest.raises(ValueError, match="next spurious annotation is number 5"):
            apply_changes(records, [change], NUM_CLASSES)


def test_an_added_box_has_the_fields_and_box_mode_of_the_first_annotation():
    first = {"category_id": 0, "bbox": [1, 1, 8, 8], "bbox_mode": BoxMode.XYWH_ABS, "difficult": 1}
    second = {"category_id": 0, "bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS}
    second["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    record = {"image_id": 1, "height": 40, "width": 50, "annotations": [first, second]}
    (noisy,), changes = inject([record], [SpuriousBoxes(rate=1.0)], 2)
    assert [c.index for c in changes] == [2, 3]
    for added in noisy["annotations"][2:]:
        assert added.keys() == {*first, "true_category_id"}
        assert added["bbox_mode"] == BoxMode.XYWH_ABS
        assert added["bbox"][2:] == [8, 8]
        assert added["difficult"] == 0
    (again,), _ = apply_changes([record], changes, 2)
    assert again["annotations"] == noisy["annotations"]


@pytest.mark.parametrize("noise", [BoxJitter(rate=1.0), SpuriousBoxes(rate=1.0)])
@pytest.mark.parametrize("key", ["height", "width"])
@pytest.mark.parametrize("value", [None, 0])
def test_box_noise_needs_the_size_of_the_image(noise, key, value):
    record = {**make_records(num_images=1)[0], key: value}
    with pytest.raises(ValueError, match=f"'set', image '000000' has no {key}, which {noise.kind}"):
        inject([record], [noise], NUM_CLASSES, "set")
    del record[key]
    with pytest.raises(ValueError, match=f"has no {key}"):
        inject([record], [SymmetricNoise(rate=0.5), noise], NUM_CLASSES, "set")
    assert inject([record], [SymmetricNoise(rate=1.0)], NUM_CLASSES, "set")[1]
    assert inject([{**record, "annotations": []}], [noise], NUM_CLASSES, "set")[1] == []


def test_records_without_annotations_or_id_are_named():
    record = make_records(num_images=1)[0]
    del record["annotations"]
    message = "'set', image '000000' has no annotations"
    with pytest.raises(ValueError, match=message):
        inject([record], ALL_NOISES, NUM_CLASSES, "set")
    with pytest.raises(ValueError, match=message):
        apply_changes([record], [], NUM_CLASSES, "set")
    with pytest.raises(ValueError, match="'set': a record has no image_id"):
        inject([{"annotations": []}], ALL_NOISES, NUM_CLASSES, "set")


LINE = {"dataset": "d", "image_id": "a", "annotation": 0, "what": "label", "old": "x", "new": "y"}
OBJECT = {"category": "x", "bbox": [1, 2.5, 3, 4]}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image_id": 7},
        {"what": "box", "old": OBJECT["bbox"], "new": [1, 2, 3, 4]},
        {"what": "missing", "old": OBJECT, "new": None},
        {"what": "spurious", "old": None, "new": OBJECT, "edits": []},
    ],
)
def test_manifest_lines_of_every_kind_are_read(tmp_path, values):
    (tmp_path / "m.jsonl").write_text(json.dumps({**LINE, **values}) + "\n")
    assert read_manifest(str(tmp_path / "m.jsonl")) == [{**LINE, **values}]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"what": "colour"}, "what must be one of"),
        ({"dataset": 1}, "dataset must be a string; got 1"),
        ({"image_id": None}, "image_id must be a string or an integer; got None"),
        ({"image_id": True}, "image_id must be a string or an integer; got True"),
        ({"annotation": "0"}, "annotation must be an integer of at least 0; got '0'"),
        ({"annotation": -1}, "annotation must be an integer of at least 0; got -1"),
        ({"old": 3}, "old must be a string; got 3"),
        ({"new": None}, "new must be a string; got None"),
        ({"what": "box", "old": [1, 2, 3], "new": [1, 2, 3, 4]}, "old must be four finite"),
        ({"what": "box", "old": [1, 2, 3, 4], "new": [1, 2, 3, math.nan]}, "new must be four"),
        ({"what": "box", "old": [1, 2, 3, 4], "new": [1, 2, 3, "4"]}, "new must be four"),
        ({"what": "box", "old": [1, 2, 3, 4], "new": "abcd"}, "new must be four"),
        ({"what": "missing", "old": "x", "new": None}, 'old must be {"category": name'),
        ({"what": "missing", "old": OBJECT, "new": "x"}, "new must be null"),
        ({"what": "spurious", "old": "x", "new": OBJECT}, "old must be null"),
        ({"what": "spurious", "old": None, "new": {"bbox": [1, 2, 3, 4]}}, "new must be {"),
        ({"what": "spurious", "old": None, "new": {**OBJECT, "category": 0}}, "new must be {"),
    ],
)
def test_bad_manifest_values_are_named_with_their_line(tmp_path, values, message):
    path = tmp_path / "m.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps({**LINE, **values})}\n")
    with pytest.raises(ValueError, match=rf"m\.jsonl, line 2: {message}"):
        read_manifest(str(path))


def test_noise_cannot_be_injected_twice():
    noisy, changes = inject(make_records(), ALL_NOISES, NUM_CLASSES)
    with pytest.raises(ValueError, match="already has noise"):
        inject(noisy, ALL_NOISES, NUM_CLASSES)
    with pytest.raises(ValueError, match="already has noise"):
        apply_changes(noisy, changes, NUM_CLASSES)


def test_an_image_id_must_be_unique():
    with pytest.raises(ValueError, match="'000000' occurs twice"):
        inject(make_records(num_images=1) * 2, ALL_NOISES, NUM_CLASSES)


@pytest.mark.parametrize("category_id", [-1, NUM_CLASSES])
def test_class_ids_outside_the_list_are_refused(category_id):
    records = make_records(num_images=1)
    records[0]["annotations"][2]["category_id"] = category_id
    with pytest.raises(ValueError, match=f"'000000', annotation 2: category_id {category_id}"):
        inject(records, ALL_NOISES, NUM_CLASSES)
