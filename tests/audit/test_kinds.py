"""Scores of the kinds by hand arithmetic, on boxes whose IoU is a plain fraction."""

import pytest
import torch

from sl_detectron.audit.kinds import (
    ImageAnswers,
    drawn_boxes,
    duplicate_scores,
    expected_misplacement,
    misplaced_box_scores,
    missing_objects,
    no_object_scores,
)

A = (0, 0, 10, 10)
LEFT = (0, 0, 6, 10)  # IoU 0.6 with A
QUARTER = (0, 0, 5, 5)  # IoU 0.25 with A
FAR = (100, 100, 110, 110)
NONE = torch.zeros(0, 4)


def answers(boxes=(), refined=None, background=None, labels=None, found=(), crowds=()):
    """``found``: rows of box, score, class."""

    def boxes_of(rows):
        return torch.tensor([*rows], dtype=torch.float32).reshape(-1, 4)

    num = len(boxes)
    return ImageAnswers(
        boxes_of(boxes),
        torch.tensor([*(labels or [0] * num)], dtype=torch.int64),
        torch.tensor([*(background or [0.0] * num)]),
        boxes_of(boxes if refined is None else refined),
        boxes_of(box for box, *_ in found),
        torch.tensor([score for _, score, _ in found]),
        torch.tensor([k for *_, k in found], dtype=torch.int64),
        boxes_of(crowds),
    )


def assert_list(values, expected):
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_drawn_box_is_a_vote():
    # (0.5 x 10 + 0.25 x 6) / 0.75 = 8.666...
    drawn, certainty = drawn_boxes(answers([A], background=[0.5], found=[(LEFT, 0.25, 0)]))
    assert_list(drawn[0], [0, 0, 26 / 3, 10])
    assert_list(certainty, [0.5])
    # Another class, and a box that overlaps by less than a half, do not vote.
    for other in ((LEFT, 0.25, 1), (QUARTER, 0.9, 0)):
        drawn, certainty = drawn_boxes(answers([A], background=[0.5], found=[other]))
        assert_list(drawn[0], A)
        assert_list(certainty, [0.5])
    # Nothing speaks for a box: the refined one.
    assert_list(drawn_boxes(answers([FAR], [A], [1.0]))[0][0], A)


def test_a_detection_votes_once():
    """It is nearer to the first annotation, so that the second keeps its box."""
    image = answers([A, LEFT], background=[0.0, 0.0], found=[((0, 0, 9, 10), 1.0, 0)])
    drawn, _ = drawn_boxes(image)
    assert_list(drawn[0], [0, 0, 9.5, 10])
    assert_list(drawn[1], LEFT)


def test_misplaced_box():
    # The detector draws A where LEFT is annotated: (1 - 0.25) x (1 - 0.6).
    image = answers([LEFT, A], [A, A], [0.25, 0.0])
    assert_list(misplaced_box_scores(image, 0.0), [0.3, 0.0])
    # Where the detector is not sure of an object, what is expected of any box: 0.25 x 0.2 more.
    assert_list(misplaced_box_scores(image, 0.2), [0.35, 0.0])
    assert misplaced_box_scores(answers(), 0.2).shape == (0,)


def test_expected_misplacement_is_a_mean_by_certainty():
    image = answers([LEFT, A], [A, A], [0.25, 0.0])
    unseen = answers([LEFT], [FAR], [1.0])
    assert expected_misplacement([image, answers(), unseen]) == pytest.approx(0.3 / 1.75)
    assert expected_misplacement([]) == expected_misplacement([answers()]) == 0.0


def test_no_object():
    assert_list(no_object_scores(answers([A], background=[0.8])), [0.8])
    # IoU 0.25 supports by half of the score: 0.8 x (1 - 0.6 x 0.5); a second, weaker one by none.
    found = [(QUARTER, 0.6, 3), (QUARTER, 0.2, 0), (FAR, 1.0, 0)]
    assert_list(no_object_scores(answers([A], background=[0.8], found=found)), [0.56])
    # From IoU 0.5 on the whole score counts.
    assert_list(no_object_scores(answers([A], background=[0.8], found=[(LEFT, 0.5, 0)])), [0.4])
    assert no_object_scores(answers(found=found)).shape == (0,)


def test_duplicate():
    # The detector draws A for both; LEFT fits it worse. 1 x (1 - 0.25).
    scores, better = duplicate_scores(answers([LEFT, A, FAR], [A, A, FAR], [0.25, 0.0, 0.0]))
    assert_list(scores, [0.75, 0, 0])
    assert better.tolist() == [1, -1, -1]
    # Of equal ones the second.
    scores, better = duplicate_scores(answers([A, A]))
    assert_list(scores, [0, 1])
    assert better.tolist() == [-1, 0]
    # Two objects that overlap: their boxes overlap by 0.6, as the detector draws them too.
    assert_list(duplicate_scores(answers([LEFT, A]))[0], [0, 0.6])
    for alone in (answers(), answers([A])):
        assert not duplicate_scores(alone)[0].any()


def test_missing_object():
    def missing(*args, **kwargs):
        rows, scores = missing_objects(answers(*args, **kwargs))
        return dict(zip(rows.tolist(), scores.tolist()))

    found = [(FAR, 0.9, 1), (A, 0.8, 0)]
    assert missing(found=found) == pytest.approx({0: 0.9, 1: 0.8})
    # One annotation has the object; IoU 0.25 with one takes half away.
    assert missing([LEFT], found=found) == pytest.approx({0: 0.9})
    assert missing([QUARTER], found=found) == pytest.approx({0: 0.9, 1: 0.4})
    # An annotation whose box is off, and which the detector moves there, explains it.
    assert missing([QUARTER], [A], found=found) == pytest.approx({0: 0.9})
    # One candidate for a place, whatever its class.
    assert missing(found=[(LEFT, 0.5, 1), (A, 0.8, 0)]) == pytest.approx({1: 0.8})
    # In a crowd nothing is missing, next to one there is.
    assert missing(found=[(QUARTER, 0.5, 1), (FAR, 0.9, 1)], crowds=[A]) == pytest.approx({1: 0.9})
    assert missing([A]) == {}
