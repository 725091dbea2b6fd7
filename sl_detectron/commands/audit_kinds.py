"""The part of an audit that finds flaws of every kind, and evaluates how well it does."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..audit.annotation_sets import objects_of, read_annotation_set
from ..audit.compare import (
    SetComparison,
    compare_sets,
    comparison_table,
    write_comparison,
)
from ..audit.kind_scoring import (
    evaluate_kinds,
    kinds_table,
    objectlab_ranked,
    write_kinds_evaluation,
)
from ..audit.records import LabelAudit, SuspectList
from ..audit.run import audit_kinds, audit_statistics
from ..config import num_classes_of
from ..data.annotation_ids import AnnotationTable
from ..label_noise import noisy_dataset_dicts
from ..label_noise.config import without_noise

__all__ = ["rank_kinds", "with_empty_images"]

# Of the counts that are printed.
SHOWN = 0.5


def with_empty_images(
    cfg: CfgNode, args: argparse.Namespace, table: AnnotationTable
) -> AnnotationTable:
    """The table with the images without annotations, which a training leaves out.

    Raises:
        ValueError: the training sets are not those of the table any more
    """
    if "missing_object" not in args.kinds:
        return table
    full = _whole_table(cfg)
    if full.fingerprint != table.fingerprint:
        raise ValueError(
            f"the annotations of {', '.join(table.sources)} differ from those that "
            f"{args.from_run} was trained on, so missing objects cannot be found: audit the "
            "checkpoint with --checkpoint"
        )
    return full


def _whole_table(cfg: CfgNode) -> AnnotationTable:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    return AnnotationTable.of(noisy_dataset_dicts(cfg), keep_empty=True)


def rank_kinds(
    cfg: CfgNode,
    args: argparse.Namespace,
    table: AnnotationTable,
    audit: LabelAudit | None,
    checkpoint: Any,
) -> tuple[LabelAudit | None, SuspectList | None, list[str]]:
    """The rankings of the chosen kinds, and lines to print; None but in the main process."""
    kinds = [*dict.fromkeys(args.kinds)]
    # Before the pass: the sets may have no image in common.
    comparison = _compare(cfg, args, table)
    lab: Any = {}
    if args.statistics:
        audit, suspects = audit_statistics(args.from_run, kinds, table)
    else:
        found = audit_kinds(cfg, checkpoint, kinds, table, audit)
        if found is None:
            return None, None, []
        audit, suspects, scores = found
        if comparison is not None:
            lab = objectlab_ranked(table, scores, num_classes_of(cfg))
    lines = [_count(suspects, kinds)]
    if comparison is not None:
        by_kind = evaluate_kinds(suspects, comparison, kinds, lab)
        write_comparison(comparison, args.output)
        write_kinds_evaluation(by_kind, Path(args.output, "evaluation_kinds.json"))
        lines += [comparison_table(comparison), kinds_table(by_kind)]
    return audit, suspects, lines


def _compare(
    cfg: CfgNode, args: argparse.Namespace, table: AnnotationTable
) -> SetComparison | None:
    """With the annotations that are known to be true: another set, or those before the noise."""
    classes = table.classes or [*map(str, range(num_classes_of(cfg)))]
    if args.truth:
        return compare_sets(objects_of(table, classes), read_annotation_set(args.truth), classes)
    if args.evaluate and not args.manifest:
        clean = _whole_table(without_noise(cfg))
        return compare_sets(objects_of(table, classes), objects_of(clean, classes), known=True)
    return None


def _count(suspects: SuspectList, kinds: Sequence[str]) -> str:
    counts = Counter(s.kind for s in suspects.suspects if s.score > SHOWN)
    return f"suspects above {SHOWN}: " + ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
