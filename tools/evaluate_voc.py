#!/usr/bin/env python3
"""Score detections in files against a Pascal VOC devkit: AP, AP50, AP75, in total and per class.

Examples:
  The text files of the devkit, comp4_det_test_<class>.txt:
    tools/evaluate_voc.py --voc-root VOC2007 --split test --detections results --metric 07 \\
        --output out.json
  A json file in COCO's results format, and a custom class list:
    tools/evaluate_voc.py --voc-root mine --split val --detections coco_instances_results.json \\
        --classes cat,dog --metric area --output out.json
  Both also write out_precision_recall.png and out_ap_by_iou.png.
"""

import argparse
import sys
from collections.abc import Sequence

from sl_detectron.cli import run_tool, tool_parser  # first: it quiets detectron2's import

# isort: split
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from sl_detectron.data.formats.flaws import BAD_ANNOTATIONS
from sl_detectron.evaluation import evaluate_files, write_report
from sl_detectron.evaluation.average_precision import METRICS
from sl_detectron.evaluation.results import ABSENT_CLASSES, check_report_path


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(evaluate, parse_args(argv))


def evaluate(args: argparse.Namespace) -> None:
    if args.output:
        check_report_path(args.output)
    names = CLASS_NAMES
    if args.classes is not None:
        names = [name.strip() for name in args.classes.split(",")]
    result = evaluate_files(
        args.voc_root,
        args.split,
        args.detections,
        args.metric,
        class_names=names,
        rounding=args.rounding,
        absent_classes=args.absent_classes,
        bad_annotations=args.bad_annotations,
    )
    print(result.table())
    if args.output:
        written = write_report(result, args.output, pictures=not args.no_pictures)
        print("written:", *written)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--voc-root", required=True, help="folder with Annotations and ImageSets, e.g. VOC2007"
    )
    parser.add_argument("--split", default="test", help="image set; default test")
    parser.add_argument(
        "--detections",
        required=True,
        help="folder of comp4_det_SPLIT_CLASS.txt, or a json file, where category_id is the "
        "0-based index into --classes",
    )
    parser.add_argument(
        "--metric",
        required=True,
        choices=METRICS,
        help="07: 11 points, as VOC 2007; area: as later years",
    )
    parser.add_argument("--output", help="json file to write; pictures go into its folder")
    parser.add_argument("--no-pictures", action="store_true", help="write json only")
    parser.add_argument(
        "--classes",
        help="a,b,c: classes to score, may be a subset of the dataset's; default VOC's 20",
    )
    parser.add_argument(
        "--rounding",
        action="store_true",
        help="round json scores and boxes as detectron2's VOC evaluator does",
    )
    parser.add_argument(
        "--absent-classes",
        default="skip",
        choices=ABSENT_CLASSES,
        help="classes without ground truth: left out of the mean (skip, default) or counted as 0",
    )
    parser.add_argument(
        "--bad-annotations",
        default="error",
        choices=BAD_ANNOTATIONS,
        help="flawed boxes and images: stop (error, the default) or leave them out (skip)",
    )
    return parser.parse_args(argv)


def cli() -> int:
    return main()


if __name__ == "__main__":
    sys.exit(cli())
