"""Training sets with label noise: noise comes first, then the filters of images.

Three filters drop training images. All of them use the noisy annotations, as if the noisy dataset
were on disk: ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` drops images without annotations,
``MIN_KEYPOINTS_PER_IMAGE`` those with too few keypoints, and ``RandomSubsetTrainingSampler`` a
share of the rest. A dataset that ``DATASETS.TRAIN`` names twice is seen twice; both copies share
noise and annotation ids, and an audit ranks each annotation once. Every ``cfg`` has the keys of
:func:`~sl_detectron.add_superloss_config`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)

from ..config import check_has_keys, num_classes_key, num_classes_of, train_sets
from ..data.annotation_ids import number_annotations
from ..data.class_checks import check_classes
from ..data.datasets import load_dataset
from ..data.folds import check_folds, without_fold
from ..data.formats.annotations import Record
from ..data.formats.flaws import check_bad_annotations
from ..data.formats.manifest import changes_from_manifest
from ..data.many_objects import many_objects
from ..data.train_loader import check_loading
from .clean_seeds import CleanSeeds
from .config import (
    check_label_noise,
    check_seeds_of_copy,
    clean_seeds,
    manifest_of,
    noises_from_config,
    refuse_noisy_copy,
    shared_classes,
    train_classes,
)
from .federated import set_image_counts
from .injection import apply_changes
from .noises import Noise, instantiated
from .samplers import SAMPLERS
from .stats import noise_statistics, statistics_table

__all__ = ["check_train_loader", "noisy_dataset_dicts", "noisy_sets"]

logger = logging.getLogger(__name__)


@many_objects()
def noisy_sets(
    names: str | Sequence[str],
    noises: Sequence[Noise] = (),
    bad_annotations: str = "error",
    seeds: CleanSeeds | None = None,
) -> dict[str, list[Record]]:
    """Load registered training sets, inject noises and number the annotations, without a config.

    Images whose annotations are all missing or crowds are left out, as detectron2 leaves them out.

    Args:
        names: of a dataset, or of several with the same classes
        noises: put in one after the other; without any the labels are as they are
        bad_annotations: "error" refuses flawed boxes and images; "skip" leaves them out
        seeds: images that no noise changes; None for none

    Returns:
        {dataset name: dataset dicts}; each annotation has an ``annotation_id``

    Raises:
        ValueError: a set without a class list, where there is noise, or with a flaw

    Example::

        dataloader.train = L(build_noisy_train_loader)(
            sets=L(noisy_sets)(names="my_train", noises=[L(SymmetricNoise)(rate=0.4)]),
            mapper=L(DatasetMapper)(is_train=True, augmentations=[], image_format="BGR"),
            total_batch_size=8,
        )
    """
    given = instantiated(noises)
    (kept,) = instantiated([seeds or CleanSeeds()])
    unique = dict.fromkeys([names] if isinstance(names, str) else names)
    sets = {name: _load(name, bad_annotations) for name in unique}
    if given:
        classes = shared_classes([*unique])
        sets = {
            name: _inject(name, records, classes, given, None, kept)
            for name, records in sets.items()
        }
    sets = {name: kept.mark(name, records) for name, records in sets.items()}
    numbered = number_annotations(sets)
    return {
        name: filter_images_with_only_crowd_annotations(records)
        for name, records in numbered.items()
    }


def check_train_loader(cfg: CfgNode) -> None:
    """Raise ValueError for a wrong key of the training loader, without reading any dataset."""
    check_has_keys(cfg)
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if not train_sets(cfg):
        raise ValueError("DATASETS.TRAIN must name a dataset; got ()")
    if sampler not in SAMPLERS:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN must be one of {SAMPLERS}; got {sampler!r}")
    check_loading(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.BROKEN_IMAGES)
    check_bad_annotations(cfg.DATASETS.BAD_ANNOTATIONS, "DATASETS.BAD_ANNOTATIONS")
    check_folds(cfg.DATASETS.FOLDS, cfg.DATASETS.HELD_OUT_FOLD)


@many_objects()
def noisy_dataset_dicts(cfg: CfgNode) -> dict[str, list[Record]]:
    """Load the training sets, inject their noise and drop what detectron2 would drop.

    Logs the realised rate of every set, and its table by class at level DEBUG.

    Returns:
        {dataset name: noisy dataset dicts}, in the order of ``DATASETS.TRAIN``. A record without
        ``image_id`` gets its file name, or where two have the same name its place in the list, as
        one. Each annotation has an ``annotation_id``, counted over all sets before any image is
        dropped, so that it is the same in every run of the same sets and noise.

    Raises:
        ValueError: the noise is set wrongly or does not fit the datasets, or no image is left
    """
    check_train_loader(cfg)
    check_label_noise(cfg)
    names = train_sets(cfg)
    manifest = manifest_of(cfg)
    # Loading a COCO set sets its class names, which noises may ask for.
    sets = {name: _load(name, cfg.DATASETS.BAD_ANNOTATIONS) for name in names}
    for name, records in sets.items():
        check_classes(name, records, num_classes_of(cfg), num_classes_key(cfg), exact=False)
    noises, seeds = noises_from_config(cfg), clean_seeds(cfg)
    for name in names:
        if noises and manifest is None:
            refuse_noisy_copy(name)
        check_seeds_of_copy(name, seeds)
    if noises or manifest is not None:
        classes = train_classes(cfg)
        sets = {
            n: _inject(n, records, classes, noises, manifest, seeds) for n, records in sets.items()
        }
    elif all(MetadataCatalog.get(name).get("thing_classes") for name in names):
        train_classes(cfg)
    sets = {name: seeds.mark(name, records) for name, records in sets.items()}
    filtered = _filter(cfg, number_annotations(sets))
    if cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False):
        set_image_counts(filtered, num_classes_of(cfg))
    return filtered


def _load(name: str, bad_annotations: str) -> list[Record]:
    records = load_dataset(name, bad_annotations)
    if not isinstance(records, list):
        raise ValueError(
            f"dataset {name!r} is a {type(records).__name__}, not a list of dicts; "
            "wrap its mapper in NoisyLabelMapper and build the loader yourself"
        )
    if all("image_id" in record for record in records):
        return records
    # detectron2 trains without ids; noise and audit tell images apart by them.
    names = [os.path.basename(str(record.get("file_name", ""))) for record in records]
    if len({*names}) < len(names):
        names = [f"record {i}" for i in range(len(records))]
    return [{"image_id": name, **record} for name, record in zip(names, records)]


def _inject(
    name: str,
    records: list[Record],
    classes: Sequence[str],
    noises: Sequence[Noise],
    manifest: list[dict[str, Any]] | None,
    seeds: CleanSeeds,
) -> list[Record]:
    if manifest is None:
        noisy, changes = seeds.inject(records, noises, len(classes), name)
    else:
        recorded = changes_from_manifest(manifest, classes, name)
        seeds.check_changes(name, recorded)
        noisy, changes = apply_changes(records, recorded, len(classes), name)
    statistics = noise_statistics(records, changes, len(classes))
    rate, total = 100 * statistics.label_rate, statistics.num_annotations
    counts = ", ".join(f"{what}: {count}" for what, count in statistics.counts.items())
    template = "Label noise in %s: %.2f %% of %d annotations have a wrong class (%s)"
    logger.info(template, name, rate, total, counts)
    if seeds.share:
        num_kept = len(seeds.image_ids(name, records))
        logger.info("%d of %d images in %s are kept clean", num_kept, len(records), name)
    logger.debug("Label noise in %s by class:\n%s", name, statistics_table(statistics, classes))
    return noisy


def _filter(cfg: CfgNode, sets: Mapping[str, list[Record]]) -> dict[str, list[Record]]:
    """Do to every set what detectron2's get_detection_dataset_dicts does to a clean one."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else ()
    names = train_sets(cfg)
    if cfg.MODEL.LOAD_PROPOSALS and len(proposals) != len(names):
        raise ValueError(
            f"DATASETS.PROPOSAL_FILES_TRAIN has {len(proposals)} files for {len(names)} sets"
        )
    filtered = {}
    for name, loaded in sets.items():
        records = loaded
        if proposals:
            file = proposals[names.index(name)]
            records = load_proposals_into_dataset([dict(r) for r in records], file)
        has_instances = bool(records) and "annotations" in records[0]
        if has_instances and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
            records = filter_images_with_only_crowd_annotations(records)
        if has_instances and cfg.MODEL.KEYPOINT_ON and keypoints > 0:
            records = filter_images_with_few_keypoints(records, keypoints)
        if not records:
            raise ValueError(f"dataset {name!r} has no image left to train on{_why(loaded)}")
        records = without_fold(records, cfg.DATASETS.FOLDS, cfg.DATASETS.HELD_OUT_FOLD)
        if not records:
            raise ValueError(
                f"dataset {name!r}: all images are of fold DATASETS.HELD_OUT_FOLD "
                f"{cfg.DATASETS.HELD_OUT_FOLD}; use fewer DATASETS.FOLDS"
            )
        classes = MetadataCatalog.get(name).get("thing_classes")
        if has_instances and classes is not None:
            print_instances_class_histogram(records, classes)
        filtered[name] = records
    return filtered


def _why(records: Sequence[Record]) -> str:
    """The part of a message about a dataset of which no image is left."""
    annotations = [a for record in records for a in record.get("annotations", ())]
    crowds = sum(bool(a.get("iscrowd", 0)) for a in annotations)
    if annotations and crowds == len(annotations):
        return f": all {crowds} annotations are crowds (iscrowd 1)"
    return f": its {len(records)} images have {len(annotations)} annotations"
