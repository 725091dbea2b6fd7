"""The work of ``tools/check_dataset.py``: what is in a dataset and what is wrong with it."""

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from ..config import num_classes_key, num_classes_of
from ..data.class_checks import check_classes, check_test_classes
from ..data.datasets import is_without_annotations, load_dataset
from ..data.formats.flaws import Flaws
from ..data.formats.image_set import read_image_set
from ..data.formats.voc_xml import parse_voc_xml
from ..data.images import READ_ERRORS, BrokenImage, check_image, image_header, read_image
from ..data.registered_sets import register_coco_datasets, register_custom_datasets
from ..data.voc import register_voc_dataset
from ..engine.label_correction import check_correction
from ..engine.setup import merge_cfg
from ..evaluation.evaluator_choice import check_evaluator
from ..evaluation.results import check_report_path
from ..files import write_json
from ..label_noise.config import check_label_noise, has_label_noise, train_classes
from ..label_noise.training_sets import check_train_loader, noisy_dataset_dicts
from ..model_zoo import find_config
from ..rivals import check_method
from .set_report import SetReport, count_annotations, numbered, repeats

__all__ = ["report_of", "run_check"]

Record = dict[str, Any]


def run_check(args: argparse.Namespace) -> tuple[str, int]:
    """Report on the sets of a config, or on one in files.

    Returns:
        a text to print, and the number of flaws

    Raises:
        ValueError, OSError: there is no such set, or its files cannot be read at all
    """
    if args.output:
        check_report_path(args.output)
    names, cfg = _register(args)
    if not names:
        raise ValueError(f"{args.config_file} names no dataset in DATASETS.TRAIN or DATASETS.TEST")
    skips = (args.bad_annotations == "skip", args.broken_images == "skip")
    if cfg is not None:
        skips = (cfg.DATASETS.BAD_ANNOTATIONS == "skip", cfg.DATALOADER.BROKEN_IMAGES == "skip")
    reports, digests = [], {}
    for name in names:
        report, digests[name] = report_of(name, not args.no_decode, *skips)
        if cfg is not None:
            report.flaws += _flaws_of_use(cfg, name, report)
        reports.append(report)
    lines = [report.text() for report in reports]
    lines += _shared_images(digests)
    wrong = [] if cfg is None else _flaws_of_config(cfg, not any(r.flaws for r in reports))
    if wrong:
        lines.append("\n".join(numbered(f"{len(wrong)} of the config", wrong)))
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.output), [asdict(report) for report in reports], indent=1)
    return "\n\n".join(lines), len(wrong) + sum(len(report.flaws) for report in reports)


def _flaws_of_config(cfg: CfgNode, sound: bool) -> list[str]:
    """For what a training refuses a config whose sets are sound; the device is not looked for."""
    train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    choices = (cfg.TEST.EVALUATOR, cfg.TEST.ABSENT_CLASSES, cfg.DATASETS.BAD_ANNOTATIONS)
    checks: list[Callable[[], Any]] = [lambda: check_test_classes(train, test)]
    checks += [lambda name=name: check_evaluator(name, *choices) for name in test]  # type: ignore[misc]
    if train:
        checks += [lambda: check_train_loader(cfg), lambda: check_label_noise(cfg)]
        checks += [lambda: check_correction(cfg), lambda: check_method(cfg)]
        if all(MetadataCatalog.get(name).get("thing_classes") for name in train):
            checks.append(lambda: train_classes(cfg))
        if sound and has_label_noise(cfg):
            checks.append(lambda: noisy_dataset_dicts(cfg))
    flaws = []
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            flaws.append(str(error))
    return list(dict.fromkeys(flaws))


def _flaws_of_use(cfg: CfgNode, name: str, report: SetReport) -> list[str]:
    """For what a training or test of the config refuses a set that is sound by itself."""
    flaws = []
    try:
        check_classes(name, (), num_classes_of(cfg), num_classes_key(cfg))
    except ValueError as error:
        flaws.append(str(error))
    counts = report.counts
    if name in cfg.DATASETS.TRAIN and is_without_annotations(name):
        flaws.append(f"dataset {name!r} of DATASETS.TRAIN has no annotations")
    # No object is a flaw of any set.
    num_ignored = counts["crowds"] + counts["difficult objects"]
    if name in cfg.DATASETS.TEST and 0 < counts["annotations"] <= num_ignored:
        flaws.append(
            f"dataset {name!r} of DATASETS.TEST has objects that are difficult or crowds only, "
            "which do not count: its AP would be nan"
        )
    return flaws


