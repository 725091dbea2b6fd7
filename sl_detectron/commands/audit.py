"""The work of ``tools/audit_labels.py``: from a run or a checkpoint to files and corrections."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..audit.annotation_sets import read_annotation_set
from ..audit.checkpoint_scores import check_pretrained
from ..audit.compare import (
    compare_sets,
    comparison_table,
    write_comparison,
)
from ..audit.correct import apply_decisions, folder_names
from ..audit.crops import check_crops
from ..audit.decisions import Decisions, check_threshold, decisions_above, read_decisions
from ..audit.exchange import write_cleanlab, write_fiftyone
from ..audit.files import write_audit
from ..audit.records import LabelAudit, SuspectList, top_suspects
from ..audit.report import write_report
from ..audit.run import (
    audit_checkpoint,
    audit_features,
    audit_run,
    estimate_run,
    evaluate_run,
    read_run,
)
from ..audit.scoring import AuditEvaluation, evaluation_table, plot_evaluation, write_evaluation
from ..audit.suspects import TRACKED_KINDS, write_suspects
from ..audit.true_classes import LEAST_GAIN, USELESS, correction_table
from ..checkpoint import check_checkpoint, last_checkpoint
from ..config import num_classes_of
from ..data.annotation_ids import AnnotationTable, dataset_source
from ..data.formats.manifest import read_manifest
from ..data.formats.restore import restore_clean
from ..data.registered_sets import register_custom_datasets
from ..engine.launch import launch_job
from ..files import refuse_to_overwrite
from ..label_noise import noisy_dataset_dicts
from ..label_noise.config import has_label_noise
from . import run_config
from .audit_folds import check_fold_folders, fold_configs, train_folds
from .audit_kinds import rank_kinds, with_empty_images

__all__ = ["run_audit"]

CORRECTED = "corrected"
# Suspicion above which another class is more probable than the given one.
MORE_PROBABLE = 0.5 + 1e-6
_NO_LAZY = (
    "whose training writes no more than label_audit.json: audit its checkpoint by --checkpoint "
    "and, as --config-file, a YAML config of the same detector and training sets"
)
_NO_LAZY_FEATURES = (
    "and --from-features needs a YAML config of the same backbone and training sets: give one"
)


def run_audit(args: argparse.Namespace) -> None:
    """Audit a run or a checkpoint, or carry decisions out; write what was asked for, print a text.

    The list and the report hold what ``top``, ``per_class`` and ``classes`` leave; what is made for
    other tools, and corrections, are of all annotations. A pass over the images is shared by
    ``num_gpus`` processes.

    Raises:
        ValueError, OSError, ImportError: something does not fit; as far as it can be known before
            the annotations are scored
    """
    out = Path(args.output)
    if args.restore:
        print(f"original set: {restore_clean(args.restore, out, progress=True)}")
        return
    if args.apply:
        print("\n".join(_correct(read_decisions(args.apply), out)))
        return
    if args.compare:
        comparison = compare_sets(
            read_annotation_set(args.compare), read_annotation_set(args.truth)
        )
        write_comparison(comparison, out)
        print(comparison_table(comparison))
        return
    _check_arguments(args, out)
    # Test sets need not be there, nor what draws; of a run not even its training sets.
    opts = ["DATASETS.TEST", "()", "VIS_PERIOD", "0"]
    no_lazy = _NO_LAZY_FEATURES if args.from_features else _NO_LAZY
    cfg = run_config(args, opts, no_lazy, eval_only=bool(args.from_run))
    folds = fold_configs(args, _NO_LAZY) if args.folds else []
    check_fold_folders(folds)
    if args.from_features:
        check_pretrained(cfg, "--from-features")
        check_checkpoint(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    elif not folds:
        check_checkpoint(_checkpoint(args))
    _check_run(args, cfg, AnnotationTable.read(args.from_run) if args.from_run else None)
    if folds:
        args.checkpoint = train_folds(args, folds)
    launch_job(_audit, cfg, args)


def _checkpoint(args: argparse.Namespace) -> Any:
    """That of a detector, those of the detectors of all folds, or None for pretrained features."""
    if args.from_features:
        return None
    return args.checkpoint or str(last_checkpoint(args.from_run))


def _audit(cfg: CfgNode, args: argparse.Namespace) -> None:
    """The work of each process: its share of the images; the main one ranks, writes and prints."""
    # detectron2's launch starts fresh processes, without the datasets of this config.
    register_custom_datasets(cfg.DATASETS)
    audit, estimate, suspects = None, None, None
    lines: list[str] = []
    if args.from_run:
        table = AnnotationTable.read(args.from_run)
        # Only the main process ranks; for an estimate all of them make a pass.
        tracked = read_run(args.from_run, table) if args.auto or comm.is_main_process() else None
        estimate = estimate_run(cfg, args.from_run, table, tracked) if args.auto else None
        if comm.is_main_process():
            audit = audit_run(args.from_run, table, estimate, tracked)
    elif args.from_features:
        table = AnnotationTable.of(noisy_dataset_dicts(cfg))
        audit, estimate = audit_features(cfg, table)
    else:
        table = AnnotationTable.of(noisy_dataset_dicts(cfg))
        audit = audit_checkpoint(cfg, _checkpoint(args), table) if _is_plain(args) else None
    if args.auto and estimate is not None and not estimate.gain > LEAST_GAIN:
        raise ValueError(f"--auto corrects nothing: {USELESS}")
    if not _is_plain(args):
        table = with_empty_images(cfg, args, table)
        audit, suspects, lines = rank_kinds(cfg, args, table, audit, _checkpoint(args))
    if audit is not None:
        lines += _write(args, audit, suspects, Path(args.output))
    if audit is not None and estimate is not None and args.auto:
        # An annotation that the training never sampled is not in the audit, nor corrected.
        ids = torch.tensor([a.annotation_id for a in audit.annotations], dtype=torch.int64)
        labels = torch.tensor(table.labels())[ids]
        lines.append(correction_table(estimate.probabilities[ids], labels, audit.classes))
    if args.manifest or (args.evaluate and _is_plain(args)):
        evaluation = evaluate_run(cfg, audit, table, _checkpoint(args), args.manifest)
        lines += _write_evaluation(evaluation, Path(args.output)) if evaluation else []
    if comm.is_main_process():
        print("\n".join(lines))


def _is_plain(args: argparse.Namespace) -> bool:
    """Whether only wrong classes are looked for, without detection."""
    return {*args.kinds} == {"wrong_class"} and not args.truth


def _write_evaluation(evaluation: AuditEvaluation, out: Path) -> list[str]:
    write_evaluation(evaluation, out / "evaluation.json")
    plot_evaluation(evaluation, out / "evaluation.png")
    return [evaluation_table(evaluation)]


def _write(
    args: argparse.Namespace, audit: LabelAudit, suspects: SuspectList | None, out: Path
) -> list[str]:
    chosen = args.top, args.per_class, args.classes
    kept = top_suspects(audit, *chosen)
    kept_suspects = None if suspects is None else top_suspects(suspects, *chosen)
    write_audit(kept, out)
    if kept_suspects is not None:
        write_suspects(kept_suspects, out)
    if "cleanlab" in args.formats:
        write_cleanlab(audit, out, suspects)
    if "fiftyone" in args.formats:
        write_fiftyone(audit, out / "fiftyone", suspects)
    # All annotations are seen around a missing object, and what a suspect is about is among them.
    about = kept if kept_suspects is None else audit
    page = write_report(
        about, out, args.crops, args.crop_size, progress=True, suspects=kept_suspects
    )
    lines = [_summary(audit, len(kept.annotations)), f"report: {page}"]
    above = MORE_PROBABLE if args.auto else args.correct_above
    if above is not None:
        # An estimate of the true classes contains nothing about boxes.
        decisions = decisions_above(audit if args.auto else suspects or audit, above)
        if not decisions.decisions:
            return [*lines, f"no suspicion reaches {above}: nothing is corrected"]
        lines += _correct(decisions, out / CORRECTED)
    return lines


def _check_arguments(args: argparse.Namespace, out: Path) -> None:
    """What can be said without a config."""
    if args.folds is not None and args.folds < 2:
        raise ValueError(f"--folds must be at least 2; got {args.folds}")
    lacking = [kind for kind in args.kinds if kind not in TRACKED_KINDS]
    if args.statistics and _is_plain(args):
        raise ValueError("--statistics needs --kinds or --truth: for wrong classes alone an audit "
                         "of a run never reads images")  # fmt: skip
    if args.statistics and lacking:
        raise ValueError(
            f"--statistics does not suffice for {lacking[0]}: leave it out, so that the images are "
            f"read, or choose --kinds {' '.join(TRACKED_KINDS)}"
        )
    if args.statistics and args.correct_above is not None and "misplaced_box" in args.kinds:
        raise ValueError(
            "--correct-above moves boxes to suggested ones, which --statistics does not have: "
            "leave out --statistics, so that the images are read"
        )
    if args.num_gpus < 1:
        raise ValueError(f"--num-gpus must be at least 1; got {args.num_gpus}")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--output {out} is a file; give a folder")
    check_crops(args.crops, args.crop_size)
    if args.correct_above is not None:
        check_threshold(args.correct_above, "wrong_class" in args.kinds)
    corrects = args.correct_above is not None or args.auto
    if corrects and os.path.lexists(out / CORRECTED):
        raise FileExistsError(f"{out / CORRECTED} exists; remove it or give another --output")
    if args.manifest:
        read_manifest(args.manifest)
    evaluates = args.evaluate or args.manifest or args.truth
    needed = ["sklearn", "matplotlib"] if evaluates else []
    if evaluates and not args.from_features:  # beside ObjectLab
        needed.append("cleanlab")
    if args.statistics and args.manifest:
        raise ValueError("--manifest needs a pass over the images: leave out --statistics")
    if args.truth:
        read_annotation_set(args.truth)
    if not all(map(find_spec, needed)):
        raise ImportError(
            "an evaluation needs cleanlab, scikit-learn and matplotlib: "
            "pip install 'sl_detectron[audit]'"
        )


def _check_run(args: argparse.Namespace, cfg: CfgNode, table: AnnotationTable | None) -> None:
    """What can be said before the annotations are scored, and those of a checkpoint are read."""
    sources = table.sources if table else {n: dataset_source(n) for n in cfg.DATASETS.TRAIN}
    if num_classes_of(cfg) < 2 and "wrong_class" in args.kinds:
        raise ValueError(
            "wrong_class suggests another class, but this detector has only one: choose other "
            "--kinds than wrong_class"
        )
    # The classes of a COCO json are not known before it is read.
    first = next(iter(sources))
    names = table.classes if table else MetadataCatalog.get(first).get("thing_classes")
    top_suspects(LabelAudit(names or args.classes, {}, ()), args.top, classes=args.classes)
    has_noise = has_label_noise(cfg)
    if args.evaluate and not args.manifest and not args.truth and not has_noise:
        raise ValueError(
            "--evaluate compares with known noise, but DATASETS.LABEL_NOISE of this run is off; "
            "give the --manifest of the noise in the files, or true annotations by --truth"
        )
    if args.correct_above is None and not args.auto:
        return
    if has_noise:
        raise ValueError(
            f"--{'auto' if args.auto else 'correct-above'} corrects files, but the wrong labels "
            "of this run come from DATASETS.LABEL_NOISE, not from files (sl-inject-noise makes "
            "noisy files)"
        )
    for source in sources.values():
        path = source.get("root") or source.get("json_file")
        if path:
            refuse_to_overwrite(Path(args.output, CORRECTED), Path(path))


def _summary(audit: LabelAudit, num_listed: int) -> str:
    listed = f"; {num_listed} are listed" if num_listed < len(audit.annotations) else ""
    suspects = sum(a.suspicion > 0.5 for a in audit.annotations)
    unseen = f"; {audit.num_unseen} more were not seen" if audit.num_unseen else ""
    return (
        f"{len(audit.annotations)} annotations ranked; another class is more probable for "
        f"{suspects}{unseen}{listed}"
    )


def _correct(decisions: Decisions, out: Path) -> list[str]:
    counts, folders = apply_decisions(decisions, out), folder_names(decisions.sources)
    lines = [f"{counts[name]} corrections of {name}: {out / folders[name]}" for name in counts]
    # As of a misplaced box by the statistics of a run, which suggest no other one.
    open_ones = sum(
        d.verdict == "wrong" and d.index >= 0 and d.label == d.given and d.box is None
        for d in decisions.decisions
    )
    if open_ones:
        lines.append(f"{open_ones} decisions mark an annotation as wrong without another class or "
                     "box: they change nothing")  # fmt: skip
    return lines
