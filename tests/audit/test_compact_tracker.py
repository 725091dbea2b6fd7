"""The compact tracker against the exact one, over resumption and over several processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import roc_auc_score

from helpers.forked import forked_ranks
from sl_detectron.audit.compact_tracker import CompactTracker, build_tracker, load_tracker
from sl_detectron.audit.few_classes import MAX_DENSE
from sl_detectron.audit.ranking import suspicion
from sl_detectron.audit.tracker import AnnotationTracker

NUM_ANNOTATIONS, NUM_CLASSES = 300, 200
LABELS = torch.randint(NUM_CLASSES, (NUM_ANNOTATIONS,), generator=torch.Generator().manual_seed(9))


def steps(num_epochs: int, seed: int, num_possible: int = NUM_CLASSES):
    """Predictions of a detector that learns the true classes and, later, the labels.

    Returns:
        (ids, losses, sigma, probabilities) of each step, and whether each label is wrong
    """
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(NUM_ANNOTATIONS, generator=generator) < 0.4
    moved = torch.randint(1, NUM_CLASSES, (NUM_ANNOTATIONS,), generator=generator)
    true = torch.where(wrong, (LABELS + moved) % NUM_CLASSES, LABELS)
    taste = torch.randn(NUM_ANNOTATIONS, NUM_CLASSES, generator=generator)
    batches = []
    for epoch in range(num_epochs):
        progress = epoch / num_epochs
        for ids in torch.randperm(NUM_ANNOTATIONS, generator=generator).split(50):
            ids = ids.repeat_interleave(4)
            logits = taste[ids] + 1.5 * torch.randn(len(ids), NUM_CLASSES, generator=generator)
            logits[torch.arange(len(ids)), true[ids]] += 9 * progress
            logits[torch.arange(len(ids)), LABELS[ids]] += 7 * progress**2
            if num_possible < NUM_CLASSES:
                # The same few classes of each annotation, the given one among them.
                shift = torch.arange(num_possible) * 17
                possible = (LABELS[ids][:, None] + shift) % NUM_CLASSES
                mask = torch.full_like(logits, -torch.inf).scatter_(1, possible, 0.0)
                logits = logits + mask
            losses, sigma = torch.rand(2, len(ids), generator=generator)
            ids = torch.where(torch.rand(len(ids), generator=generator) < 0.05, -1, ids)
            batches.append((ids, losses, sigma, logits.softmax(dim=1)))
    return batches, wrong


def both(batches):
    exact = AnnotationTracker(NUM_ANNOTATIONS, NUM_CLASSES)
    compact = CompactTracker(LABELS, NUM_CLASSES)
    for batch in batches:
        for tracker in (exact, compact):
            tracker(*batch)
            tracker.add_box_losses(*batch)
    return exact, compact


def test_takes_128_bytes_an_annotation_whatever_the_number_of_classes():
    for num_classes in (2, MAX_DENSE, MAX_DENSE + 1, 1203, 13_204):
        sizes = []
        for num in (1000, 3000):
            tracker = build_tracker(torch.zeros(num, dtype=torch.int64), num_classes)
            sizes.append(sum(buffer.nbytes for buffer in tracker.buffers()))
        assert (sizes[1] - sizes[0]) / 2000 <= 128
        stored = sum(value.nbytes for value in tracker.state_dict().values())
        # A checkpoint of LVIS: 1.27 million annotations.
        assert num_classes < MAX_DENSE or stored / 3000 * 1.27e6 <= 170e6


def test_few_classes_have_the_exact_tracker():
    assert type(build_tracker(LABELS % MAX_DENSE, MAX_DENSE)) is AnnotationTracker
    assert type(build_tracker(LABELS, NUM_CLASSES)) is CompactTracker


def test_all_but_the_classes_equals_the_exact_tracker():
    exact, compact = both(steps(3, seed=0)[0])
    for name, value in exact.statistics()._asdict().items():
        if name != "probabilities":
            assert torch.equal(value, getattr(compact.statistics(), name)), name


def test_equals_the_exact_one_while_the_classes_fit():
    exact, compact = both(steps(4, seed=1, num_possible=13)[0])
    assert compact.sums[:, -1].count_nonzero() == 0
    wanted = exact.statistics().probabilities
    torch.testing.assert_close(compact.statistics().probabilities.dense(), wanted)


@pytest.mark.parametrize("seed", [2, 3])
def test_ranks_as_the_exact_one(seed):
    batches, wrong = steps(12, seed)
    exact, compact = both(batches)
    found = compact.statistics().probabilities.dense()
    wanted = exact.statistics().probabilities
    scores = [suspicion(p, LABELS) for p in (found, wanted)]
    areas = [roc_auc_score(wrong, score) for score in scores]
    assert abs(areas[0] - areas[1]) <= 0.005
    assert areas[1] > 0.9
    suspects = scores[1] > 0.5
    assert suspects.sum() > 50
    suggested = [p.scatter(1, LABELS[:, None], -1).argmax(dim=1)[suspects] for p in (found, wanted)]
    assert (suggested[0] == suggested[1]).double().mean() >= 0.99


def test_a_sum_is_off_by_the_floor_at_most():
    exact, compact = both(steps(5, seed=4)[0])
    sums = exact.sums[:-1, 4:]
    few = compact.statistics().probabilities
    weights, floors = compact.sums[:-1, 3:4], compact.sums[:-1, -1:]
    off = few.dense() * weights - sums
    assert (floors <= weights / 13 * 1.0001).all()
    assert (off.abs() <= floors + 1e-4).all()
    given = few.at(LABELS[:, None]) * weights
    torch.testing.assert_close(given, sums.gather(1, LABELS[:, None]))


def test_goes_on_from_its_state_dict_bit_for_bit():
    batches, _ = steps(4, seed=5)
    _, whole = both(batches)
    _, first = both(batches[:9])
    second = load_tracker(first.state_dict(), LABELS, 0)
    assert isinstance(second, CompactTracker)
    for batch in batches[9:]:
        second(*batch)
        second.add_box_losses(*batch)
    state = second.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


def test_takes_the_state_of_an_exact_tracker():
    """Of a checkpoint from before there were compact ones; an audit of it stays exact."""
    batches, _ = steps(3, seed=6, num_possible=13)
    exact, compact = both(batches)
    taken = CompactTracker(LABELS, NUM_CLASSES)
    taken.load_state_dict(exact.state_dict())
    wanted = compact.statistics().probabilities.dense()
    torch.testing.assert_close(taken.statistics().probabilities.dense(), wanted)
    assert type(load_tracker(exact.state_dict(), LABELS, 0)) is AnnotationTracker


def test_state_of_another_dataset_is_named():
    state = CompactTracker(LABELS, NUM_CLASSES).state_dict()
    message = "tracked 300 annotations of 200 classes, this run has 300 annotations of 90 classes"
    for other in (CompactTracker(LABELS % 90, 90), AnnotationTracker(NUM_ANNOTATIONS, 90)):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


def train_half(rank: int, folder: Path, num_possible: int) -> None:
    """Each process sees half of the steps; a save and a resumption lie between."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    tracker = CompactTracker(LABELS, NUM_CLASSES)
    batches = steps(8, seed=7, num_possible=num_possible)[0]
    for number, (ids, *values) in enumerate(batches):
        mine = torch.arange(len(ids)) % 2 == rank
        tracker(ids[mine], *(value[mine] for value in values))
        if number == len(batches) // 2:
            means = tracker.mean_probabilities().dense()
            tracker.synchronize()
            if rank == 0:
                torch.testing.assert_close(means, tracker.statistics().probabilities.dense())
                torch.save(tracker.state_dict(), folder / "state.pt")
            dist.barrier()
            tracker = CompactTracker(LABELS, NUM_CLASSES)
            tracker.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    torch.save(tracker.mean_probabilities().dense(), folder / f"means{rank}.pt")
    tracker.synchronize()
    torch.save(tracker.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("num_possible", [13, NUM_CLASSES])
def test_two_processes_are_merged_into_one(tmp_path, num_possible):
    with forked_ranks():
        mp.start_processes(train_half, args=(tmp_path, num_possible), nprocs=2)
    merged = CompactTracker(LABELS, NUM_CLASSES)
    merged.load_state_dict(torch.load(tmp_path / "0.pt", weights_only=True))
    # Every process computes label corrections from the same.
    means = [torch.load(tmp_path / f"means{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*means)
    exact, one = both(steps(8, seed=7, num_possible=num_possible)[0])
    found, wanted = (t.statistics().probabilities.dense() for t in (merged, one))
    if num_possible == 13:  # all fit: the sum over processes is that of one
        torch.testing.assert_close(found, wanted)
    # The bound holds of the merged sketch as of one.
    off = found - exact.statistics().probabilities
    bound = merged.sums[:-1, -1:] / merged.sums[:-1, 3:4]
    assert (off.abs() <= bound + 1e-5).all()
    assert (bound <= 1 / 13 + 1e-5).all()
    other = torch.load(tmp_path / "1.pt", weights_only=True)
    assert not other["sums"].any()
    assert not other["sketch"].any()
