"""What each kind of noise does to an annotation, and how often."""

import copy
import math

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.label_noise_records import NUM_CLASSES, labels, make_records
from sl_detectron.label_noise import (
    AsymmetricNoise,
    BoxJitter,
    MissingAnnotations,
    SpuriousBoxes,
    SymmetricNoise,
    inject,
)
from sl_detectron.label_noise.asymmetric import VOC_CONFUSION, confusion_by_id
from sl_detectron.label_noise.stats import noise_statistics, uniformity_test


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
