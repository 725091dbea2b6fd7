"""Label noise for projects that build their own loader."""

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper

from ..config import train_sets
from .clean_seeds import CleanSeeds
from .config import clean_seeds, noises_from_config, train_classes
from .injection import NOISE_KEY
from .noises import Noise, instantiated

__all__ = ["NoisyLabelMapper"]


class NoisyLabelMapper:
    """Put label noise into a record, then hand it to any detectron2 mapper.

    The noise equals the one that :func:`~sl_detectron.label_noise.build_noisy_train_loader` puts in
    before sampling. Prefer that loader: here samplers and class histograms see the clean labels.
    A record that is noisy already goes through as it is.

    Args:
        mapper: called with the noisy record
        noises: in Bernoulli mode; none leaves every record clean
        num_classes: K
        dataset_name: of records without the key "dataset_name"; None where they all have it
        seeds: images that no noise changes; None for none

    Raises:
        ValueError: a noise has the exact mode, which has to see the whole dataset

    Example:
        >>> from sl_detectron.label_noise import SymmetricNoise
        >>> labels = lambda record: [a["category_id"] for a in record["annotations"]]
        >>> mapper = NoisyLabelMapper(labels, [SymmetricNoise(rate=1.0)], num_classes=2)
        >>> mapper({"image_id": 7, "annotations": [{"category_id": 0}, {"category_id": 1}]})
        [1, 0]
    """

    @configurable
    def __init__(
        self,
        mapper: Callable[[dict[str, Any]], Any],
        noises: Sequence[Noise],
        num_classes: int,
        dataset_name: str | None = "",
        seeds: CleanSeeds | None = None,
    ):
        given = instantiated(noises)
        exact = [noise for noise in given if noise.rate > 0 and noise.mode == "exact"]
        if exact:
            raise ValueError(
                f"{exact[0]}: a mapper gets one image, but the exact mode needs the whole dataset; "
                "use build_noisy_train_loader, inject() on the dataset, or mode 'bernoulli'"
            )
        self.mapper = mapper
        self.noises = given
        self.num_classes = num_classes
        self.dataset_name = dataset_name
        (self.seeds,) = instantiated([seeds or CleanSeeds()])

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments by ``DATASETS.LABEL_NOISE`` around :class:`DatasetMapper`; none for tests.

        Raises:
            ValueError: a manifest is set, which is checked against the whole dataset
        """
        if is_train and cfg.DATASETS.LABEL_NOISE.MANIFEST:
            raise ValueError(
                "DATASETS.LABEL_NOISE.MANIFEST needs the whole dataset, but a mapper gets one "
                "image; use build_noisy_train_loader(cfg) or apply_changes() on the dataset"
            )
        noises = noises_from_config(cfg) if is_train else ()
        names = [*dict.fromkeys(train_sets(cfg))]
        return {
            "mapper": DatasetMapper(cfg, is_train),
            "noises": noises,
            "num_classes": len(train_classes(cfg)) if noises else 0,
            "dataset_name": names[0] if len(names) == 1 else None,
            "seeds": clean_seeds(cfg) if is_train else None,
        }

    def __call__(self, record: dict[str, Any]) -> Any:
        """Return what the mapper makes of the noisy record; the record is never changed."""
        is_noisy = "annotations" not in record or NOISE_KEY in record
        if (self.noises or self.seeds.share) and not is_noisy:
            name = record.get("dataset_name", self.dataset_name)
            if name is None:
                raise ValueError(
                    f"image {record['image_id']!r} does not name its training set; "
                    "set record['dataset_name'] or use build_noisy_train_loader(cfg)"
                )
            noisy, _ = self.seeds.inject([record], self.noises, self.num_classes, name)
            (record,) = self.seeds.mark(name, noisy)
        return self.mapper(record)
