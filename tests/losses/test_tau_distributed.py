"""tau with several processes: the same on every rank, and that of one process with all losses."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sl_detectron.losses import SuperLoss

NUM_STEPS = 5


def step_losses(step: int, rank: int) -> torch.Tensor:
    """Batches of uneven size with a nan; in the first step, and in another, some rank is empty."""
    if (step, rank) in {(0, 1), (2, 0)}:
        return torch.zeros(0)
    losses = torch.rand(3 + 2 * rank + step, generator=torch.Generator().manual_seed(step)) + rank
    losses[0] = torch.nan
    return losses


def train(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    record = {}
    for tau in ("Avg", "ExpAvg"):
        criterion, record[tau] = SuperLoss(tau), []
        for step in range(NUM_STEPS):
            losses = step_losses(step, rank).requires_grad_()
            value, sigma = criterion.with_confidence(losses)
            value.sum().backward()
            record[tau].append((criterion.tau, sigma, losses.grad))
        if rank == 0:
            # Evaluation on one rank alone would hang if it joined a collective.
            criterion.eval()(torch.rand(3))
    torch.save(record, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_agree_with_one_process(world_size, tmp_path):
    mp.spawn(train, args=(world_size, tmp_path), nprocs=world_size)
    records = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    for tau in ("Avg", "ExpAvg"):
        criterion = SuperLoss(tau)
        for step in range(NUM_STEPS):
            parts = [step_losses(step, rank) for rank in range(world_size)]
            _, sigma = criterion.with_confidence(torch.cat(parts))
            ranks = [record[tau][step] for record in records]
            for rank_tau, _, _ in ranks:
                assert torch.equal(rank_tau, ranks[0][0])
                torch.testing.assert_close(rank_tau, criterion.tau, rtol=1e-14, atol=0)
            rank_sigma = torch.cat([s for _, s, _ in ranks])
            torch.testing.assert_close(rank_sigma, sigma, equal_nan=True)
            gradient = torch.cat([g for _, _, g in ranks])
            torch.testing.assert_close(gradient, rank_sigma, rtol=0, atol=0, equal_nan=True)
