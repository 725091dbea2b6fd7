"""The tracker against a loop over samples, over resumption and over several processes."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers.forked import forked_ranks
from sl_detectron.audit.tracker import AnnotationTracker

NUM_ANNOTATIONS, NUM_CLASSES = 5, 3


def random_steps(num_steps: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for _ in range(num_steps):
        size = int(torch.randint(0, 9, (), generator=generator))
        # The last annotation is never sampled; -1 and 2**40 are no annotations.
        ids = torch.randint(-1, NUM_ANNOTATIONS - 1, (size,), generator=generator)
        ids = torch.where(torch.rand(size, generator=generator) < 0.1, 2**40, ids)
        losses, sigma = torch.rand(2, size, generator=generator)
        probabilities = torch.rand(size, NUM_CLASSES, generator=generator).softmax(dim=1)
        objects = torch.rand(size, generator=generator)
        steps.append((ids, losses, sigma, probabilities, objects))
    return steps


def entropy(probabilities):
    return -sum(float(p) * math.log(p) for p in probabilities)


def loop_over_samples(steps):
    """{annotation id: (number, mean loss and sigma, last ones, probabilities, mean object)}"""
    seen: dict[int, list] = {}
    for step, batch in enumerate(steps):
        for i, *values in zip(*batch):
            if 0 <= i < NUM_ANNOTATIONS:
                seen.setdefault(int(i), []).append((step, *values))
    result = {}
    for i, samples in seen.items():
        last = [s for s in samples if s[0] == samples[-1][0]]
        means = [
            sum(row[k] for row in rows) / len(rows) for rows in (samples, last) for k in (1, 2)
        ]
        weights = [1 - entropy(row[3]) / math.log(NUM_CLASSES) for row in samples]
        probabilities = sum(w * row[3] for w, row in zip(weights, samples)) / sum(weights)
        mean_object = sum(row[4] for row in samples) / len(samples)
        result[i] = (len(samples), *means, probabilities, mean_object)
    return result


def tell(tracker: AnnotationTracker, ids, losses, *values) -> None:
    """Also a box loss, here three times that of the class; the order does not count."""
    if int(tracker.step) % 2:
        tracker.add_box_losses(ids, 3 * losses, *values)
        tracker(ids, losses, *values)
    else:
        tracker(ids, losses, *values)
        tracker.add_box_losses(ids, 3 * losses, *values)


def check(tracker: AnnotationTracker, steps) -> None:
    statistics = tracker.statistics()
    torch.testing.assert_close(
        statistics.mean_box_loss, 3 * statistics.mean_loss, equal_nan=True, atol=1e-6, rtol=1e-5
    )
    expected = loop_over_samples(steps)
    assert len(expected) == NUM_ANNOTATIONS - 1
    for i in range(NUM_ANNOTATIONS):
        count, *values = [column[i] for column in statistics]
        if i not in expected:
            assert count == 0
            assert all(torch.isnan(value).all() for value in values)
            continue
        assert count == expected[i][0]
        for value, wanted in zip(values, expected[i][1:]):
            torch.testing.assert_close(value, wanted)


def test_equals_a_loop_over_samples():
    steps = random_steps(30, seed=0)
    tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
    for step in steps:
        tell(tracker, *step)
    check(tracker, steps)


def test_goes_on_from_its_state_dict():
    steps = random_steps(30, seed=1)
    first, second = (AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES) for _ in range(2))
    for step in steps[:12]:
        tell(first, *step)
    second.load_state_dict(first.state_dict())
    for step in steps[12:]:
        tell(second, *step)
    check(second, steps)


def test_state_of_another_dataset_is_named():
    state = AnnotationTracker(7, 2).state_dict()
    message = "tracked 7 annotations of 2 classes, this run has 5 annotations of 3 classes"
    with pytest.raises(ValueError, match=message):
        AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES).load_state_dict(state)


def test_state_of_other_annotations_is_refused(caplog):
    """As many annotations of as many classes, but another set or another noise."""
    state = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES, fingerprint=7).state_dict()
    for other in (8, 2**47, 0):
        with pytest.raises(ValueError, match="as many annotations as this run has, but other ones"):
            AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES, other).load_state_dict(state)
    tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES, fingerprint=7)
    tracker.load_state_dict(state)
    assert caplog.text == ""


def test_stages_of_a_cascade_are_one_step():
    tracker = AnnotationTracker(2, 2)

    def stage(ids, losses, begins_step):
        values = torch.tensor(losses)
        tracker(
            torch.tensor(ids),
            values,
            values,
            torch.full((len(ids), 2), 0.5),
            begins_step=begins_step,
        )

    stage([0, 1], [9.0, 5.0], begins_step=True)
    stage([0], [9.0], begins_step=False)
    stage([0, 0], [1.0, 2.0], begins_step=True)
    stage([0], [6.0], begins_step=False)
    assert int(tracker.step) == 2
    statistics = tracker.statistics()
    assert statistics.num_samples.tolist() == [5, 1]
    assert statistics.last_loss.tolist() == [3, 5]
    assert statistics.last_sigma.tolist() == [3, 5]


def test_of_no_box_term_nothing_is_said():
    steps = random_steps(30, seed=5)
    tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
    for step in steps:
        tracker(*step)
    assert tracker.statistics().mean_box_loss.isnan().all()
    assert not tracker.statistics().mean_object[:-1].isnan().any()


def test_a_box_loss_that_diverged_is_left_out():
    tracker = AnnotationTracker(2, 2)
    ids = torch.tensor([0, 0, 1, -1, 7])
    tracker(ids[:3], torch.ones(3), torch.ones(3), torch.eye(2)[[0, 0, 1]])
    tracker.add_box_losses(ids, torch.tensor([2.0, math.inf, 5.0, 3.0, 3.0]))
    assert tracker.statistics().mean_box_loss.tolist() == [1, 5]


def test_a_state_from_before_boxes_is_read():
    """An audit of it is what it was; means about boxes, which lack a beginning, stay unknown."""
    tracker, again = (AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES) for _ in range(2))
    steps = random_steps(30, seed=6)
    for step in steps:
        tell(tracker, *step)
    state = tracker.state_dict()
    del state["box_sums"]
    state["last_step"] = state["last_step"].long()
    again.load_state_dict(state)
    tell(again, *steps[0])
    tell(tracker, *steps[0])
    found, wanted = again.statistics(), tracker.statistics()
    assert torch.equal(found.probabilities.nan_to_num(), wanted.probabilities.nan_to_num())
    assert torch.equal(again.last_step, tracker.last_step)
    assert found.mean_object.isnan().all()
    assert found.mean_box_loss.isnan().all()


def test_needs_no_more_precision_than_it_has():
    """16-bit losses are added up in 32 bits: 4,096 steps of 1/3 would stop growing in 16."""
    tracker = AnnotationTracker(1, 2)
    third = torch.tensor([1 / 3], dtype=torch.float16)
    for _ in range(4096):
        tracker(torch.tensor([0]), third, third, torch.ones(1, 2, dtype=torch.float16))
    assert math.isclose(tracker.statistics().mean_loss[0], float(third), rel_tol=1e-3)


def test_uniform_samples_count_among_themselves_only():
    tracker = AnnotationTracker(2, 4)
    uniform, nothing, sure = torch.full((4,), 0.25), torch.zeros(4), torch.eye(4)[3]
    ids = torch.tensor([0, 1, 1, 1])
    probabilities = torch.stack([uniform, uniform, nothing, sure])
    tracker(ids, torch.ones(4), torch.ones(4), probabilities)
    torch.testing.assert_close(tracker.statistics().probabilities[0], uniform)
    torch.testing.assert_close(tracker.statistics().probabilities[1], sure, atol=1e-5, rtol=0)


def test_a_diverged_sample_is_left_out():
    steps = random_steps(12, seed=4)
    tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
    for step in steps:
        tell(tracker, *step)
    wrong = torch.tensor([math.inf, math.nan, 1.0, 1.0])
    sigma = torch.tensor([1.0, 1.0, math.nan, 1.0])
    probabilities = torch.full((4, NUM_CLASSES), 1 / NUM_CLASSES)
    probabilities[3] = math.nan
    tracker(torch.tensor([0, 1, 2, 3]), wrong, sigma, probabilities)
    check(tracker, steps)


def test_one_class_has_no_other():
    with pytest.raises(ValueError, match="at least 2 classes; got 1"):
        AnnotationTracker(3, 1)


def train_half(rank: int, folder: Path) -> None:
    """Each process sees half of every step; a save and a resumption lie between."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
    for number, (ids, *values) in enumerate(random_steps(30, seed=2)):
        mine = torch.arange(len(ids)) % 2 == rank
        tell(tracker, ids[mine], *(value[mine] for value in values))
        if number == 14:
            tracker.synchronize()
            if rank == 0:
                torch.save(tracker.state_dict(), folder / "state.pt")
            dist.barrier()
            tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
            tracker.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    tracker.synchronize()
    torch.save(tracker.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_sum_up_to_one(tmp_path):
    with forked_ranks():
        mp.start_processes(train_half, args=(tmp_path,), nprocs=2)
    tracker = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
    tracker.load_state_dict(torch.load(tmp_path / "0.pt", weights_only=True))
    check(tracker, random_steps(30, seed=2))
    # What the main process holds is not counted again.
    other = torch.load(tmp_path / "1.pt", weights_only=True)
    assert not other["sums"].any()
    assert not other["box_sums"].any()
