"""The work of ``tools/visualize.py``: labels, detections, confidences and curves as pictures."""

import argparse
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..audit.files import AUDIT_JSON, read_audit
from ..checkpoint import last_checkpoint
from ..data.datasets import load_dataset
from ..data.images import BrokenImage, warn_of_turned
from ..engine.trainer import build_predictor
from ..label_noise import noisy_dataset_dicts
from ..visualization.boxes import is_wrong
from ..visualization.comparison import DPI, check_screen, panels_of, side_by_side
from ..visualization.curves import draw_curves, read_curves
from . import run_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ORDERS", "run_curves", "run_visualize"]

logger = logging.getLogger(__name__)
Record = dict[str, Any]
# Which images come first: as in the dataset, with most wrong labels, with the least confidence.
ORDERS = ("set", "wrong", "doubted")
_NO_LAZY = (
    "which is not drawn: give a YAML config of the same detector and datasets as --config-file, "
    "and for detections the weights as --checkpoint"
)


def run_visualize(args: argparse.Namespace) -> str:
    """Draw images of a dataset, one picture each, save or show them, and return a text to print.

    Raises:
        ValueError: an option does not fit the dataset, or there is no screen to show pictures on
        FileNotFoundError: there is no such run, checkpoint or audit
        ImportError: OpenCV is not installed
    """
    if args.num < 1:
        raise ValueError(f"--num must be 1 or above; got {args.num}")
    # Sets that are not drawn need not be there; without detections no device is needed either.
    opts = ["DATASETS.TEST", str((args.dataset,) if args.dataset else ())]
    if not (args.checkpoint or args.from_run):
        opts += ["MODEL.DEVICE", "cpu"]
    cfg = run_config(args, opts, _NO_LAZY)
    name = args.dataset or cfg.DATASETS.TRAIN[0]
    given, true = _records(cfg, name)
    classes = MetadataCatalog.get(name).thing_classes
    sigma = _confidences(args, name)
    chosen = _order(given, args.first, sigma)[: args.num]
    checkpoint = args.checkpoint or (args.from_run and last_checkpoint(args.from_run))
    predictor = build_predictor(cfg, checkpoint, args.threshold) if checkpoint else None
    warn_of_turned(chosen, f"dataset {name!r}")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    drawn = 0
    for number, record in enumerate(tqdm(chosen, unit="image", dynamic_ncols=True)):
        try:
            panels = panels_of(record, classes, true.get(record["image_id"]), sigma, predictor)
        except BrokenImage as error:
            if cfg.DATALOADER.BROKEN_IMAGES != "skip":
                raise
            logger.warning("Not drawn: %s", str(error).partition("; repair it")[0])
            continue
        drawn += 1
        figure = side_by_side(panels, args.show)
        if args.output:
            # In the order of drawing; ids may hold slashes.
            file = re.sub(r"[^0-9A-Za-z._-]", "_", f"{number:04d}_{record['image_id']}.png")
            figure.savefig(args.output / file, dpi=DPI)
        if args.show:
            _show(figure)
    where = f": {args.output}" if args.output else ""
    return f"{drawn} of {len(given)} images of {name} drawn{where}"


def run_curves(args: argparse.Namespace) -> str:
    """Draw the training curves of ``--curves``, save or show them, and return a text to print.

    Raises:
        ValueError: a run is named twice, has no metrics, or there is no screen to show them on
        FileNotFoundError: a folder is not a run's
    """
    if args.show:
        check_screen()
    # Runs of one name, as those of a sweep are, are told apart by their paths.
    names = [Path(folder).resolve().name for folder in args.curves]
    if len(set(names)) < len(names):
        names = [str(Path(folder)) for folder in args.curves]
    if len(set(names)) < len(names):
        raise ValueError(f"--curves names a run twice: {', '.join(names)}")
    runs = {name: read_curves(folder) for name, folder in zip(names, args.curves)}
    figure = draw_curves(runs, args.show)
    where = ""
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        path = args.output / "curves.png"
        figure.savefig(path, dpi=DPI)
        where = f": {path}"
    if args.show:
        _show(figure)
    return f"curves of {', '.join(names)} drawn{where}"


def _records(cfg: CfgNode, name: str) -> tuple[list[Record], dict[Any, Record]]:
    """The records as training sees them; the clean ones by image id where they differ."""
    if name not in cfg.DATASETS.TRAIN:
        return load_dataset(name, cfg.DATASETS.BAD_ANNOTATIONS), {}
    given = noisy_dataset_dicts(cfg)[name]
    records = load_dataset(name, cfg.DATASETS.BAD_ANNOTATIONS)
    clean = {r["image_id"]: r for r in records}
    differ = any(_changed(r, clean[r["image_id"]]) for r in given)
    return given, clean if differ else {}


def _changed(record: Record, clean: Record) -> bool:
    ours, theirs = record.get("annotations", ()), clean.get("annotations", ())
    return len(ours) != len(theirs) or any(is_wrong(a) or "true_bbox" in a for a in ours)


def _confidences(args: argparse.Namespace, name: str) -> dict[int, float]:
    """{annotation id: mean sigma} of an audit; empty without one."""
    path = args.audit or Path(args.from_run or "", AUDIT_JSON)
    if not args.audit and not (args.from_run and path.is_file()):
        return {}
    audit = read_audit(path)
    return {a.annotation_id: a.confidence for a in audit.annotations if a.dataset == name}


def _order(records: Sequence[Record], first: str, sigma: Mapping[int, float]) -> list[Record]:
    if first == "doubted" and not sigma:
        raise ValueError("--first doubted needs the confidences of --from-run or --audit")

    def key(record: Record) -> float:
        annotations = record.get("annotations", ())
        if first == "wrong":
            return -sum(map(is_wrong, annotations))
        return min((sigma.get(a.get("annotation_id", -1), np.inf) for a in annotations), default=9)

    return list(records) if first == "set" else sorted(records, key=key)


def _show(figure: "Figure") -> None:
    """Until the user closes the window."""
    import matplotlib.pyplot as plt

    plt.show()
    plt.close(figure)