def _register(args: argparse.Namespace) -> tuple[list[str], CfgNode | None]:
    """Names of the sets, and the config that they are of."""
    if args.config_file:
        cfg = merge_cfg(find_config(args.config_file), args.opts)
        register_custom_datasets(cfg.DATASETS)
        names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
        return names, cfg
    if args.coco_json:
        entry = {"NAME": args.coco_json, "JSON_FILE": args.coco_json, "IMAGE_ROOT": args.images}
        register_coco_datasets([entry])
        return [args.coco_json], None
    name = f"{args.voc_root}, {args.split}"
    classes = [c.strip() for c in args.classes.split(",")] if args.classes else None
    register_voc_dataset(name, args.voc_root, args.split, classes or _classes_of(args))
    return [name], None


def _classes_of(args: argparse.Namespace) -> list[str]:
    """All class names of a VOC set."""
    names: set[str] = set()
    flaws = Flaws(f"image set {args.split!r} of {args.voc_root}", quiet=True)
    image_ids = read_image_set(args.voc_root, args.split)
    for image_id in image_ids:
        path = Path(args.voc_root, "Annotations", f"{image_id}.xml")
        try:
            annotation = parse_voc_xml(path, flaws)
        except (OSError, ValueError) as error:
            flaws.add("image", error)
            continue  # the report names it, if there is any object elsewhere
        names |= {obj.name for obj in annotation.objects}
    if not names:
        text = f"{flaws.where} has no object in its {len(image_ids)} files; "
        flaws.add("class", ValueError(text + "<annotation><object> is read"))
        flaws.settle()
    return sorted(names)


def report_of(
    name: str, decode: bool = True, skip_annotations: bool = False, skip_images: bool = False
) -> tuple[SetReport, dict[str, str]]:
    """Read a registered set and all its images.

    Args:
        name: of the set
        decode: whether images are decoded, by which one that is cut off is found; else only headers
            are read
        skip_annotations: whether a training leaves out flawed annotations, which are no flaws then
        skip_images: the same of images that cannot be read

    Returns:
        the report, and {image file: digest of its bytes}
    """
    flaws = Flaws(name, "skip", quiet=True)
    records = load_dataset(name, flaws=flaws)
    report = SetReport(name)
    for what, error in flaws.found:
        is_left_out = skip_annotations and what != "class"
        (report.left_out if is_left_out else report.flaws).append(str(error))
    report.notes = [flaws.summary(text) for text in flaws.notes]
    count_annotations(report, records, MetadataCatalog.get(name).get("thing_classes"))
    if is_without_annotations(name):
        report.notes.append("no annotations, as of a test server: nothing to train on or to score")
    elif not report.flaws and report.counts["annotations"] <= report.counts["crowds"]:
        objects = "its annotations are all crowds" if report.counts["crowds"] else "no object"
        report.flaws.append(f"{objects} in {len(records)} images: there is nothing to train on")
    digests, turned, broken = {}, 0, []
    for record in tqdm(records, unit="image", dynamic_ncols=True):
        try:
            turned += image_header(record["file_name"]).is_turned
            if decode:
                read_image(record, "BGR")
            else:
                check_image(record)
            with PathManager.open(record["file_name"], "rb") as file:
                digests[record["file_name"]] = hashlib.sha256(file.read()).hexdigest()
        except READ_ERRORS as error:
            text = str(error).partition("; repair it")[0]
            where = "" if isinstance(error, BrokenImage) else f"{record['file_name']}: "
            broken.append(where + text)
    (report.left_out if skip_images else report.flaws).extend(broken)
    if skip_images and broken and len(broken) == len(records):
        report.flaws.append(f"none of the {len(records)} images can be read")
    report.counts["images turned by their EXIF orientation"] = turned
    report.counts["copies of another image"] = repeats(digests.values())
    return report, digests


def _shared_images(digests: dict[str, dict[str, str]]) -> list[str]:
    """Lines on image files that two sets have, as a training and its test must not."""
    sets: dict[str, set[str]] = defaultdict(set)
    for name, files in digests.items():
        for digest in files.values():
            sets[digest].add(name)
    pairs = Counter(tuple(sorted(names)) for names in sets.values() if len(names) > 1)
    return [
        f"note: {number} images are in {' and '.join(names)}" for names, number in pairs.items()
    ]
