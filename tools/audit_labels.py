#!/usr/bin/env python3
"""Rank the annotations of a training set by suspicion, and correct wrong labels.

Writes label_audit.json, label_audit.csv and index.html, a page to review labels. A higher suspicion
is more suspect. --kinds also finds flaws of other kinds.

Examples:
  A training run with the SuperLoss, whose checkpoints have the statistics:
    tools/audit_labels.py --from-run output --output audit
  Any detector, also a stock one or one of a LazyConfig, by one pass over its DATASETS.TRAIN:
    tools/audit_labels.py --config-file my.yaml --checkpoint model_final.pth --output audit
  Before any training: by the pretrained features of the backbone that a config names:
    tools/audit_labels.py --config-file my.yaml --from-features --output audit
  The 50 most suspect cats and dogs, and files for cleanlab and FiftyOne:
    tools/audit_labels.py --from-run output --output audit --classes cat,dog --top 50 --per-class \\
        --formats cleanlab fiftyone
  A corrected dataset, from the decisions.json of the report, or for all labels above 0.95:
    tools/audit_labels.py --apply decisions.json --output corrected
    tools/audit_labels.py --from-run output --output audit --correct-above 0.95
  A corrected dataset, with thresholds per class and the noise rate estimated:
    tools/audit_labels.py --from-run output --output audit --auto
    tools/audit_labels.py --config-file my.yaml --from-features --output audit --auto
  The original dataset, from a corrected copy:
    tools/audit_labels.py --restore corrected/my_set --output my_set_again
  Missing objects, misplaced boxes, annotations without an object, and duplicates:
    tools/audit_labels.py --config-file my.yaml --checkpoint model_final.pth --output audit \\
        --kinds wrong_class misplaced_box missing_object no_object duplicate
  Compare two sets of annotations of the same images, without any detector: objects that are
  missing, added, misplaced or of another class in the first, in differences.json and .csv:
    tools/audit_labels.py --compare published --truth annotated_again.json --output differences
  Evaluate each kind against annotations that are known to be right:
    tools/audit_labels.py --config-file my.yaml --checkpoint model_final.pth --output audit \\
        --kinds misplaced_box missing_object --truth annotated_again.json
  Cross-fitting, with any config: train on one half of the images, score the other half:
    tools/audit_labels.py --config-file my.yaml --folds 2 --output audit \\
        --kinds missing_object misplaced_box
  Misplaced boxes and annotations without an object, from the statistics of a training run alone:
    tools/audit_labels.py --from-run output --output audit --kinds misplaced_box no_object \\
        --statistics
  The pass over the images on 4 GPUs:
    tools/audit_labels.py --num-gpus 4 --config-file my.yaml --checkpoint model_final.pth \\
        --output audit
  Compare with known noise, with plain losses and with cleanlab's ObjectLab:
    tools/audit_labels.py --from-run output --output audit --evaluate
"""

import argparse
import sys
from collections.abc import Sequence

from sl_detectron.audit.kinds import KINDS
from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.commands.audit import run_audit

FORMATS = ("cleanlab", "fiftyone")


