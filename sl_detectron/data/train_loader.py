"""A training loader that can go on where it stopped: batches are a function of (seed, position).

detectron2's loader starts its sampler anew after an interruption, and what its workers draw for
crops and flips depends on how many of them there are. Here every place in the endless stream of
samples has a number; the random draws of a sample are seeded by it, and to skip samples costs no
image.
"""

import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from .annotation_ids import AnnotationTable
from .images import BROKEN_IMAGES, READ_ERRORS, BrokenImage, broken_image, image_name

__all__ = ["TrainLoader", "check_loading", "shield_workers"]

_MAX_SKIPPED = 10

# (number in the stream of all ranks, index of the record)
Ticket = tuple[int, int]

logger = logging.getLogger(__name__)


class TrainLoader:
    """Endless batches of mapped records, the same after a resume, with any number of workers.

    Args:
        dataset: records
        mapper: called with a record; what it draws from random, numpy.random and torch is seeded
        total_batch_size: over all ranks
        make_sampler: makes the index sampler of this rank from a seed; None for
            :class:`TrainingSampler`
        aspect_ratio_grouping: batches of upright or of wide images only, as detectron2 makes them
        num_workers: processes that load images
        seed: None draws one, the same on all ranks
        broken_images: "error" stops at an image that cannot be read; "skip" warns and takes another

    ``start_batch`` is the number of batches to skip, to be set before the first one is drawn;
    ``image_ids`` are those of the batch that was given last; ``annotations`` is the table of all
    annotations where :func:`build_noisy_train_loader` has set it.

    Raises:
        ValueError: a batch size that the ranks cannot share, a record without size, an unknown word

    Example:
        >>> records = [{"image_id": i, "width": 2, "height": 1} for i in range(4)]
        >>> def batches(start):
        ...     loader = TrainLoader(records, lambda r: r["image_id"] + random.random(), 2, seed=0)
        ...     loader.start_batch = start
        ...     return iter(loader)
        >>> first, second, third = islice(batches(0), 3)
        >>> third == next(batches(2))
        True
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], Any],
        total_batch_size: int,
        make_sampler: Callable[[int], Sampler] | None = None,
        *,
        aspect_ratio_grouping: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
        broken_images: str = "error",
    ):
        check_loading(total_batch_size, broken_images)
        self.batch_size = total_batch_size // comm.get_world_size()
        self.num_images = size = len(dataset)
        self.num_workers = num_workers
        self.seed = comm.shared_random_seed() if seed is None else seed
        # With the size: a reference to the records would keep them in memory beside their copy.
        self.make_sampler = make_sampler or (lambda seed: TrainingSampler(size, seed=seed))
        self.annotations: AnnotationTable | None = None
        self.start_batch = 0
        self.image_ids: list[Any] = []
        self._wide = _wide_images(dataset) if aspect_ratio_grouping else None
        self._records = DatasetFromList(list(dataset), copy=False)
        self._mapper, self._broken_images = mapper, broken_images
        self._batches: Any = None
        self.sampler = self.make_sampler(self.seed)

    def state_dict(self) -> dict[str, Any]:
        """What decides the order of the data, for a checkpoint."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "world_size": comm.get_world_size(),
            "num_images": self.num_images,
            "sampler": type(self.sampler).__name__,
            "aspect_ratio_grouping": self._wide is not None,
            "labels": self.annotations and self.annotations.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the seed; warns if what else decides the data has changed."""
        ours = self.state_dict()
        changed = [key for key in ours if key != "seed" and ours[key] != state[key]]
        if changed:
            logger.warning(
                "The data differ from those before the interruption, or come in another order: %s",
                ", ".join(f"{key} was {state[key]} and is {ours[key]}" for key in changed),
            )
        self.seed = int(state["seed"])
        self.sampler = self.make_sampler(self.seed)

    def __iter__(self) -> Iterator[list[Any]]:
        """Batches from ``start_batch`` on.

        Raises:
            ValueError: an image cannot be read, by id and file
        """
        samples = _SeededSamples(self._records, self._mapper, self.seed, self._broken_images)
        loader: DataLoader = DataLoader(
            samples,
            batch_sampler=islice(self._tickets(), self.start_batch, None),
            num_workers=self.num_workers,
            # Batches that wait lie in shared memory, of which containers often have 64 MB.
            prefetch_factor=1 if self.num_workers else None,
            collate_fn=trivial_batch_collator,
            # Else each iterator would draw from the generator that the model draws from.
            generator=torch.Generator().manual_seed(self.seed),
        )
        self._batches = iter(shield_workers(loader))
        for batch in self._batches:
            # Raised in the main process: a worker's error has no line.
            broken = [sample for sample in batch if isinstance(sample, BrokenImage)]
            if broken:
                raise broken[0]
            self.image_ids = [image_name(sample) for sample in batch]
            yield batch

    def close(self) -> None:
        """End the worker processes, if there are any."""
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        self._batches = None

    def _tickets(self) -> Iterator[list[Ticket]]:
        """The batches of this rank, without their images."""
        rank, world_size = comm.get_rank(), comm.get_world_size()
        buckets: dict[bool, list[Ticket]] = {False: [], True: []}
        for i, index in enumerate(self.sampler):
            bucket = buckets[self._wide is not None and bool(self._wide[index])]
            bucket.append((i * world_size + rank, index))
            if len(bucket) == self.batch_size:
                yield bucket.copy()
                bucket.clear()


class _SeededSamples(Dataset):
    """The mapped record of a ticket; what the mapper draws depends on the ticket alone."""

    def __init__(self, records: Any, mapper: Any, seed: int, broken_images: str):
        self.records = records
        self.mapper = PicklableWrapper(mapper)
        self.seed = seed
        self.broken_images = broken_images
        self._warned: set[int] = set()

    def __getitem__(self, ticket: Ticket) -> Any:
        number, index = ticket
        for attempt in range(_MAX_SKIPPED):
            sequence = np.random.SeedSequence([self.seed, number, attempt])
            if attempt:
                index = int(np.random.default_rng(sequence).integers(len(self.records)))
            sample = self._map(index, sequence)
            is_broken = isinstance(sample, BrokenImage)
            if sample is not None and not (is_broken and self.broken_images == "skip"):
                return sample
            if is_broken and index not in self._warned:
                logger.warning("Skipped %s", str(sample).partition("; repair it")[0])
                self._warned.add(index)
        # Without the advice to skip images: they were.
        reason = "the mapper returned None"
        if sample is not None:
            reason = str(sample).partition("; repair it")[0] + "; repair the images"
        return BrokenImage(f"{_MAX_SKIPPED} images in a row could not be used; the last: {reason}")

    def _map(self, index: int, sequence: np.random.SeedSequence) -> Any:
        record = self.records[index]
        try:
            with _seeded(sequence):
                return self.mapper(record)  # None: a custom mapper skips the image
        except READ_ERRORS as error:
            return broken_image(record, error)


@contextmanager
def _seeded(sequence: np.random.SeedSequence) -> Iterator[None]:
    """Seed what augmentations draw from, and leave it as it was: the model draws from it too."""
    words = sequence.generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 - detectron2's augmentations draw from it
    # Not torch.manual_seed, which seeds the GPUs too.
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def check_loading(total_batch_size: int, broken_images: str) -> None:
    """Raise ValueError for a batch size that the ranks cannot share, or an unknown word."""
    world_size = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, {world_size}, "
            f"and above 0; got {total_batch_size}"
        )
    if broken_images not in BROKEN_IMAGES:
        raise ValueError(
            f"DATALOADER.BROKEN_IMAGES must be one of {BROKEN_IMAGES}; got {broken_images!r}"
        )


def _wide_images(records: Sequence[dict[str, Any]]) -> np.ndarray:
    for record in records:
        if not record.get("width") or not record.get("height"):
            raise ValueError(
                f"image {image_name(record)!r} has no width and height, which group the "
                "images; set them, or DATALOADER.ASPECT_RATIO_GROUPING False"
            )
    return np.array([record["width"] > record["height"] for record in records])


def shield_workers(loader: Any) -> Any:
    """Let SIGTERM end the workers of a loader only where their parent sent it, in place.

    A scheduler signals every process of a job. The training has to end the step that it is in and
    write a checkpoint; a worker that dies raises an error wherever the training happens to be.

    Args:
        loader: a :class:`DataLoader`, or one inside of detectron2's wrappers, that has not been
            iterated; any other is returned as it is
    """
    inner = loader
    while inner is not None and not isinstance(inner, DataLoader):
        # Of AspectRatioGroupedDataset and of MapDataset.
        inner = getattr(inner, "dataset", getattr(inner, "_dataset", None))
    if inner is not None:
        inner.worker_init_fn = partial(_heed_the_parent_only, inner.worker_init_fn)
    return loader


def _heed_the_parent_only(init: Callable[[int], None] | None, worker_id: int) -> None:
    if init is not None:
        init(worker_id)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=wait, daemon=True).start()
