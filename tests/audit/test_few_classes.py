"""The few largest entries of distributions against the distributions."""

import torch

from sl_detectron.audit.few_classes import FewClasses, blocks, in_rows, joined, seen_rows

K = 40


def distributions(num: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sharp = 3 * torch.randn(num, K, generator=generator)
    return sharp.softmax(dim=1), torch.randint(K, (num,), generator=generator)


def test_keeps_the_given_and_the_largest():
    dense, labels = distributions(50)
    few = FewClasses.of(dense, labels, num_kept=6)
    assert torch.equal(few.classes[:, 0], labels)
    assert torch.equal(few.at(labels[:, None]), dense.gather(1, labels[:, None]))
    values, classes = dense.topk(3)
    assert torch.equal(few.topk(3)[0], values)
    assert torch.equal(few.topk(3)[1], classes)
    torch.testing.assert_close(few.dense().sum(dim=1), torch.ones(50))
    assert torch.equal(FewClasses.of(dense, labels, num_kept=K).dense(), dense)


def test_at_equals_the_dense_rows():
    dense, labels = distributions(30)
    few = FewClasses.of(dense, labels, num_kept=5)
    every = torch.arange(K).repeat(30, 1)
    assert torch.equal(few.at(every), few.dense())


def test_a_place_without_a_class_counts_nothing():
    few = FewClasses(
        torch.tensor([[3, 5, 3]]), torch.tensor([[0.5, 0.2, 0.0]]), torch.tensor([0.01]), K
    )
    dense = few.dense()[0]
    assert dense[[3, 5, 7]].tolist() == few.at(torch.tensor([[3, 5, 7]]))[0].tolist()
    assert torch.isclose(dense[3], torch.tensor(0.5))


def test_blocks_are_all_rows_in_order():
    dense, labels = distributions(23)
    few = FewClasses.of(dense, labels)
    parts = [*blocks(few, size=4 * K)]
    assert [rows.start for rows, _ in parts] == [0, 4, 8, 12, 16, 20]
    assert torch.equal(torch.cat([block for _, block in parts]), few.dense())
    assert next(iter(blocks(dense)))[1] is dense


def test_mean_over_rows_leaves_those_of_nan_out():
    dense, labels = distributions(20)
    few = FewClasses.of(dense, labels)
    lacking = FewClasses(few.classes, few.values.clone(), few.rest.clone(), K)
    lacking.values[4], lacking.rest[4] = torch.nan, torch.nan
    assert seen_rows(lacking).tolist() == [i != 4 for i in range(20)]
    kept = torch.arange(20) != 4
    torch.testing.assert_close(lacking.mean_over_rows(), few.dense()[kept].mean(dim=0))


def test_rows_among_all_annotations():
    dense, labels = distributions(4)
    rows, given = torch.tensor([5, 0, 2, 3]), torch.arange(7)
    few = in_rows(FewClasses.of(dense, labels), rows, given)
    whole = in_rows(FewClasses.of(dense, labels).dense(), rows, given)
    assert few.shape == whole.shape == (7, K)
    assert torch.equal(few.dense(), whole)
    assert whole[6].argmax() == 6


def test_joined_parts_are_their_rows():
    dense, labels = distributions(9)
    few = FewClasses.of(dense, labels)
    assert torch.equal(joined([few[:4], few[4:]]).dense(), few.dense())
    assert torch.equal(joined([dense[:4], dense[4:]]), dense)
