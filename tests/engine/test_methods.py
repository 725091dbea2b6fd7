"""What a training loop does for a method: iterations, and the noise rate that it estimates."""

import json

import pytest
import torch

from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.engine.methods import TrainMethod
from sl_detectron.rivals.co_teaching import CoTeaching

LABELS = [0] * 6 + [1] * 6
WRONG = 3


class Steps:
    """As much of a trainer as a hook sees."""

    iter = 0


def table():
    annotations = [
        {"annotation_id": i, "category_id": c, "bbox": [0, 0, 9, 9]} for i, c in enumerate(LABELS)
    ]
    image = {"dataset": "d", "image_id": "1", "file_name": "1.jpg", "annotations": annotations}
    return AnnotationTable(len(LABELS), 7, ("a", "b"), {}, (json.dumps(image),))


def tracked():
    """Three of the twelve labels, all of the first class, look wrong."""
    tracker = AnnotationTracker(len(LABELS), 2)
    looks = torch.tensor(LABELS)
    looks[:WRONG] = 1
    ids, ones = torch.arange(len(LABELS)), torch.ones(len(LABELS))
    tracker(ids, ones, ones, torch.eye(2)[looks] * 0.98 + 0.01)
    return tracker


def rates_of(method, tracker, num=9):
    hook = TrainMethod(method, tracker, table())
    hook.trainer, rates = Steps(), []
    for hook.trainer.iter in range(num):
        hook.before_step()
        assert method.iteration == hook.trainer.iter
        hook.after_step()
        rates.append(method.rate)
    return rates


def test_rate_is_estimated_at_the_start_and_as_often_again():
    rates = rates_of(CoTeaching(-1.0, ramp=4), tracked())
    assert rates[:3] == [0.0] * 3
    assert rates[3] == pytest.approx(WRONG / len(LABELS), abs=0.05)
    assert rates[7] == rates[3]


def test_a_given_rate_stays_and_nothing_seen_is_no_noise():
    assert rates_of(CoTeaching(0.3, ramp=4), tracked()) == [0.3] * 9
    assert rates_of(CoTeaching(-1.0, ramp=4), AnnotationTracker(len(LABELS), 2)) == [0.0] * 9


def test_a_rate_that_cannot_be_estimated_is_an_error_at_once():
    for tracker, annotations in ((None, table()), (tracked(), None)):
        with pytest.raises(
            ValueError, match=r"NOISE_RATE is below 0, but no annotation is tracked"
        ):
            TrainMethod(CoTeaching(-1.0, ramp=4), tracker, annotations)
    TrainMethod(CoTeaching(0.2, ramp=4))
