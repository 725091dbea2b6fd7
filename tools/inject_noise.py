#!/usr/bin/env python3
"""Write a noisy copy of a dataset, or make a noisy copy clean again.

Examples:
  A VOC devkit folder with 40 % wrong labels in trainval; images are linked:
    tools/inject_noise.py --voc-root VOC2007 --split trainval --rate 0.4 --output noisy/VOC2007
  A COCO json, labels wrong by a custom map:
    tools/inject_noise.py --coco-json train.json --type asymmetric --confusion map.yaml \\
        --rate 0.2 --output noisy
  The clean set again, from the copy and its manifest alone:
    tools/inject_noise.py --restore noisy/VOC2007
  Train on the same noise in memory: DATASETS.LABEL_NOISE.MANIFEST noisy/VOC2007/manifest.jsonl
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from sl_detectron.config import add_superloss_config
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.flaws import BAD_ANNOTATIONS
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.label_noise.config import noises_from_config
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
        noises = noises_from_config(cfg, classes)
        statistics = export_noisy_coco(coco, args.output, noises, name)
    else:
        classes = class_list(args.classes)
        name = args.dataset_name or voc_name(args.voc_root, args.split)
        noises = noises_from_config(cfg, classes)
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
        )
    report(statistics, classes, symmetric=args.type.startswith("symmetric"))
    print(f"noisy copy of {name}: {args.output}")


def noise_config(args: argparse.Namespace) -> CfgNode:
    """Return a config whose DATASETS.LABEL_NOISE says what the arguments say."""
    cfg = get_cfg()
    add_superloss_config(cfg)
    node = cfg.DATASETS.LABEL_NOISE
    node.TYPE, node.RATE, node.SEED = args.type, args.rate, args.seed
    node.MODE, node.CONFUSION = args.mode, args.confusion
    node.BOX_JITTER.RATE, node.BOX_JITTER.MAGNITUDE = args.box_jitter, args.box_magnitude
    node.MISSING.RATE, node.SPURIOUS.RATE = args.missing, args.spurious
    for part in (node.BOX_JITTER, node.MISSING, node.SPURIOUS):
        part.SEED = args.seed
    return cfg


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
        help="images of --coco-json, read where it has no height and width; default beside it",
    )
    parser.add_argument(
        "--output", help="new folder; --restore without it puts the clean set in the copy's place"
    )
    parser.add_argument("--split", help="VOC image set that gets noise; default trainval")
    parser.add_argument(
        "--classes", default="", help="a,b,c: class list of a VOC-style set; default VOC's 20"
    )
    parser.add_argument(
        "--dataset-name",
        help="name in DATASETS.TRAIN; default e.g. voc_2007_trainval, or the json's name",
    )
    parser.add_argument(
        "--type",
        default="symmetric",
        help="which class takes a label's place: symmetric, any other; symmetric_inclusive, any; "
        "asymmetric, a look-alike; default symmetric",
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="fraction of labels in [0, 1]; default 0"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed hits other annotations; default 0"
    )
    parser.add_argument(
        "--mode",
        default="bernoulli",
        help="bernoulli, each annotation by its own draw; exact, round(rate * n) of them; default "
        "bernoulli",
    )
    parser.add_argument("--confusion", default="", help="YAML map for --type asymmetric")
    parser.add_argument("--box-jitter", type=float, default=0.0, help="fraction of boxes")
    parser.add_argument("--box-magnitude", type=float, default=0.1, help="fraction of box size")
    parser.add_argument("--missing", type=float, default=0.0, help="fraction left out")
    parser.add_argument("--spurious", type=float, default=0.0, help="boxes added, as a fraction")
    parser.add_argument(
        "--bad-annotations",
        default="error",
        choices=BAD_ANNOTATIONS,
        help="flawed boxes and images: stop (error, the default), or copy them as they are (skip)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that write XML")
    args = parser.parse_args(argv)
    if not args.restore and not args.output:
        parser.error("--output is required")
    if args.images and not args.coco_json:
        parser.error("--images is of --coco-json")
    if args.images and not Path(args.images).is_dir():
        parser.error(f"--images {args.images} is not a folder")
    if not args.voc_root and (args.classes or args.split):
        parser.error("--classes and --split are of --voc-root; a json has its own classes")
    args.split = args.split or "trainval"
    return args


def cli() -> int:
    return main()


if __name__ == "__main__":
    sys.exit(cli())
