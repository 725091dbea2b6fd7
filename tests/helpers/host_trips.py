"""Trips from the device to the host, of which each makes a GPU wait, found on a CPU as well."""

import contextlib
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import REPO

PACKAGE = REPO / "sl_detectron"
# What a comment above a trip has to say, with the reason after it.
EXPLAINED = "host trip:"
aten = torch.ops.aten
# The size of the result, or the result itself, is a value on the host.
READS = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave),
}
# On a CPU these do not come to a dispatcher. The last ones copy from pageable memory of the host.
CALLS = {
    *(Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__),
    *(torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor),
}


class Trip(NamedTuple):
    """A trip, and the place in sl_detectron, or below detectron2's models, that makes it."""

    what: str
    file: Path
    line: int

    @property
    def is_ours(self) -> bool:
        return self.file.is_relative_to(PACKAGE)

    @property
    def is_explained(self) -> bool:
        """Whether a comment at the place, or in the four lines above, gives the reason."""
        lines = self.file.read_text().splitlines()[max(self.line - 5, 0) : self.line]
        return any(EXPLAINED in line.lower() for line in lines)


class HostTrips(contextlib.ExitStack):
    """A context that notes the trips of the code in it, and counts the operators.

    ``trips`` has those that a SuperLoss detector or its stock detector makes; ``ops`` counts the
    dispatched operators but views. With ``cuda`` it is torch that says what a trip is.
    """

    def __init__(self, cuda: bool = False) -> None:
        super().__init__()
        self.trips: list[Trip] = []
        self.ops: Counter[str] = Counter()
        self.cuda = cuda

    def __enter__(self) -> "HostTrips":
        super().__enter__()
        self.enter_context(_Dispatched(self))
        if not self.cuda:
            self.enter_context(_Called(self))
            return self
        self.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = self._show
        self.callback(torch.cuda.set_sync_debug_mode, torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("warn")
        return self

    @property
    def unexplained(self) -> list[Trip]:
        return [trip for trip in self.trips if trip.is_ours and not trip.is_explained]

    def note(self, what: str) -> None:
        for frame in reversed(traceback.extract_stack(sys._getframe(1))):
            path = Path(frame.filename)
            stock = "detectron2" in path.parts and "modeling" in path.parts
            if path.is_relative_to(PACKAGE) or stock:
                self.trips.append(Trip(what, path, frame.lineno or 0))
                return

    def _show(self, message, *_, **__) -> None:
        if "called a synchronizing" in str(message):
            self.note(str(message).split("(")[0])


class _Dispatched(TorchDispatchMode):
    def __init__(self, owner: HostTrips) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if not func.is_view and packet not in (aten.empty, aten.empty_like, aten.new_empty):
            self.owner.ops[str(packet)] += 1
        masked = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if not self.owner.cuda and (packet in READS or masked):
            self.owner.note(str(packet))
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self, owner: HostTrips) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func, types, args=(), kwargs=None):
        views = func in (torch.as_tensor, torch.asarray)
        from_tensor = views and isinstance(args[0], Tensor)
        if func in CALLS and not from_tensor:
            self.owner.note(f"torch.{func.__name__}")
        return func(*args, **(kwargs or {}))
