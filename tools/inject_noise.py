#!/usr/bin/env python3
"""Write a noisy copy of a dataset, or make a noisy copy clean again.

Examples:
  A VOC devkit folder with 40 % wrong labels in trainval; images are linked:
    tools/inject_noise.py --voc-root VOC2007 --split trainval --rate 0.4 --output noisy/VOC2007
  A COCO json, with a custom map of confusable classes:
    tools/inject_noise.py --coco-json train.json --type asymmetric --confusion map.yaml \\
        --rate 0.2 --output noisy
  Wrong labels from a detector's mistakes, with hard objects corrupted more often:
    tools/inject_noise.py --voc-root VOC2007 --type instance --rate 0.4 --output noisy/VOC2007 \\
        --config-file output/config.yaml --checkpoint output/model_final.pth
  Restore the clean dataset from the copy and its manifest alone:
    tools/inject_noise.py --restore noisy/VOC2007
  Train on the same noise in memory: DATASETS.LABEL_NOISE.MANIFEST noisy/VOC2007/manifest.jsonl
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from sl_detectron.commands import run_config
from sl_detectron.commands.instance_noise import build_instance_noise
from sl_detectron.config import add_superloss_config
from sl_detectron.data import load_voc_dataset
from sl_detectron.data.formats.annotations import Record
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.flaws import BAD_ANNOTATIONS
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.label_noise import Noise
from sl_detectron.label_noise.config import clean_seeds, noises_from_config
from sl_detectron.label_noise.export import export_noisy_coco, export_noisy_voc
from sl_detectron.label_noise.stats import NoiseStatistics, statistics_table, uniformity_test


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(write_or_restore, parse_args(argv))


def write_or_restore(args: argparse.Namespace) -> None:
    if args.restore:
        print(f"clean set: {restore_clean(args.restore, args.output, progress=True)}")
    else:
        inject(args)


def inject(args: argparse.Namespace) -> None:
    if not any((args.rate, args.box_jitter, args.missing, args.spurious)):
        rates = "--rate, --box-jitter, --missing and --spurious"
        print(f"warning: {rates} are all 0: this copy has no noise", file=sys.stderr)
    cfg = noise_config(args)
    if args.coco_json:
        coco = CocoFile(args.coco_json, args.images, bad_annotations=args.bad_annotations)
        classes = coco.class_names
        name = args.dataset_name or coco.path.stem
        noises = build_noises(cfg, args, classes, name, lambda: coco_records(coco, args.images))
        statistics = export_noisy_coco(coco, args.output, noises, name, clean_seeds(cfg))
    else:
        classes = class_list(args.classes)
        name = args.dataset_name or voc_name(args.voc_root, args.split)
        noises = build_noises(cfg, args, classes, name, lambda: read_voc_records(args, classes))
        statistics = export_noisy_voc(
            args.voc_root,
            args.split,
            args.output,
            noises,
            classes,
            name,
            num_workers=args.workers,
            progress=True,
            bad_annotations=args.bad_annotations,
            seeds=clean_seeds(cfg),
        )
    report(statistics, classes, symmetric=args.type.startswith("symmetric"))
    print(f"noisy copy of {name}: {args.output}")


def noise_config(args: argparse.Namespace) -> CfgNode:
    """Return a config whose DATASETS.LABEL_NOISE has the values of the arguments."""
    cfg = get_cfg()
    add_superloss_config(cfg)
    node = cfg.DATASETS.LABEL_NOISE
    node.SEED = args.seed
    if args.type != "instance":  # which no config can build
        node.TYPE, node.RATE = args.type, args.rate
    node.MODE, node.CONFUSION = args.mode, args.confusion
    node.CLEAN_SHARE = args.clean_share
    node.BOX_JITTER.RATE, node.BOX_JITTER.MAGNITUDE = args.box_jitter, args.box_magnitude
    node.MISSING.RATE, node.SPURIOUS.RATE = args.missing, args.spurious
    for part in (node.BOX_JITTER, node.MISSING, node.SPURIOUS):
        part.SEED = args.seed
    return cfg


def build_noises(
    cfg: CfgNode,
    args: argparse.Namespace,
    classes: Sequence[str],
    name: str,
    read: Callable[[], list[Record]],
) -> tuple[Noise, ...]:
    """Return the noises of the arguments, that of a detector's mistakes first."""
    noises = noises_from_config(cfg, classes)
    if args.type != "instance":
        return noises
    opts = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    detector = run_config(args, opts, "give a YAML config of the same detector", eval_only=True)
    found = build_instance_noise(
        *(detector, args.checkpoint, read(), classes, name), rate=args.rate, seed=args.seed
    )
    return (found, *noises)


def read_voc_records(args: argparse.Namespace, classes: Sequence[str]) -> list[Record]:
    return load_voc_dataset(
        args.voc_root, args.split, classes, bad_annotations=args.bad_annotations
    )


def coco_records(coco: CocoFile, images: str) -> list[Record]:
    files = {image["id"]: image["file_name"] for image in coco.plain()["images"]}
    return [{**r, "file_name": str(Path(images, files[r["image_id"]]))} for r in coco.records()]


