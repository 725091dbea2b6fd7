"""The pure core: what is drawn, from what, and what stays as it was."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from sl_detectron.data.label_noise import (
    AsymmetricNoise,
    BoxJitter,
    Change,
    MissingAnnotations,
    SpuriousBoxes,
    SymmetricNoise,
    apply_changes,
    inject,
)
from sl_detectron.data.noise_confusion import VOC_CONFUSION, confusion_by_id
from sl_detectron.data.noise_manifest import manifest_lines
from sl_detectron.data.noise_stats import noise_statistics, uniformity_test

NUM_CLASSES = 20
ALL_NOISES = (
    SymmetricNoise(rate=0.4, seed=3),
    BoxJitter(rate=0.3, seed=3),
    MissingAnnotations(rate=0.2, seed=3),
    SpuriousBoxes(rate=0.2, seed=3),
)


def make_records(num_images=200, num_annotations=5, num_classes=NUM_CLASSES, **extra):
    rng = random.Random(0)
    records = []
    for i in range(num_images):
        annotations = []
        for _ in range(num_annotations):
            x, y = rng.uniform(0, 300), rng.uniform(0, 200)
            box = [x, y, x + rng.uniform(2, 200), y + rng.uniform(2, 200)]
            annotations.append(
                {
                    "category_id": rng.randrange(num_classes),
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    **copy.deepcopy(extra),
                }
            )
        records.append(
            {"image_id": f"{i:06}", "height": 400, "width": 500, "annotations": annotations}
        )
    return records


def labels(records):
    return {r["image_id"]: [a["category_id"] for a in r["annotations"]] for r in records}


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


def test_python_hash_seed_does_not_matter():
    script = (
        "from sl_detectron.data.label_noise import inject, SymmetricNoise, AsymmetricNoise\n"
        "records = [{'image_id': str(i), 'annotations': [{'category_id': i % 3}]}"
        " for i in range(300)]\n"
        "confusion = {0: {1: 0.3, 2: 0.7}}\n"
        "noises = [SymmetricNoise(rate=0.4), AsymmetricNoise(rate=0.5, confusion=confusion)]\n"
        "print(inject(records, noises, 3, 'set'))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(outputs[0]) > 300
    assert outputs[0] == outputs[1]


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


@pytest.mark.parametrize("num_classes", [2, 3, 20])
def test_rate_one_leaves_no_true_label_and_draws_every_class(num_classes):
    records = make_records(num_classes=num_classes)
    noisy, changes = inject(records, [SymmetricNoise(rate=1.0)], num_classes)
    assert len(changes) == 1000
    for clean, wrong in zip(labels(records).values(), labels(noisy).values()):
        assert all(a != b for a, b in zip(clean, wrong))
    assert {c for row in labels(noisy).values() for c in row} == set(range(num_classes))


def test_inclusive_noise_draws_the_true_class_too():
    records = make_records(num_images=2000, num_classes=4)
    noise = SymmetricNoise(rate=1.0, include_true=True)
    _, changes = inject(records, [noise], 4)
    # 10,000 labels stay with probability 1/4: five standard deviations are 217.
    assert abs(len(changes) - 7500) < 217


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_bernoulli_rate(rate):
    _, changes = inject(make_records(num_images=2000), [SymmetricNoise(rate=rate)], NUM_CLASSES)
    assert abs(len(changes) - 10000 * rate) < 5 * math.sqrt(10000 * rate * (1 - rate))


@pytest.mark.parametrize("rate", [0.0004, 0.123, 0.5, 1.0])
@pytest.mark.parametrize("noise", [SymmetricNoise, MissingAnnotations, SpuriousBoxes])
def test_exact_mode_hits_the_rounded_number(noise, rate):
    _, changes = inject(make_records(), [noise(rate=rate, mode="exact")], NUM_CLASSES)
    assert len(changes) == round(rate * 1000)


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


def test_crowds_are_left_alone_and_do_not_count():
    records = make_records(iscrowd=1)
    for record in records:
        record["annotations"][0]["iscrowd"] = 0
    noisy, changes = inject(records, [MissingAnnotations(rate=1.0, mode="exact")], NUM_CLASSES)
    assert len(changes) == len(records)
    assert all(r["annotations"] == old["annotations"][1:] for r, old in zip(noisy, records))
    half = [SymmetricNoise(rate=0.5, mode="exact")]
    assert len(inject(records, half, NUM_CLASSES)[1]) == len(records) // 2


def test_asymmetric_noise_follows_its_map():
    confusion = {0: {1: 0.25, 2: 0.75}, 3: {4: 1.0}}
    records = make_records(num_images=2000, num_classes=5)
    statistics = noise_statistics(
        records, inject(records, [AsymmetricNoise(rate=1.0, confusion=confusion)], 5)[1], 5
    )
    counts = statistics.confusion
    total = counts.sum(axis=1)
    assert counts[3, 4] == total[3]
    assert counts[0, 1] + counts[0, 2] == total[0]
    assert abs(counts[0, 1] - total[0] / 4) < 5 * math.sqrt(total[0] * 3 / 16)
    for kept in (1, 2, 4):
        assert counts[kept, kept] == total[kept]


def test_asymmetric_exact_rate_is_of_the_classes_in_the_map():
    records = make_records()
    in_map = sum(c == 3 for row in labels(records).values() for c in row)
    noise = AsymmetricNoise(rate=0.5, confusion={3: {4: 1.0}}, mode="exact")
    assert len(inject(records, [noise], NUM_CLASSES)[1]) == round(in_map / 2)


def test_voc_confusion_is_a_valid_map():
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES

    confusion = confusion_by_id(VOC_CONFUSION, CLASS_NAMES)
    records = make_records()
    _, changes = inject(records, [AsymmetricNoise(rate=1.0, confusion=confusion)], NUM_CLASSES)
    assert changes
    assert all(c.new in confusion[c.old] for c in changes)


coordinates = st.floats(0, 60, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(
    corner=st.tuples(coordinates, coordinates),
    size=st.tuples(st.floats(0.3, 64), st.floats(0.3, 48)),
    magnitude=st.floats(0.01, 0.49),
    seed=st.integers(0, 2**40),
)
def test_jittered_boxes_stay_near_and_inside(corner, size, magnitude, seed):
    height, width = 60, 80
    x1, y1 = min(corner[0], width - 1), min(corner[1], height - 1)
    x2, y2 = min(x1 + size[0], width), min(y1 + size[1], height)
    annotation = {"category_id": 0, "bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS}
    record = {"image_id": 1, "height": height, "width": width, "annotations": [annotation]}
    noise = BoxJitter(rate=1.0, seed=seed, magnitude=magnitude)
    (result,), _ = inject([record], [noise], 1)
    new = result["annotations"][0]["bbox"]
    assert 0 <= new[0] < new[2] <= width
    assert 0 <= new[1] < new[3] <= height
    for i, side in enumerate([x2 - x1, y2 - y1] * 2):
        # Half a step of the 1/16 pixel grid beyond the magnitude.
        assert abs(new[i] - annotation["bbox"][i]) <= magnitude * side + 1 / 32 + 1e-9


def test_jitter_is_the_same_in_both_box_modes():
    records = make_records(num_images=50)
    for record in records:
        for annotation in record["annotations"]:
            annotation["bbox"] = [float(round(x)) for x in annotation["bbox"]]
    as_xywh = copy.deepcopy(records)
    for record in as_xywh:
        for a in record["annotations"]:
            x1, y1, x2, y2 = a["bbox"]
            a |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "bbox_mode": BoxMode.XYWH_ABS}
    noises = [BoxJitter(rate=1.0, magnitude=0.3), SpuriousBoxes(rate=0.5)]
    first, second = (inject(rs, noises, NUM_CLASSES)[0] for rs in (records, as_xywh))
    for a, b in zip(first, second):
        for old, new in zip(a["annotations"], b["annotations"]):
            assert BoxMode.convert(new["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) == old["bbox"]


def test_missing_and_spurious_annotations():
    records = make_records(segmentation=[[0, 0, 9, 0, 9, 9]], keypoints=[1, 2, 2], iscrowd=0)
    noises = [MissingAnnotations(rate=0.3, mode="exact"), SpuriousBoxes(rate=0.5, mode="exact")]
    noisy, changes = inject(records, noises, NUM_CLASSES)
    missing = [c for c in changes if c.what == "missing"]
    spurious = [c for c in changes if c.what == "spurious"]
    assert (len(missing), len(spurious)) == (300, 350)
    assert sum(len(r["annotations"]) for r in noisy) == 1000 - 300 + 350
    for record in noisy:
        for annotation in record["annotations"]:
            if annotation.get("true_category_id") == NUM_CLASSES:
                x1, y1, x2, y2 = annotation["bbox"]
                assert 0 <= x1 < x2 <= 500
                assert 0 <= y1 < y2 <= 400
                assert annotation["segmentation"] == [[x1, y1, x2, y1, x2, y2, x1, y2]]
                assert annotation["keypoints"] == [0, 0, 0]
    assert {c.new["category_id"] for c in spurious} == set(range(NUM_CLASSES))


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


def test_noise_cannot_be_injected_twice():
    noisy, changes = inject(make_records(), ALL_NOISES, NUM_CLASSES)
    with pytest.raises(ValueError, match="noisy already"):
        inject(noisy, ALL_NOISES, NUM_CLASSES)
    with pytest.raises(ValueError, match="noisy already"):
        apply_changes(noisy, changes, NUM_CLASSES)


def test_an_image_id_must_be_unique():
    with pytest.raises(ValueError, match="'000000' comes twice"):
        inject(make_records(num_images=1) * 2, ALL_NOISES, NUM_CLASSES)


@pytest.mark.parametrize("category_id", [-1, NUM_CLASSES])
def test_class_ids_outside_the_list_are_refused(category_id):
    records = make_records(num_images=1)
    records[0]["annotations"][2]["category_id"] = category_id
    with pytest.raises(ValueError, match=f"'000000', annotation 2: category_id {category_id}"):
        inject(records, ALL_NOISES, NUM_CLASSES)


def test_symmetric_noise_needs_two_classes():
    with pytest.raises(ValueError, match="at least 2 classes"):
        inject(make_records(num_classes=1), [SymmetricNoise(rate=0.1)], 1)


def test_equal_noises_would_hit_the_same_annotations():
    with pytest.raises(ValueError, match="share seed 3"):
        inject(make_records(), [MissingAnnotations(rate=0.1, seed=3)] * 2, NUM_CLASSES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SymmetricNoise(rate=1.5), r"must be in \[0, 1\]; got 1.5"),
        (lambda: SymmetricNoise(rate=float("nan")), "got nan"),
        (lambda: SymmetricNoise(rate=0.1, mode="often"), "got 'often'"),
        (lambda: SymmetricNoise(rate=0.1, seed=0.5), "got 0.5"),
        (lambda: BoxJitter(rate=0.1, magnitude=0.5), r"in \(0, 0.5\)"),
        (lambda: AsymmetricNoise(rate=0.1), "got an empty one"),
        (lambda: AsymmetricNoise(rate=0.1, confusion={0: {0: 1.0}}), "the class itself"),
        (lambda: AsymmetricNoise(rate=0.1, confusion={0: {1: 0.5}}), "sum to 1"),
        (lambda: AsymmetricNoise(rate=0.1, confusion={0: {1: 2.0, 2: -1.0}}), ">= 0"),
    ],
)
def test_bad_noises_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_confusion_of_another_class_list_is_refused():
    noise = AsymmetricNoise(rate=0.1, confusion={0: {20: 1.0}})
    with pytest.raises(ValueError, match=r"ids \[20\] outside 0..19"):
        inject(make_records(), [noise], NUM_CLASSES)


def test_rotated_boxes_are_refused_by_box_noise():
    records = make_records(num_images=1)
    records[0]["annotations"][0] |= {"bbox": [1, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWHA_ABS}
    with pytest.raises(ValueError, match="XYXY_ABS and XYWH_ABS"):
        inject(records, [BoxJitter(rate=1.0)], NUM_CLASSES)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_wrong_labels_are_uniform(rate):
    """Five seeds, and their pooled counts: chance alone fails this once in a million."""
    records = make_records(num_images=1000)
    pooled = np.zeros((NUM_CLASSES, NUM_CLASSES))
    for seed in range(5):
        _, changes = inject(records, [SymmetricNoise(rate=rate, seed=seed)], NUM_CLASSES, "set")
        confusion = noise_statistics(records, changes, NUM_CLASSES).confusion[:-1, :-1]
        assert uniformity_test(confusion)[2] > 1e-6
        pooled += confusion
    assert uniformity_test(pooled)[2] > 1e-6
