"""Trainers that stop at a loss that is not finite, on all ranks, and say where it comes from."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm

from .resume import any_rank

__all__ = ["FiniteAMPTrainer", "FiniteTrainer", "trainer_class"]


class FiniteTrainer(SimpleTrainer):
    """:class:`SimpleTrainer`; an infinite loss or nan is reported with its term and its images.

    The weights are not stepped and no checkpoint is written after it. The values that the stock
    trainer logs every iteration are checked, so that a GPU is waited for no more often.

    Raises:
        FloatingPointError: from ``run_step``, on every rank
    """

    def run_step(self) -> None:
        try:
            super().run_step()
        except FloatingPointError as error:
            message = " ".join(str(error).split())
            if message.startswith("iteration"):
                raise
            # The proposal generator's own check, of boxes and scores.
            raise FloatingPointError(self._where(message)) from error

    def _write_metrics(self, loss_dict: Any, data_time: float, *args: Any, **kwargs: Any) -> None:
        # One copy to the host in place of one a term.
        copies = torch.stack([v.detach().double() for v in loss_dict.values()]).cpu()
        self._check(dict(zip(loss_dict, copies.tolist())))
        super()._write_metrics(dict(zip(loss_dict, copies)), data_time, *args, **kwargs)

    def _check(self, losses: Mapping[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if not any_rank(bool(bad)):
            return
        reports = comm.all_gather(self._where(" and ".join(bad)) if bad else "")
        raise FloatingPointError("; ".join(report for report in reports if report))

    def _where(self, what: str) -> str:
        images = getattr(self.data_loader, "image_ids", None)
        rank = f", rank {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        return f"iteration {self.iter}{rank}: {what}; images {images}"


class FiniteAMPTrainer(FiniteTrainer, AMPTrainer):
    """:class:`AMPTrainer` with the check of :class:`FiniteTrainer`."""


def trainer_class(amp: bool) -> type[SimpleTrainer]:
    """The class that runs a step, with or without mixed precision."""
    return FiniteAMPTrainer if amp else FiniteTrainer
