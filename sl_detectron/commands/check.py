"""The work of ``tools/check_dataset.py``: what is in a dataset and what is wrong with it."""

import argparse
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from tqdm import tqdm

from ..config import num_classes_key, num_classes_of
from ..data.datasets import (
    check_classes,
    is_without_annotations,
    load_dataset,
    register_coco_datasets,
    register_custom_datasets,
)
from ..data.formats.annotations import corners
from ..data.formats.flaws import MAX_LISTED, Flaws
from ..data.formats.voc_set import read_image_set
from ..data.formats.voc_xml import parse_voc_xml
from ..data.images import READ_ERRORS, BrokenImage, check_image, image_header, read_image
from ..data.voc import register_voc_dataset
from ..engine.setup import merge_cfg
from ..files import write_json
from ..model_zoo import find_config

__all__ = ["SetReport", "report_of", "run_check"]

Record = dict[str, Any]


@dataclass
class SetReport:
    """What is in a set.

    Args:
        name: of the set
        classes: {class: [number of annotations, number of images with it]}
        counts: {what: number}
        sizes: {what: (least, median, largest)}, pixels
        notes: what is read by a rule, with its number and the first example
        flaws: what cannot be used
    """

    name: str
    classes: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for people."""
        rows = [[name, *numbers] for name, numbers in self.classes.items()]
        parts = [f"dataset {self.name}"]
        parts.append(tabulate(rows, headers=["class", "annotations", "images"]))
        parts.append(tabulate([[number, what] for what, number in self.counts.items()]))
        sizes = [[what, *numbers] for what, numbers in self.sizes.items()]
        parts.append(tabulate(sizes, headers=["pixels", "least", "median", "largest"]))
        parts += [f"note: {note}" for note in self.notes]
        plural = "" if len(self.flaws) == 1 else "s"
        parts.append(f"{len(self.flaws)} flaw{plural}" + (":" if self.flaws else ""))
        parts += [f"  ({i}) {flaw}" for i, flaw in enumerate(self.flaws[:MAX_LISTED], start=1)]
        if len(self.flaws) > MAX_LISTED:
            parts.append(f"  and {len(self.flaws) - MAX_LISTED} more")
        return "\n".join(parts)


def run_check(args: argparse.Namespace) -> tuple[str, int]:
    """Report on the sets of a config, or on one in files.

    Returns:
        a text to print, and the number of flaws

    Raises:
        ValueError, OSError: there is no such set, or its files cannot be read at all
    """
    names, cfg = _register(args)
    reports, digests = [], {}
    for name in names:
        report, digests[name] = report_of(name, decode=not args.no_decode)
        if cfg is not None:
            report.flaws += _flaws_of_use(cfg, name, report)
        reports.append(report)
    lines = [report.text() for report in reports]
    lines += _shared_images(digests)
    if args.output:
        write_json(Path(args.output), [asdict(report) for report in reports], indent=1)
    return "\n\n".join(lines), sum(len(report.flaws) for report in reports)


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


def report_of(name: str, decode: bool = True) -> tuple[SetReport, dict[str, str]]:
    """Read a registered set and all its images.

    Args:
        name: of the set
        decode: whether images are decoded, by which one that is cut off is found; else only headers
            are read

    Returns:
        the report, and {image file: digest of its bytes}
    """
    flaws = Flaws(name, "skip", quiet=True)
    records = load_dataset(name, flaws=flaws)
    report = SetReport(name)
    report.flaws = [str(error) for _, error in flaws.found]
    report.notes = [flaws.summary(text) for text in flaws.notes]
    _count_annotations(report, records, MetadataCatalog.get(name).get("thing_classes"))
    if is_without_annotations(name):
        report.notes.append("no annotations, as of a test server: nothing to train on or to score")
    elif not report.flaws and report.counts["annotations"] <= report.counts["crowds"]:
        objects = "its annotations are all crowds" if report.counts["crowds"] else "no object"
        report.flaws.append(f"{objects} in {len(records)} images: there is nothing to train on")
    digests, turned = {}, 0
    for record in tqdm(records, unit="image", dynamic_ncols=True):
        try:
            turned += image_header(record["file_name"]).orientation not in (0, 1)
            if decode:
                read_image(record, "BGR")
            else:
                check_image(record)
            with PathManager.open(record["file_name"], "rb") as file:
                digests[record["file_name"]] = hashlib.sha256(file.read()).hexdigest()
        except READ_ERRORS as error:
            text = str(error).partition("; repair it")[0]
            where = "" if isinstance(error, BrokenImage) else f"{record['file_name']}: "
            report.flaws.append(where + text)
    report.counts["images turned by their EXIF orientation"] = turned
    report.counts["images with the bytes of another one"] = _repeats(digests.values())
    return report, digests


def _count_annotations(
    report: SetReport, records: Sequence[Record], classes: Sequence[str] | None
) -> None:
    annotations = [a for record in records for a in record.get("annotations", ())]
    per_class = Counter(a["category_id"] for a in annotations)
    images = Counter(i for r in records for i in {a["category_id"] for a in r["annotations"]})
    names = classes or [str(i) for i in sorted(per_class)]
    report.classes = {name: [per_class[i], images[i]] for i, name in enumerate(names)}
    exact, boxes = 0, 0
    outside = 0
    for record in records:
        found = [(a["category_id"], *corners(a)) for a in record["annotations"]]
        exact += _repeats(found)
        boxes += _repeats({(category, *box) for category, *box in found}, key=lambda f: f[1:])
        width, height = record.get("width", np.inf), record.get("height", np.inf)
        outside += sum(min(b[1:3]) < 0 or b[3] > width or b[4] > height for b in found)
    report.counts = {
        "images": len(records),
        "images without objects": sum(not r.get("annotations") for r in records),
        "annotations": len(annotations),
        "crowds": sum(bool(a.get("iscrowd", 0)) for a in annotations),
        "difficult objects": sum(bool(a.get("difficult", 0)) for a in annotations),
        "boxes that are partly outside of their image": outside,
        "annotations with class and box of another one": exact,
        "boxes that two classes have": boxes,
    }
    sides = np.array([c for a in annotations for c in _sides(corners(a))]).reshape(-1, 2)
    sizes = np.array([(r["width"], r["height"]) for r in records if "width" in r]).reshape(-1, 2)
    for what, values in (("image", sizes), ("box", sides)):
        for i, side in enumerate(("width", "height")):
            if len(values):
                spread = (values[:, i].min(), np.median(values[:, i]), values[:, i].max())
                report.sizes[f"{what} {side}"] = tuple(map(float, spread))  # type: ignore[assignment]


def _sides(box: Sequence[float]) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def _repeats(values: Iterable[Any], key: Any = lambda value: value) -> int:
    """How many values are those of an earlier one."""
    counts = Counter(map(key, values))
    return sum(counts.values()) - len(counts)


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
