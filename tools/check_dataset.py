#!/usr/bin/env python3
"""Report the contents and the flaws of a dataset before training.

The report has counts per class, sizes, boxes outside of images, duplicates, crowds, images without
objects, and images that are rotated, truncated or deeper than 8 bits per channel. It lists up to 20
flaws and their number. The exit code is 2 if there are any: a training run refuses the same flaws.
Annotations and images that DATASETS.BAD_ANNOTATIONS skip and DATALOADER.BROKEN_IMAGES skip leave
out are listed separately; they do not count as flaws.

Examples:
  All datasets of a config:
    tools/check_dataset.py --config-file my.yaml
  A VOC folder, with all classes found in it:
    tools/check_dataset.py --voc-root VOC2007 --split trainval
  A COCO json:
    tools/check_dataset.py --coco-json train.json --images images --output report.json
"""

import argparse
import sys
from collections.abc import Sequence

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.commands.check import run_check
from sl_detectron.data.formats.flaws import BAD_ANNOTATIONS
from sl_detectron.data.images import BROKEN_IMAGES


def main(args: argparse.Namespace) -> None:
    text, num_flaws = run_check(args)
    print(text)
    if num_flaws:
        raise ValueError(f"flaws found: {num_flaws}; they are listed above")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", default="", help="a file, or a shipped config by name")
    source.add_argument("--voc-root", help="folder with Annotations, ImageSets and JPEGImages")
    source.add_argument("--coco-json", help="COCO annotation file; needs --images")
    parser.add_argument("--split", help="VOC image set; default trainval")
    parser.add_argument("--classes", default="", help="a,b,c: class list; default: classes found")
    parser.add_argument("--images", metavar="DIR", help="images of --coco-json")
    text = "what a training run does with them: error, the default, or skip"
    parser.add_argument("--bad-annotations", choices=BAD_ANNOTATIONS, help=text)
    parser.add_argument("--broken-images", choices=BROKEN_IMAGES, help=text)
    parser.add_argument("--no-decode", action="store_true", help="read only the headers of images")
    parser.add_argument("--output", metavar="FILE", help="also write the report as json")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config options")
    args = parser.parse_args(argv)
    if args.coco_json and not args.images:
        parser.error("--coco-json needs --images, the folder of its images")
    if args.images and not args.coco_json:
        parser.error("--images needs --coco-json")
    if not args.voc_root and (args.classes or args.split):
        parser.error("--classes and --split need --voc-root")
    if args.opts and not args.config_file:
        parser.error("--opts needs --config-file")
    if args.config_file and (args.bad_annotations or args.broken_images):
        keys = "DATASETS.BAD_ANNOTATIONS and DATALOADER.BROKEN_IMAGES"
        parser.error(f"with --config-file give {keys} after --opts")
    args.split = args.split or "trainval"
    return args


def cli() -> int:
    return run_tool(main, parse_args())


if __name__ == "__main__":
    sys.exit(cli())
