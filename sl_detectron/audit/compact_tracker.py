"""Statistics of an annotation in 128 bytes, whatever the number of classes.

The given class has a sum. Of the others a row keeps a sketch of heavy hitters: the classes with the
largest sums (Misra and Gries, 1982; merged as by Agarwal et al., 2012). Where more classes than fit
have a sum, the largest that does not fit is taken off all of them, and added to a floor. A class
that is kept has its sum in the sketch plus at most the floor, one that is not kept at most the
floor; the floor is at most the weight of all samples / (NUM_KEPT + 1), and 0 while all fit.

Shape legend: A annotations, S samples of a step, K classes, M classes of a sketch.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor

from .few_classes import MAX_DENSE, NUM_KEPT, FewClasses
from .tracker import NUM_VALUES, AnnotationTracker, tracked_shape

__all__ = ["CompactTracker", "build_tracker", "load_tracker"]

# Columns of the sums after those that every tracker has.
_TOTAL, _GIVEN, _FLOOR = range(NUM_VALUES, NUM_VALUES + 3)
_WEIGHT = NUM_VALUES - 1
# Rows that ranks exchange at once: some 20 MB.
_ROWS = 2**18


def build_tracker(labels: Tensor, num_classes: int, fingerprint: int = 0) -> AnnotationTracker:
    """The exact tracker where it takes at most 128 bytes an annotation, else the compact one.

    Args:
        labels: (A,) int64 given classes
        num_classes: K
        fingerprint: of the annotations

    Raises:
        ValueError: there are fewer than two classes
    """
    if num_classes <= MAX_DENSE:
        return AnnotationTracker(len(labels), num_classes, fingerprint)
    return CompactTracker(labels, num_classes, fingerprint)


def load_tracker(state: Mapping[str, Any], labels: Tensor, fingerprint: int) -> AnnotationTracker:
    """The tracker that a checkpoint's state is of, with that state.

    Raises:
        ValueError: it is of other annotations
    """
    _, num_classes = tracked_shape(state)
    tracker: AnnotationTracker
    if "sketch" in state:
        tracker = CompactTracker(labels, num_classes, fingerprint)
    else:
        tracker = AnnotationTracker(len(labels), num_classes, fingerprint)
    tracker.load_state_dict(state)
    return tracker


class CompactTracker(AnnotationTracker):
    """An :class:`AnnotationTracker` whose rows do not grow with the number of classes.

    All but the probabilities are as there, bit for bit. The probabilities are
    :class:`FewClasses`.

    Args:
        labels: (A,) int64 given classes
        num_classes: K
        fingerprint: of the annotations
        num_kept: M; at most K - 1 are kept

    Raises:
        ValueError: there are fewer than two classes

    Example:
        >>> tracker = CompactTracker(torch.tensor([0]), num_classes=30)
        >>> probabilities = torch.zeros(1, 30)
        >>> probabilities[0, [0, 7]] = torch.tensor([0.25, 0.75])
        >>> tracker(torch.tensor([0]), torch.ones(1), torch.ones(1), probabilities)
        >>> tracker.statistics().probabilities.topk(2)
        (tensor([[0.7500, 0.2500]]), tensor([[7, 0]]))
    """

    sketch: Tensor
    sketch_classes: Tensor
    num_classes: Tensor
    labels: Tensor

    def __init__(
        self, labels: Tensor, num_classes: int, fingerprint: int = 0, num_kept: int = NUM_KEPT
    ):
        super().__init__(len(labels), num_classes, fingerprint)
        num_kept, rows = min(num_kept, num_classes - 1), len(labels) + 1
        kind = torch.int16 if num_classes <= 2**15 else torch.int32
        self.register_buffer("sketch", torch.zeros(rows, num_kept))
        # Classes without a sum yet, each once.
        classes = torch.arange(num_kept, dtype=kind).repeat(rows, 1)
        self.register_buffer("sketch_classes", classes)
        self.register_buffer("num_classes", torch.tensor(num_classes))
        given = torch.cat([labels.cpu(), torch.zeros(1, dtype=labels.dtype)]).to(kind)
        self.register_buffer("labels", given, persistent=False)

    @staticmethod
    def _num_columns(num_classes: int) -> int:
        return _FLOOR + 1

    def _class_columns(self, rows: Tensor, weighted: Tensor) -> Tensor:
        """Put a step into the sketch; returns what is added to the sums of the samples."""
        given = weighted.gather(1, self.labels[rows].long()[:, None])
        floors = self._add_to_sketch(rows, weighted)
        return torch.cat([weighted.sum(dim=1, keepdim=True), given, floors[:, None]], dim=1)

    def _add_to_sketch(self, rows: Tensor, weighted: Tensor) -> Tensor:
        """Returns (S,) what the floors of the samples' rows rise by, once for each row."""
        num_samples, num_classes = weighted.shape
        if not num_samples:
            return weighted.new_zeros(0)
        # Samples of one annotation are one entry. Of as many groups as there are samples the last
        # ones are empty: to count those that are not would be a trip to the host.
        order = rows.argsort(stable=True)
        ordered = rows[order]
        starts = torch.ones_like(ordered, dtype=torch.bool)
        starts[1:] = ordered[1:] != ordered[:-1]
        group = starts.cumsum(0) - 1
        pooled = torch.zeros_like(weighted).index_add_(0, group, weighted[order])
        spare = len(self.sketch) - 1
        of_group = torch.full_like(rows, spare).index_copy_(0, group, ordered)
        # The given class has a sum of its own, and may stand in an empty place of the sketch.
        given = self.labels[of_group].long()[:, None]
        pooled.scatter_(1, given, 0.0)
        kept, classes = self.sketch[of_group], self.sketch_classes[of_group].long()
        kept = kept + pooled.gather(1, classes)
        pooled.scatter_(1, given, -1.0)
        pooled.scatter_(1, classes, -1.0)
        num_new = min(kept.shape[1] + 1, num_classes)
        new, new_classes = pooled.topk(num_new, dim=1)
        kept, classes, floors = _largest(
            torch.cat([kept, new], dim=1), torch.cat([classes, new_classes], dim=1), kept.shape[1]
        )
        # What has no annotation ends in the spare row, which stays empty.
        kept = torch.where(of_group[:, None] == spare, 0.0, kept)
        self.sketch.index_copy_(0, of_group, kept)
        self.sketch_classes.index_copy_(0, of_group, classes.to(self.sketch_classes.dtype))
        # The first sample of each group has its floor.
        at_first = torch.where(starts, floors[group], 0.0)
        return torch.zeros_like(at_first).index_copy_(0, order, at_first)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Move everything to the main process; every process has to call it."""
        if comm.get_world_size() > 1:
            sketch = self._merged()
            self.sketch.copy_(sketch[0])
            self.sketch_classes.copy_(sketch[1])
            # Once: the sums are added up over the processes.
            self.sums[:, _FLOOR] += sketch[2] if comm.is_main_process() else 0.0
        super().synchronize()

    @torch.no_grad()
    def mean_probabilities(self) -> FewClasses:
        """As there; every process has to call it."""
        if comm.get_world_size() == 1:
            return self._means(self.sums)
        sums = self.sums.clone()
        dist.all_reduce(sums)
        sketch, classes, floors = self._merged()
        sums[:, _FLOOR] += floors
        return self._means(sums, sketch, classes)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As there; the state of an exact tracker is made compact.

        Raises:
            ValueError: as there
        """
        is_exact = "sketch" not in state_dict
        if is_exact and tracked_shape(state_dict) == tracked_shape(self.state_dict()):
            state_dict = {**state_dict, **self._compacted(state_dict["sums"])}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def _compacted(self, exact: Tensor) -> dict[str, Tensor]:
        """The sums of an exact tracker as entries of a compact one's state."""
        classes = exact[:, NUM_VALUES:]
        few = FewClasses.of(classes, self.labels.long().to(exact.device), self.sketch.shape[1] + 1)
        kept, floors = few.values[:, 1:-1] - few.values[:, -1:], few.values[:, -1:]
        columns = [exact[:, :NUM_VALUES], classes.sum(dim=1, keepdim=True), few.values[:, :1]]
        return {
            "sums": torch.cat([*columns, floors], dim=1),
            "sketch": kept,
            "sketch_classes": few.classes[:, 1:-1].to(self.sketch_classes.dtype),
            "num_classes": self.num_classes,
        }

    def _keep_on_main(self) -> None:
        super()._keep_on_main()
        if not comm.is_main_process():
            self.sketch.zero_()

    def _means(
        self, sums: Tensor, sketch: Tensor | None = None, classes: Tensor | None = None
    ) -> FewClasses:
        """Mean distributions; a kept class has the most that its sum may be, which is exact for
        one that was there from the start."""
        kept = (self.sketch if sketch is None else sketch)[:-1]
        classes = (self.sketch_classes if classes is None else classes)[:-1]
        sums = sums[:-1]
        floors = sums[:, _FLOOR:]
        weights = sums[:, _WEIGHT:_TOTAL]
        kept = torch.where(kept > 0, kept + floors, 0.0)
        given = self.labels[:-1, None]
        left = sums[:, _TOTAL:_GIVEN] - sums[:, _GIVEN:_FLOOR] - kept.sum(dim=1, keepdim=True)
        num_classes = int(self.num_classes)
        others = max(num_classes - 1 - kept.shape[1], 1)
        rest = (left.clamp_min(0) / others).minimum(floors)
        values = torch.cat([sums[:, _GIVEN:_FLOOR], kept], dim=1) / weights
        all_classes = torch.cat([given, classes], dim=1).long()
        return FewClasses(all_classes, values, (rest / weights)[:, 0], num_classes)

    def _merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sketches of all processes as one: values, classes, and (A + 1,) rise of the floors.

        Each process merges a share of the rows, so that twice a sketch is what it sends and what it
        receives, however many there are.
        """
        parts = [
            _exchange(self.sketch[i : i + _ROWS], self.sketch_classes[i : i + _ROWS])
            for i in range(0, len(self.sketch), _ROWS)
        ]
        values, classes, floors = (torch.cat(column) for column in zip(*parts))
        return values, classes, floors


def _largest(values: Tensor, classes: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entries of rows, less the largest that is left out, and (S,) that one."""
    best, columns = values.topk(num_kept + 1, dim=1)
    floors = best[:, num_kept:].clamp_min(0)
    kept = (best[:, :num_kept] - floors).clamp_min(0)
    return kept, classes.gather(1, columns[:, :num_kept]), floors[:, 0]


