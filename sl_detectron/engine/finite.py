"""Trainers that stop all ranks at a loss that is not finite, and report where it comes from."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.train_loader import image_name
from .resume import any_rank

# AMP is float16 with a scaler on the first, bfloat16 on the second.
AMP_DEVICES = ("cuda", "cpu")

__all__ = ["AMP_DEVICES", "FiniteAMPTrainer", "FiniteBF16Trainer", "FiniteTrainer", "trainer_class"]


class FiniteTrainer(SimpleTrainer):
    """:class:`SimpleTrainer`; an infinite loss or nan is reported with its term and its images.

    The weights are not stepped and no checkpoint is written after it. The values that the stock
    trainer logs every iteration are checked, so that a GPU is waited for no more often.

    Raises:
        FloatingPointError: from ``run_step``, on every rank
    """

    _images: Sequence[Any] = ()

    def run_step(self) -> None:
        # For this step only: a hook would be copied and saved along with the model.
        hook = self.model.register_forward_pre_hook(self._note_images)
        try:
            super().run_step()
        except FloatingPointError as error:
            message = " ".join(str(error).split())
            if message.startswith("iteration"):
                raise
            # The check of the proposal generator, of boxes and scores.
            raise FloatingPointError(self._where(message)) from error
        finally:
            hook.remove()

    def _note_images(self, model: torch.nn.Module, args: tuple[Any, ...]) -> None:
        batch = args[0] if args and isinstance(args[0], list) else []
        self._images = [image_name(sample) for sample in batch]

    def _write_metrics(self, loss_dict: Any, data_time: float, *args: Any, **kwargs: Any) -> None:
        # One copy to the host in place of one a term. Doubles are made there: not every device
        # has them, and a term may be on another device or of shape (1,).
        values = [v.detach().reshape(()) for v in loss_dict.values()]
        copies = torch.stack([v.to(values[0].device) for v in values]).cpu().double()
        self._check(dict(zip(loss_dict, copies.tolist())))
        super()._write_metrics(dict(zip(loss_dict, copies)), data_time, *args, **kwargs)

    def _check(self, losses: Mapping[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        if not any_rank(bool(bad)):
            return
        reports = comm.all_gather(self._where(" and ".join(bad)) if bad else "")
        raise FloatingPointError("; ".join(report for report in reports if report))

    def _where(self, what: str) -> str:
        rank = f", rank {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        return f"iteration {self.iter}{rank}: {what}; images {self._images}"


class FiniteAMPTrainer(FiniteTrainer, AMPTrainer):
    """:class:`AMPTrainer` with the check of :class:`FiniteTrainer`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a run without a scaler, as those on a CPU are: the new one stays."""
        scaler = {"grad_scaler": self.grad_scaler.state_dict()}
        super().load_state_dict({**scaler, **state_dict})


class FiniteBF16Trainer(FiniteTrainer):
    """Mixed precision on a CPU, where :class:`AMPTrainer` does not run: bfloat16, without a scaler.

    The range of bfloat16 is that of float32, so gradients need no scaling.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        convolutions = (m for m in self.model.modules() if isinstance(m, nn.Conv2d))
        self._strided = [m for m in convolutions if m.stride[1] > 1]

    def run_step(self) -> None:
        # The forward pass alone, as AMPTrainer does; left at the latest with the step, also where
        # the forward pass is interrupted.
        with contextlib.ExitStack() as stack:

            def enter(*_: Any) -> None:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))

            def leave(*_: Any) -> None:
                stack.close()

            hooks = [
                self.model.register_forward_pre_hook(enter),
                self.model.register_forward_hook(leave),
                *(m.register_forward_pre_hook(_widen) for m in self._strided),
            ]
            try:
                super().run_step()
            finally:
                for hook in hooks:
                    hook.remove()


def _widen(convolution: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Pad an input to the width of the stride, which leaves the output of same padding unchanged.

    In bfloat16 the weights of a convolution whose input is narrower than its stride, as level p6 of
    a small image, get gradients from memory that nothing was written to (oneDNN in torch 2.14).
    """
    images, *others = args
    missing = convolution.stride[1] - images.shape[-1]
    return (F.pad(images, (0, missing)), *others) if missing > 0 else args


def trainer_class(amp: bool, device: str | torch.device) -> type[SimpleTrainer]:
    """The class that runs a step, with or without mixed precision."""
    if not amp:
        return FiniteTrainer
    return FiniteBF16Trainer if torch.device(device).type == "cpu" else FiniteAMPTrainer
