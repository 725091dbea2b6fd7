"""The work of ``tools/audit_labels.py``: from a run or a checkpoint to files and corrections."""

import argparse
import os
from pathlib import Path

from detectron2.config import CfgNode

from ..audit import (
    LabelAudit,
    apply_decisions,
    decisions_above,
    read_decisions,
    top_suspects,
    write_audit,
    write_report,
)
from ..audit.correct import folder_name
from ..audit.evaluation import evaluation_table, plot_evaluation, write_evaluation
from ..audit.exchange import write_cleanlab, write_fiftyone
from .label_audit import audit_checkpoint, audit_run, evaluate_run, last_checkpoint
from .setup import setup_cfg

__all__ = ["FORMATS", "apply_file", "run_audit"]

FORMATS = ("cleanlab", "fiftyone")
CORRECTED = "corrected"


def run_audit(args: argparse.Namespace) -> str:
    """Audit a run or a checkpoint and write everything that was asked for.

    Args:
        args: of the tool

    Returns:
        what to print
    """
    out = Path(args.output)
    cfg = _config(args)
    checkpoint = args.checkpoint or last_checkpoint(cfg.OUTPUT_DIR)
    audit = audit_checkpoint(cfg, checkpoint) if args.checkpoint else audit_run(cfg, checkpoint)
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    kept = top_suspects(audit, args.top, args.per_class, classes)
    write_audit(kept, out)
    page = write_report(kept, out, args.crops, args.crop_size, progress=True)
    if "cleanlab" in args.formats:
        write_cleanlab(kept, out)
    if "fiftyone" in args.formats:
        write_fiftyone(kept, out / "fiftyone")
    lines = [_summary(kept), f"report: {page}"]
    if args.correct_above is not None:
        counts = apply_decisions(decisions_above(kept, args.correct_above), out / CORRECTED)
        lines += _counts(counts, out / CORRECTED)
    if args.evaluate or args.manifest:
        evaluation = evaluate_run(cfg, audit, args.manifest, checkpoint)
        write_evaluation(evaluation, out / "evaluation.json")
        plot_evaluation(evaluation, out / "evaluation.png")
        lines.append(evaluation_table(evaluation))
    return "\n".join(lines)


def apply_file(decisions: str | os.PathLike, out: str | os.PathLike) -> str:
    """Write the corrected data sets of a file of decisions.

    Args:
        decisions: saved by the report
        out: new folder

    Returns:
        what to print
    """
    return "\n".join(_counts(apply_decisions(read_decisions(decisions), out), Path(out)))


def _config(args: argparse.Namespace) -> CfgNode:
    # Test sets need not be there to audit a training set.
    opts = [*args.opts, "DATASETS.TEST", "()"]
    if args.checkpoint:
        return setup_cfg(args.config_file, opts)
    file = Path(args.from_run, "config.yaml")
    if not file.is_file():
        raise FileNotFoundError(f"{args.from_run} is not the output of a training: no {file.name}")
    return setup_cfg(str(file), [*opts, "OUTPUT_DIR", args.from_run])


def _summary(audit: LabelAudit) -> str:
    suspects = sum(a.suspicion > 0.5 for a in audit.annotations)
    unseen = f"; {audit.num_unseen} more were never sampled" if audit.num_unseen else ""
    return (
        f"{len(audit.annotations)} annotations ranked, for {suspects} another class is more "
        f"probable{unseen}"
    )


def _counts(counts: dict[str, int], out: Path) -> list[str]:
    return [
        f"{count} corrections of {name}: {out / folder_name(name)}"
        for name, count in counts.items()
    ]