def _merge(values: Tensor, classes: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sketches side by side in each row as one; a class may be in several."""
    classes, order = classes.sort(dim=1, stable=True)
    values = values.gather(1, order)
    starts = torch.ones_like(classes, dtype=torch.bool)
    starts[:, 1:] = classes[:, 1:] != classes[:, :-1]
    entry = starts.cumsum(1) - 1
    sums = torch.zeros_like(values).scatter_add_(1, entry, values)
    # Entries beyond the last class stay below all others.
    used = torch.zeros_like(starts).scatter_(1, entry, True)
    sums = torch.where(used, sums, -1.0)
    return _largest(sums, torch.zeros_like(classes).scatter_(1, entry, classes), num_kept)


def _exchange(sketch: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of the sketches of all processes, merged; every process gets the result."""
    num_rows, num_kept = sketch.shape
    world_size = comm.get_world_size()
    share = -(-num_rows // world_size)
    # As bytes: not every backend supports 16-bit integers.
    sent = torch.cat([sketch.view(torch.uint8), classes.contiguous().view(torch.uint8)], dim=1)
    sent = torch.cat([sent, sent.new_zeros(share * world_size - num_rows, sent.shape[1])])
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    width = sketch.element_size() * num_kept
    # (share, processes * M)
    side = received.reshape(world_size, share, -1).transpose(0, 1)
    values = side[..., :width].contiguous().view(torch.float32).flatten(1)
    found = side[..., width:].contiguous().view(classes.dtype).long().flatten(1)
    values, found, floors = _merge(values, found, num_kept)
    merged = torch.cat(
        [
            values.view(torch.uint8),
            found.to(classes.dtype).view(torch.uint8),
            floors[:, None].contiguous().view(torch.uint8),
        ],
        dim=1,
    )
    whole = merged.new_empty(share * world_size, merged.shape[1])
    dist.all_gather_into_tensor(whole, merged)
    whole = whole[:num_rows]
    return (
        whole[:, :width].contiguous().view(torch.float32),
        whole[:, width:-4].contiguous().view(classes.dtype),
        whole[:, -4:].contiguous().view(torch.float32)[:, 0],
    )
