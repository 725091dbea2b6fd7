"""From a command line to a checked, frozen config, and from a config to a trained detector."""

import argparse
import copy
import difflib
import logging
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import SafeCheckpointer
from ..cli import USER_ERRORS
from ..config import add_superloss_config, config_keys, is_dense_detector, num_classes_of
from ..data import check_datasets, register_voc_datasets
from ..evaluation import check_evaluator
from ..label_noise import check_label_noise, check_train_loader
from .config_files import merge_config_file
from .trainer import SuperLossTrainer

__all__ = ["check_cfg", "merge_cfg", "setup_cfg", "setup_job", "train_net"]


def setup_cfg(config_file: str, opts: list[str], eval_only: bool = False) -> CfgNode:
    """Merge a config, register the sets that it names and check what can be checked early.

    Args:
        config_file: path of a YAML file; empty for detectron2's defaults
        opts: ``[KEY, VALUE, ...]``
        eval_only: whether the training sets may be absent

    Returns:
        a frozen config

    Raises:
        ValueError: a bad key or value, by name
        FileNotFoundError: a data set lacks a file
        ImportError: ``VIS_PERIOD`` is on, and what draws is not installed
    """
    cfg = merge_cfg(config_file, opts)
    check_cfg(cfg, eval_only)
    cfg.freeze()
    return cfg


def check_cfg(cfg: CfgNode, eval_only: bool = False) -> None:
    """Register the datasets that a config names and check what can be checked early.

    Args:
        cfg: from :func:`merge_cfg`
        eval_only: whether the training sets may be absent

    Raises:
        ValueError, FileNotFoundError, ImportError: as :func:`setup_cfg`
    """
    _check_device(cfg)
    register_voc_datasets(cfg.DATASETS.CUSTOM_VOC)
    if not eval_only:
        _check_drawing(cfg)
        check_label_noise(cfg)
        check_train_loader(cfg)
    _check_output(cfg)
    datasets = [*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST]
    check_datasets(datasets)
    _check_classes(cfg, datasets)
    for name in cfg.DATASETS.TEST:
        check_evaluator(name, cfg.TEST.EVALUATOR, cfg.TEST.ABSENT_CLASSES)


def merge_cfg(config_file: str, opts: list[str]) -> CfgNode:
    """Merge a config file and options over all defaults, without a look at data or device.

    Args:
        config_file: path of a YAML file; empty for detectron2's defaults
        opts: ``[KEY, VALUE, ...]``

    Returns:
        a config that can still be changed

    Raises:
        ValueError: a bad key or value, by name
    """
    cfg = get_cfg()
    add_superloss_config(cfg)
    try:
        if config_file:
            merge_config_file(cfg, config_file)
        cfg.merge_from_list(opts)
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(_explain(error, cfg)) from error
    except (TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{config_file or 'options'}: not a config: {error}") from error
    return cfg


def setup_job(cfg: CfgNode, args: argparse.Namespace | None = None) -> None:
    """detectron2's ``default_setup`` (loggers, config backup, seeds) with our logger beside it.

    Args:
        cfg: from :func:`setup_cfg`
        args: the command line, to be logged
    """
    # detectron2's launch starts fresh processes, which know no set of this config.
    register_voc_datasets(cfg.DATASETS.CUSTOM_VOC)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="sl_detectron", abbrev_name="sl_detectron")
    if not getattr(args, "debug", False):
        for handler in logging.getLogger("detectron2").handlers:
            # The one of the console; log.txt keeps the traceback.
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.setFormatter(_WithoutTraceback(handler.formatter))


def train_net(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate, or evaluate only, on every rank that detectron2's ``launch`` starts.

    Args:
        cfg: from :func:`setup_cfg`
        args: from detectron2's ``default_argument_parser``; ``eval_only`` and ``resume`` count

    Returns:
        the metrics of the last evaluation; empty on other ranks than the main one
    """
    if not args.resume:  # to resume needs none
        _check_weights(cfg)
    setup_job(cfg, args)
    if args.eval_only:
        model = SuperLossTrainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = SuperLossTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


class _WithoutTraceback(logging.Formatter):
    """Says what a user can mend in one line, as the command line says it."""

    def __init__(self, stock: logging.Formatter | None):
        super().__init__()
        # setup_logger gives out the same handlers again.
        if isinstance(stock, _WithoutTraceback):
            stock = stock.stock
        self.stock: logging.Formatter = stock or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, USER_ERRORS):
            # A copy: the other handlers get the same record, and cache its traceback in it.
            record = copy.copy(record)
            reason = " ".join(str(error).split())
            record.msg, record.args = f"{record.getMessage()} {reason}", ()
            record.exc_info = record.exc_text = None
        return self.stock.format(record)


def _check_device(cfg: CfgNode) -> None:
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; cpu or cuda?") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but torch sees no GPU here; "
            "add MODEL.DEVICE cpu to the command"
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            "SOLVER.AMP.ENABLED needs MODEL.DEVICE cuda: detectron2's AMPTrainer runs there only"
        )


def _check_weights(cfg: CfgNode) -> None:
    path = cfg.MODEL.WEIGHTS
    if path and "://" not in path and not Path(path.partition("?")[0]).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {path}")


def _check_drawing(cfg: CfgNode) -> None:
    if cfg.VIS_PERIOD > 0 and not all(map(find_spec, ("cv2", "matplotlib"))):
        raise ImportError(
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, and drawing needs OpenCV and matplotlib: "
            "pip install 'sl_detectron[visualize]', or set VIS_PERIOD to 0"
        )


def _check_output(cfg: CfgNode) -> None:
    output = Path(cfg.OUTPUT_DIR).absolute()
    parent = next(p for p in (output, *output.parents) if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"OUTPUT_DIR {cfg.OUTPUT_DIR}: {parent} is not a folder")


def _check_classes(cfg: CfgNode, datasets: list[str]) -> None:
    """A wrong NUM_CLASSES would show as an index error, or after the training."""
    head = "RETINANET" if is_dense_detector(cfg) else "ROI_HEADS"
    num_classes = num_classes_of(cfg)
    for name in datasets:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"MODEL.{head}.NUM_CLASSES is {num_classes}, but data set {name!r} has "
                f"{len(classes)} classes; set it to {len(classes)}"
            )


def _explain(error: Exception, cfg: CfgNode) -> str:
    """Say what yacs means: the nearest key, or the form that a value must have."""
    message = str(error.args[0] if error.args else error)
    mismatch = re.search(r"<class '(\w+)'> vs\. <class '(\w+)'>.*config key: ([\w.]+)", message)
    if mismatch:
        wanted, given, key = mismatch.groups()
        hint = {"float": " such as 1.0", "str": ", in quotes: \"'1.5'\""}.get(wanted, "")
        return f"{key} takes a {wanted}{hint}; got a {given} ({message})"
    missing = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if missing:
        near = difflib.get_close_matches(missing[1], config_keys(cfg), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"there is no config key {missing[1]}{hint}"
    return message