def main(argv: Sequence[str] | None = None) -> int:
    return run_tool(run_audit, parse_args(argv))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = tool_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from-run", metavar="DIR", help="OUTPUT_DIR of a training run")
    source.add_argument("--checkpoint", help="weights of any detector; needs --config-file")
    source.add_argument(
        "--from-features",
        action="store_true",
        help="estimate the true classes by one pass with the pretrained backbone of --config-file, "
        "without any training; finds wrong classes only",
    )
    source.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="train K detectors by --config-file, each without one of K parts of the images, into "
        "OUTPUT/fold_0 ..., and score each part by the detector that was not trained on it. A "
        "detector trained with missing annotations learns to miss such objects. Repeat the command "
        "to continue",
    )
    source.add_argument(
        "--compare",
        metavar="ROOT|JSON",
        help="annotations, of a VOC root or a COCO json, to compare with those of --truth",
    )
    source.add_argument("--apply", metavar="FILE", help="decisions.json saved by the report")
    source.add_argument(
        "--restore", metavar="DIR", help="a dataset that --apply or --correct-above corrected"
    )
    parser.add_argument(
        "--truth",
        default="",
        metavar="ROOT|JSON",
        help="a second set of annotations of the same images, regarded as true: each of the "
        "--kinds is evaluated against it, beside cleanlab's ObjectLab",
    )
    parser.add_argument(
        "--config-file",
        default="",
        help="config of --checkpoint, --from-features or --folds",
    )
    parser.add_argument("--output", required=True, help="folder for all output")
    parser.add_argument(
        "--top", type=int, help="number to list and show, of each kind; default all"
    )
    parser.add_argument("--per-class", action="store_true", help="apply --top to each given class")
    parser.add_argument(
        "--classes", type=_names, default=[], help="a,b,c: given classes to list; default all"
    )
    parser.add_argument(
        "--crops",
        type=int,
        default=10_000,
        help="number of annotations in the report; default 10000",
    )
    parser.add_argument(
        "--crop-size", type=int, default=128, help="longer side of a crop in pixels; default 128"
    )
    parser.add_argument(
        "--formats", nargs="+", default=[], choices=FORMATS, help="further formats to write"
    )
    parser.add_argument(
        "--correct-above",
        type=float,
        metavar="SUSPICION",
        help="write OUTPUT/corrected, where suggestions replace labels of at least this suspicion; "
        "with --kinds all suggestions are applied, and without wrong_class any number above 0 is "
        "accepted",
    )
    parser.add_argument(
        "--auto",
        action="store_true",
        help="estimate the true classes with one pass over the images and rank by them; print how "
        "many labels a correction is expected to fix and to break; write OUTPUT/corrected with "
        "every probably wrong label replaced; needs --from-run or --from-features",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="compare with known noise: that of the run, or ..."
    )
    parser.add_argument("--manifest", default="", help="... of a noisy copy on disk")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=["wrong_class"],
        metavar="KIND",
        help="what to look for: wrong_class, misplaced_box, missing_object, no_object, duplicate. "
        "The default is wrong_class. Other kinds need a pass over the images with detection, which "
        "takes about twice as long as a pass without it. All chosen kinds form one ranked list in "
        "suspects.json and suspects.csv",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="with --from-run and --kinds: use what the training run recorded, without a pass over "
        "the images. This covers wrong_class, no_object and, for a run with "
        "MODEL.SUPERLOSS.BOX_REG.ENABLED, misplaced_box without a suggested box",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="processes that share a pass over the images, each on a GPU if there are any; "
        "default 1",
    )
    # What else detectron2's launch asks for.
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto", dist_timeout=1800)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config options")
    args = parser.parse_args(argv)
    if bool(args.config_file) != bool(
        args.checkpoint or args.from_features or args.folds is not None
    ):
        parser.error(
            "--checkpoint, --from-features and --folds need --config-file, and it needs one of them"
        )
    if args.auto and not (args.from_run or args.from_features):
        parser.error("--auto needs --from-run or --from-features")
    if args.auto and args.correct_above is not None:
        parser.error("--auto replaces --correct-above; give one")
    if args.from_features and (args.truth or {*args.kinds} != {"wrong_class"}):
        parser.error(
            "--from-features finds wrong classes only: leave out --kinds and --truth, or audit a "
            "detector by --from-run, --checkpoint or --folds"
        )
    if args.statistics and (not args.from_run or args.auto or args.num_gpus > 1):
        parser.error("--statistics needs --from-run, one process, and no --auto")
    if args.per_class and args.top is None:
        parser.error("--per-class needs --top")
    given = {key for key, value in vars(args).items() if value != parser.get_default(key)}
    if args.compare and not args.truth:
        parser.error("--compare needs --truth")
    if args.truth and args.manifest:
        parser.error("--truth and --manifest are two truths; give one")
    if args.compare and not given <= {"compare", "truth", "output", "debug"}:
        parser.error("--compare takes --truth, --output and nothing else")
    for one in ("apply", "restore"):
        if getattr(args, one) and not given <= {one, "output", "debug"}:
            parser.error(f"--{one} takes --output and nothing else")
    return args


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []


def cli() -> int:
    return main()


if __name__ == "__main__":
    sys.exit(cli())
