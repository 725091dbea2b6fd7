"""Images whose annotations stay as they are: a clean seed set, for methods that need one."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ..config import IS_SEED
from ..data.formats.annotations import Record, image_id_of
from ..data.formats.changes import Change
from .injection import NOISE_KEY, inject
from .noises import Noise

__all__ = ["CleanSeeds"]


@dataclass(frozen=True)
class CleanSeeds:
    """Which images noise leaves alone, decided by a hash of the seed, the dataset and the image.

    So it is the same images on every epoch, worker and rank, at every rate and of every noise. A
    rate counts the annotations of the other images: of the whole set ``rate * (1 - share)`` change.

    Args:
        share: of the images, in [0, 1]; each is drawn independently
        seed: any integer

    Raises:
        ValueError: a value is out of range; the message starts with the argument's name

    Example:
        >>> seeds = CleanSeeds(share=0.5)
        >>> [seeds.has("pets", {"image_id": i}) for i in range(4)]
        [False, False, False, True]
    """

    share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1]; got {self.share!r}")

    def has(self, dataset_name: str, record: Record) -> bool:
        """Whether an image is kept clean."""
        identity = json.dumps(["clean", self.seed, dataset_name, str(record["image_id"])])
        draw = int.from_bytes(blake2b(identity.encode(), digest_size=8).digest(), "little")
        return draw < int(self.share * 2.0**64)

    def image_ids(self, dataset_name: str, records: Iterable[Record]) -> list[str | int]:
        """Ids of the images of a set that are kept clean, in its order."""
        return [image_id_of(r) for r in records if self.share and self.has(dataset_name, r)]

    def mark(self, dataset_name: str, records: Sequence[Record]) -> list[Record]:
        """The records, each with the key ``is_clean_seed``; without it where the share is 0."""
        if not self.share:
            return list(records)
        return [{**record, IS_SEED: self.has(dataset_name, record)} for record in records]

    def inject(
        self, records: Sequence[Record], noises: Sequence[Noise], num_classes: int, name: str
    ) -> tuple[list[Record], list[Change]]:
        """As :func:`~sl_detectron.label_noise.inject`, with the seeds left as they are."""
        if not self.share:
            return inject(records, noises, num_classes, name)
        kept = [self.has(name, record) for record in records]
        others, changes = inject(
            [r for r, is_kept in zip(records, kept) if not is_kept], noises, num_classes, name
        )
        noisy, origin = iter(others), f"{name}: kept clean, {self}"
        return [
            {**record, NOISE_KEY: origin} if is_kept else next(noisy)
            for record, is_kept in zip(records, kept)
        ], changes

    def check_changes(self, dataset_name: str, changes: Iterable[Change]) -> None:
        """Refuse recorded changes of an image that is to be clean.

        Raises:
            ValueError: there is one
        """
        for change in changes if self.share else ():
            image_id = change.image_id
            if self.has(dataset_name, {"image_id": image_id}):
                raise ValueError(
                    f"dataset {dataset_name!r}: a manifest changes image {image_id!r}, which "
                    f"CLEAN_SHARE {self.share} with SEED {self.seed} keeps clean: write the "
                    "manifest with the same --clean-share and --seed"
                )
