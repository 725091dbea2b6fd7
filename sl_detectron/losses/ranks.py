"""What all processes see of a batch, without waiting for a device."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gather_rows", "num_processes", "sum_over_ranks"]


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes, each of which calls; in place."""
    if num_processes() > 1:
        dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor, cap: int) -> Tensor:
    """The rows of all processes, in the order of their ranks.

    Every process sends the same number of rows, so that no count has to be read on the host first.
    Missing rows are nan, and those after the first ``cap`` are
    not sent.

    Args:
        rows: (N, ...) floating point, N different from process to process
        cap: largest number of rows of a process

    Returns:
        (M, ...), the rows themselves where there is one process

    Example:
        >>> gather_rows(torch.tensor([1.0, 2.0]), cap=8)
        tensor([1., 2.])
    """
    if num_processes() == 1:
        return rows
    rows = rows[:cap]
    padding = [0, 0] * (rows.dim() - 1) + [0, cap - len(rows)]
    padded = F.pad(rows, padding, value=math.nan).contiguous()
    parts = [torch.empty_like(padded) for _ in range(num_processes())]
    dist.all_gather(parts, padded)
    return torch.cat(parts)