def class_list(names: str) -> list[str]:
    """Return the names of "a, b, c"; VOC's 20 for an empty string."""
    return [name.strip() for name in names.split(",")] if names else list(CLASS_NAMES)


def voc_name(root: str, split: str) -> str:
    """Return detectron2's name of a VOC set: VOC2007, trainval -> voc_2007_trainval."""
    folder = Path(root).resolve().name.lower()
    year = folder.removeprefix("voc")
    return f"voc_{year}_{split}" if year != folder else f"{folder}_{split}"


def report(statistics: NoiseStatistics, classes: Sequence[str], symmetric: bool) -> None:
    print(statistics_table(statistics, classes))
    changed = ", ".join(f"{what} {count}" for what, count in statistics.counts.items())
    print(f"{statistics.num_annotations} annotations, changes: {changed}")
    if symmetric and statistics.counts["label"] and len(classes) > 2:
        chi2, dof, p = uniformity_test(statistics.confusion[:-1, :-1])
        test = "chi-square test of uniformity of the wrong labels"
        print(f"{test}: X^2 = {chi2:.1f}, {dof} degrees of freedom, p = {p:.3f}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc-root", help="VOC devkit folder, e.g. VOCdevkit/VOC2007")
    source.add_argument("--coco-json", help="COCO annotation file")
    source.add_argument("--restore", help="folder that this tool wrote")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="images of --coco-json, read for sizes that it lacks; default: the json's folder",
    )
    parser.add_argument(
        "--output", help="new folder; --restore without --output replaces the copy by the clean set"
    )
    parser.add_argument("--split", help="VOC image set to corrupt; default trainval")
    parser.add_argument(
        "--classes", default="", help="a,b,c: classes of a VOC-style dataset; default VOC's 20"
    )
    parser.add_argument(
        "--dataset-name",
        help="name in DATASETS.TRAIN; default e.g. voc_2007_trainval, or the name of the json",
    )
    parser.add_argument(
        "--type",
        default="symmetric",
        help="class that replaces a label: symmetric, any other; symmetric_inclusive, any; "
        "asymmetric, a confusable one; instance, what the detector of --checkpoint predicts; "
        "default symmetric",
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="fraction of labels in [0, 1]; default 0"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="selects which annotations are corrupted; default 0"
    )
    parser.add_argument(
        "--mode",
        default="bernoulli",
        help="bernoulli: each annotation is drawn independently; exact: round(rate * n) are drawn; "
        "default bernoulli",
    )
    parser.add_argument(
        "--confusion", default="", help="YAML map of confusable classes for --type asymmetric"
    )
    parser.add_argument(
        "--box-jitter", type=float, default=0.0, help="fraction of boxes to move; default 0"
    )
    parser.add_argument(
        "--box-magnitude",
        type=float,
        default=0.1,
        help="largest move, as a fraction of the box; default 0.1",
    )
    parser.add_argument(
        "--missing", type=float, default=0.0, help="fraction of annotations to drop; default 0"
    )
    parser.add_argument(
        "--spurious", type=float, default=0.0, help="boxes to add, as a fraction of annotations"
    )
    parser.add_argument(
        "--clean-share",
        type=float,
        default=0.0,
        help="share of images that no noise changes, chosen by --seed; the rates are of the others",
    )
    parser.add_argument("--checkpoint", help="weights of a detector, for --type instance")
    parser.add_argument("--config-file", default="", help="config of the detector of --checkpoint")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config options")
    parser.add_argument(
        "--bad-annotations",
        default="error",
        choices=BAD_ANNOTATIONS,
        help="flawed boxes and images: stop (error, the default) or copy them unchanged (skip)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes that write XML; default 1"
    )
    parser.set_defaults(from_run=None)  # what run_config() asks for
    args = parser.parse_args(argv)
    if not args.restore and not args.output:
        parser.error("--output is required")
    free = {"restore", "output", "workers"}
    given = [k for k in vars(args) if k not in free and getattr(args, k) != parser.get_default(k)]
    if args.restore and given:
        parser.error(f"--{given[0].replace('_', '-')} makes a noisy copy; --restore excludes it")
    if (args.type == "instance") != bool(args.checkpoint and args.config_file):
        parser.error("--type instance needs --checkpoint and --config-file, and they need it")
    if args.type == "instance" and args.mode != "bernoulli":
        parser.error("--type instance has no --mode exact: each annotation has a separate rate")
    if args.type == "instance" and args.coco_json and not args.images:
        parser.error("--type instance needs --images, the folder of the images of --coco-json")
    if args.images and not args.coco_json:
        parser.error("--images needs --coco-json")
    if args.images and not Path(args.images).is_dir():
        parser.error(f"--images {args.images} is not a folder")
    if not args.voc_root and (args.classes or args.split):
        parser.error("--classes and --split need --voc-root; a json lists its classes")
    args.split = args.split or "trainval"
    return args


def cli() -> int:
    return main()


if __name__ == "__main__":
    sys.exit(cli())
