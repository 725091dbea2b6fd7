"""The arithmetic of AP, by hand and against the loop that defines it."""

import numpy as np
import pytest
from detectron2.evaluation.pascal_voc_evaluation import voc_ap
from hypothesis import given, settings
from hypothesis import strategies as st

from sl_detectron.evaluation.average_precision import (
    Detections,
    GroundTruth,
    average_precision,
    best_overlaps,
    evaluate_detections,
)

BOX = (11.0, 11.0, 20.0, 20.0)
FAR = (101.0, 101.0, 110.0, 110.0)


def make_detections(*rows):
    """Rows of (image, class, score, box)."""
    return Detections(
        images=np.array([r[0] for r in rows], dtype=np.int64),
        classes=np.array([r[1] for r in rows], dtype=np.int64),
        scores=np.array([r[2] for r in rows], dtype=np.float64),
        boxes=np.array([r[3] for r in rows], dtype=np.float64).reshape(-1, 4),
    )


def make_ground_truth(*rows):
    """Rows of (image, class, box, difficult)."""
    return GroundTruth(
        images=np.array([r[0] for r in rows], dtype=np.int64),
        classes=np.array([r[1] for r in rows], dtype=np.int64),
        boxes=np.array([r[2] for r in rows], dtype=np.float64).reshape(-1, 4),
        difficult=np.array([r[3] for r in rows], dtype=bool),
    )


def ap50(detections, ground_truth, metric="area"):
    return evaluate_detections(detections, ground_truth, 1, metric)[0].ap[0]


def test_hit_miss_hit_by_hand():
    found = make_detections((0, 0, 0.9, BOX), (0, 0, 0.8, FAR), (1, 0, 0.7, BOX))
    wanted = make_ground_truth((0, 0, BOX, False), (1, 0, BOX, False))
    # Precision 1 at recall 1/2 and 2/3 at recall 1.
    assert ap50(found, wanted) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # The recall levels 0 .. 0.5 see precision 1, 0.6 .. 1 see 2/3.
    assert ap50(found, wanted, "07") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_missed_object_by_hand():
    found = make_detections((0, 0, 0.9, BOX))
    wanted = make_ground_truth((0, 0, BOX, False), (1, 0, BOX, False))
    (result,) = evaluate_detections(found, wanted, 1)
    assert result.ap == pytest.approx(np.full(10, 0.5))
    assert result.max_recall == pytest.approx(np.full(10, 0.5))
    assert (result.num_objects, result.num_detections) == (2, 1)


def test_second_hit_on_an_object_is_a_miss():
    wanted = make_ground_truth((0, 0, BOX, False), (1, 0, BOX, False))
    found = make_detections((0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (1, 0, 0.7, BOX))
    assert ap50(found, wanted) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_difficult_object_counts_neither_way():
    wanted = make_ground_truth((0, 0, BOX, False), (0, 0, FAR, True))
    twice = make_detections((0, 0, 0.9, FAR), (0, 0, 0.8, FAR), (0, 0, 0.7, BOX))
    assert ap50(twice, wanted) == 1
    assert evaluate_detections(twice, wanted, 1)[0].num_objects == 1


def test_overlap_must_exceed_the_threshold():
    # 10 pixels wide each, one 5 to the right: intersection 5, union 15. Inclusive pixels.
    overlap = best_overlaps(
        make_detections((0, 0, 1, (1, 1, 10, 1))), make_ground_truth((0, 0, (6, 1, 15, 1), False))
    )[0]
    assert overlap == pytest.approx([1 / 3])
    # Half of a box is exactly 0.5: not more than 0.5.
    half = make_detections((0, 0, 1, (1, 1, 10, 1)))
    assert ap50(half, make_ground_truth((0, 0, (1, 1, 10, 2), False))) == 0
    assert ap50(half, make_ground_truth((0, 0, (1, 1, 10, 1), False))) == 1


def test_first_of_equally_overlapped_objects_takes_the_match():
    wanted = make_ground_truth((0, 0, BOX, False), (0, 0, BOX, True))
    assert best_overlaps(make_detections((0, 0, 1, BOX)), wanted)[1] == [0]
    # Reversed, the match goes to the difficult one, and the other object is missed.
    other = make_ground_truth((0, 0, BOX, True), (0, 0, BOX, False))
    assert ap50(make_detections((0, 0, 1, BOX)), other) == 0


def test_other_image_and_other_class_do_not_match():
    wanted = make_ground_truth((0, 0, BOX, False), (1, 1, BOX, False))
    found = make_detections((1, 0, 0.9, BOX), (0, 1, 0.9, BOX), (7, 0, 0.9, BOX))
    overlaps, _ = best_overlaps(found, wanted)
    assert (overlaps == -np.inf).all()
    assert [r.ap.max() for r in evaluate_detections(found, wanted, 2)] == [0, 0]


@pytest.mark.parametrize("metric", ["07", "area"])
def test_nothing_found_and_nothing_to_find(metric):
    wanted = make_ground_truth((0, 0, BOX, False))
    (missed,) = evaluate_detections(make_detections(), wanted, 1, metric)
    assert (missed.ap == 0).all()
    assert (missed.max_recall == 0).all()
    (absent,) = evaluate_detections(make_detections((0, 0, 1, BOX)), make_ground_truth(), 1, metric)
    assert (absent.num_objects, absent.num_detections, absent.ap.max()) == (0, 1, 0)


def test_unknown_metric_is_named():
    with pytest.raises(ValueError, match=r"\('07', 'area'\); got '2007'"):
        evaluate_detections(make_detections(), make_ground_truth(), 1, "2007")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(0, 5), st.sampled_from(["07", "area"]))
def test_average_precision_equals_detectron2_on_any_curve(hits, missed, metric):
    hits = np.array(hits, dtype=bool)
    tp, fp = np.cumsum(hits, dtype=float), np.cumsum(~hits, dtype=float)
    recall = tp / max(hits.sum() + missed, 1)
    precision = tp / np.maximum(tp + fp, np.finfo(float).eps)
    wanted = voc_ap(recall, precision, use_07_metric=metric == "07")
    assert average_precision(recall, precision, metric) == wanted
    # The points between two true positives make no difference.
    assert average_precision(recall[hits], precision[hits], metric) == wanted


def loop_iou(box1, box2):
    """Count pixels: the definition of overlap for whole inclusive coordinates."""
    pixels = [
        {(x, y) for x in range(int(b[0]), int(b[2]) + 1) for y in range(int(b[1]), int(b[3]) + 1)}
        for b in (box1, box2)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


@pytest.mark.parametrize("seed", range(10))
def test_best_overlap_by_counting_pixels(seed):
    rng = np.random.default_rng(seed)

    def box():
        low = rng.integers(1, 12, size=2)
        return (*low, *(low + rng.integers(1, 9, size=2)))

    found = make_detections(*[(rng.integers(3), rng.integers(2), 1, box()) for _ in range(40)])
    wanted = make_ground_truth(*[(rng.integers(3), rng.integers(2), box(), 0) for _ in range(15)])
    overlaps, objects = best_overlaps(found, wanted)
    for i in range(40):
        same = (wanted.images == found.images[i]) & (wanted.classes == found.classes[i])
        rivals = [loop_iou(found.boxes[i], wanted.boxes[j]) for j in np.flatnonzero(same)]
        if not rivals:
            assert overlaps[i] == -np.inf
            continue
        assert overlaps[i] == pytest.approx(max(rivals))
        assert objects[i] == np.flatnonzero(same)[int(np.argmax(rivals))]
