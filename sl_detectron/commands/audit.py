"""The work of ``tools/audit_labels.py``: from a run or a checkpoint to files and corrections."""

import argparse
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..audit import (
    LabelAudit,
    apply_decisions,
    decisions_above,
    read_decisions,
    top_suspects,
    write_audit,
    write_report,
)
from ..audit.correct import folder_names
from ..audit.decisions import check_threshold
from ..audit.exchange import write_cleanlab, write_fiftyone
from ..audit.records import check_top, dataset_source
from ..audit.report import check_crops
from ..audit.run import (
    audit_checkpoint,
    audit_run,
    evaluate_run,
    last_checkpoint,
)
from ..audit.scoring import evaluation_table, plot_evaluation, write_evaluation
from ..config import num_classes_of
from ..data.formats.manifest import read_manifest
from ..engine.config_files import refuse_lazy
from ..engine.setup import setup_cfg
from ..files import refuse_to_overwrite
from ..label_noise.config import has_label_noise

__all__ = ["FORMATS", "apply_file", "run_audit"]

FORMATS = ("cleanlab", "fiftyone")
CORRECTED = "corrected"
# What an evaluation needs beyond the requirements of the package.
_EXTRAS = ("cleanlab", "sklearn", "matplotlib")
_NO_LAZY = (
    "whose training keeps no annotation statistics: audit its checkpoint by --checkpoint and, as "
    "--config-file, a YAML config of the same detector and training sets"
)


def run_audit(args: argparse.Namespace) -> str:
    """Audit a run or a checkpoint and write everything that was asked for.

    The list and the report hold what ``top``, ``per_class`` and ``classes`` leave; what is made for
    other tools, and corrections, are of all annotations.

    Args:
        args: of the tool

    Returns:
        what to print

    Raises:
        ValueError, OSError, ImportError: something does not fit; as far as it can be known before
            the annotations are looked at
    """
    out = Path(args.output)
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else []
    _check_arguments(args, out)
    cfg = _config(args)
    checkpoint = args.checkpoint or last_checkpoint(cfg.OUTPUT_DIR)
    _check_run(args, cfg, checkpoint, classes)
    audit = audit_checkpoint(cfg, checkpoint) if args.checkpoint else audit_run(cfg, checkpoint)
    kept = top_suspects(audit, args.top, args.per_class, classes)
    write_audit(kept, out)
    if "cleanlab" in args.formats:
        write_cleanlab(audit, out)
    if "fiftyone" in args.formats:
        write_fiftyone(audit, out / "fiftyone")
    page = write_report(kept, out, args.crops, args.crop_size, progress=True)
    lines = [_summary(audit, len(kept.annotations)), f"report: {page}"]
    if args.correct_above is not None:
        lines += _correct_above(audit, args.correct_above, out / CORRECTED)
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
    read = read_decisions(decisions)
    return "\n".join(_counts(apply_decisions(read, out), Path(out), read.sources))


def _check_arguments(args: argparse.Namespace, out: Path) -> None:
    """What can be said without a config."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--output {out} is a file; give a folder")
    check_crops(args.crops, args.crop_size)
    if args.correct_above is not None:
        check_threshold(args.correct_above)
        if os.path.lexists(out / CORRECTED):
            raise FileExistsError(f"{out / CORRECTED} exists; remove it or give another --output")
    if args.manifest:
        read_manifest(args.manifest)
    if (args.evaluate or args.manifest) and not all(map(find_spec, _EXTRAS)):
        raise ImportError(
            "an evaluation needs cleanlab, scikit-learn and matplotlib: "
            "pip install 'sl_detectron[audit]'"
        )


def _check_run(
    args: argparse.Namespace, cfg: CfgNode, checkpoint: str | Path, classes: list[str]
) -> None:
    """What can be said before the annotations are looked at."""
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"there is no checkpoint {checkpoint}")
    if num_classes_of(cfg) < 2:
        raise ValueError(
            "an audit suggests another class, and this detector has one only: it cannot be audited"
        )
    # A COCO set's classes are not known before it is read.
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    check_top(names or classes, args.top, classes)
    has_noise = has_label_noise(cfg)
    if args.evaluate and not args.manifest and not has_noise:
        raise ValueError(
            "--evaluate compares with known noise, and DATASETS.LABEL_NOISE of this run is off; "
            "give the --manifest of noise that is in the files"
        )
    if args.correct_above is None:
        return
    if has_noise:
        raise ValueError(
            "--correct-above corrects files, and the labels of this run have "
            "DATASETS.LABEL_NOISE, which is in no file (sl-inject-noise writes it to disk)"
        )
    for name in cfg.DATASETS.TRAIN:
        source = dataset_source(name)
        path = source.get("root") or source.get("json_file")
        if path:
            refuse_to_overwrite(Path(args.output, CORRECTED), Path(path))


def _correct_above(audit: LabelAudit, threshold: float, out: Path) -> list[str]:
    decisions = decisions_above(audit, threshold)
    if not decisions.decisions:
        return [f"no suspicion reaches {threshold}: nothing is corrected"]
    return _counts(apply_decisions(decisions, out), out, decisions.sources)


def _config(args: argparse.Namespace) -> CfgNode:
    # Test sets need not be there to audit a training set, nor what draws.
    opts = [*args.opts, "DATASETS.TEST", "()", "VIS_PERIOD", "0"]
    if args.checkpoint:
        refuse_lazy(args.config_file, _NO_LAZY)
        return setup_cfg(args.config_file, opts)
    file = Path(args.from_run, "config.yaml")
    if not file.is_file():
        raise FileNotFoundError(f"{args.from_run} is not the output of a training: no {file.name}")
    refuse_lazy(file, _NO_LAZY)
    return setup_cfg(str(file), [*opts, "OUTPUT_DIR", args.from_run])


def _summary(audit: LabelAudit, num_listed: int) -> str:
    listed = f"; {num_listed} are listed" if num_listed < len(audit.annotations) else ""
    suspects = sum(a.suspicion > 0.5 for a in audit.annotations)
    unseen = f"; {audit.num_unseen} more were never sampled" if audit.num_unseen else ""
    return (
        f"{len(audit.annotations)} annotations ranked, for {suspects} another class is more "
        f"probable{unseen}{listed}"
    )


def _counts(counts: dict[str, int], out: Path, datasets: Iterable[str]) -> list[str]:
    folders = folder_names(datasets)
    return [
        f"{count} corrections of {name}: {out / folders[name]}" for name, count in counts.items()
    ]
