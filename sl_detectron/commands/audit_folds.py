"""Detectors for cross-fitting: each is trained without one fold of the images."""

import argparse
from pathlib import Path

from detectron2.config import CfgNode

from ..checkpoint import last_checkpoint
from ..engine.launch import end_logs, launch_job
from ..engine.rounds import train_net
from . import run_config

__all__ = ["check_fold_folders", "fold_configs", "train_folds"]


def fold_configs(args: argparse.Namespace, no_lazy: str) -> list[CfgNode]:
    """A config for each fold: that of ``--config-file`` without tests, and without the fold.

    Args:
        args: of the tool; the runs go to ``fold_0``, ``fold_1`` ... in ``output``
        no_lazy: what to do about a LazyConfig

    Raises:
        ValueError, FileNotFoundError: as :func:`~sl_detectron.commands.run_config`
    """
    opts = ["DATASETS.TEST", "()", "VIS_PERIOD", "0", "DATASETS.FOLDS", str(args.folds)]
    return [
        run_config(
            args,
            [*opts, "DATASETS.HELD_OUT_FOLD", str(fold),
             "OUTPUT_DIR", str(Path(args.output, f"fold_{fold}"))],
            no_lazy,
        )
        for fold in range(args.folds)
    ]  # fmt: skip


def check_fold_folders(configs: list[CfgNode]) -> None:
    """Refuse a folder in which a detector was trained otherwise: its scores would be of that one.

    Raises:
        ValueError: names the folder and a key
    """
    for cfg in configs:
        path = Path(cfg.OUTPUT_DIR, "config.yaml")
        if path.is_file() and path.read_text(encoding="utf-8") != cfg.dump():
            before = {*path.read_text(encoding="utf-8").splitlines()}
            line = next((x for x in cfg.dump().splitlines() if x not in before), "its keys")
            raise ValueError(
                f"{path.parent} belongs to a training run with another config, where "
                f"{line.strip()!r} differs: give another --output, or remove the folder"
            )


def train_folds(args: argparse.Namespace, configs: list[CfgNode]) -> list[str]:
    """Train what is not trained yet, one fold after the other, and return the checkpoints.

    What was interrupted goes on where it stopped.
    """
    args.resume, args.eval_only = True, False
    for cfg in configs:
        if not Path(cfg.OUTPUT_DIR, "model_final.pth").is_file():
            launch_job(train_net, cfg, args)
            end_logs()
    return [str(last_checkpoint(cfg.OUTPUT_DIR)) for cfg in configs]
