"""From a command line to a checked, frozen config."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from ..cli import did_you_mean
from ..config import (
    add_superloss_config,
    config_keys,
    needs_masks,
    num_classes_key,
    num_classes_of,
    train_sets,
)
from ..data.class_checks import check_classes, check_masks, check_test_classes
from ..data.datasets import check_dataset, dataset_signature, is_without_annotations
from ..data.registered_sets import custom_entries, is_coco_set, register_custom_datasets
from ..evaluation.evaluator_choice import check_evaluator
from ..files import load_yaml, write_text
from ..label_noise.config import check_label_noise, has_label_noise
from ..label_noise.training_sets import check_train_loader
from ..model_zoo import get_config_file
from ..rivals import check_method
from .finite import AMP_DEVICES
from .label_correction import check_correction

__all__ = [
    "check_cfg",
    "check_for_training",
    "keep_config",
    "merge_cfg",
    "setup_cfg",
    "warn_of_custom_loader",
]

logger = logging.getLogger(__name__)

BASE_KEY = "_BASE_"
# Checks of test sets that this process has made: name, signature of the files, values.
_passed: set[tuple[str, Any, str]] = set()


def setup_cfg(config_file: str, opts: list[str], eval_only: bool = False) -> CfgNode:
    """Merge a config, register the datasets that it names, check what can be early, and freeze it.

    Args:
        config_file: path of a YAML file of plain values; empty for detectron2's defaults
        opts: ``[KEY, VALUE, ...]``
        eval_only: whether the training sets may be absent

    Raises:
        ValueError: a bad key or value, by name
        FileNotFoundError: a dataset lacks a file
        ImportError: ``VIS_PERIOD`` is on, and what draws is not installed
    """
    cfg = merge_cfg(config_file, opts)
    check_cfg(cfg, eval_only)
    cfg.freeze()
    return cfg


def check_cfg(cfg: CfgNode, eval_only: bool = False) -> None:
    """Register the datasets that a config names and check it, as :func:`setup_cfg` does."""
    check_device(cfg)
    register_custom_datasets(cfg.DATASETS)
    if not eval_only:
        _check_drawing(cfg)
        check_label_noise(cfg)
        check_train_loader(cfg)
        check_correction(cfg)
        check_method(cfg)
    _check_output(cfg)
    for name in () if eval_only else dict.fromkeys(train_sets(cfg)):
        _check_dataset(cfg, name)
    check_test_sets(cfg)
    check_test_classes(train_sets(cfg), cfg.DATASETS.TEST)


def check_test_sets(cfg: CfgNode, custom_evaluator: bool = False) -> None:
    """Check what an evaluation needs, so that it does not fail after the training run.

    Raises:
        ValueError: a test set cannot be evaluated, has no object or other classes than the detector
        FileNotFoundError: a dataset lacks a file
    """
    for name in cfg.DATASETS.TEST:
        # A tool's check and its trainer's: a set is read once for both.
        values = str((cfg.DATASETS, cfg.TEST, needs_masks(cfg), num_classes_of(cfg)))
        values += str(custom_evaluator)
        of_files = dataset_signature(name) if name in DatasetCatalog else None
        if (name, of_files, values) in _passed:
            continue
        records = _check_dataset(cfg, name, any_format=not custom_evaluator)
        if not custom_evaluator:
            choices = (cfg.TEST.EVALUATOR, cfg.TEST.ABSENT_CLASSES, cfg.DATASETS.BAD_ANNOTATIONS)
            check_evaluator(name, *choices)
        if records is not None:
            _check_objects(name, records)
        # The class names of a COCO set are there once it is read. A warning comes each time.
        of_files = dataset_signature(name)
        if of_files is not None and any(r.get("annotations") for r in records or ()):
            _passed.add((name, of_files, values))


def _check_objects(name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a test set without a scored object: its AP would be nan."""
    annotations = [a for record in records for a in record.get("annotations") or ()]
    if any(not a.get("iscrowd") and not a.get("difficult") for a in annotations):
        return
    if records and is_without_annotations(name):
        message = "Dataset %r of DATASETS.TEST has no annotations, as of a test server: "
        logger.warning(message + "detections are written, and nothing is scored", name)
        return
    found = f"no object in its {len(records)} images"
    if annotations:
        found = f"{len(annotations)} objects, and all are difficult or crowds, which do not count"
    raise ValueError(f"dataset {name!r} of DATASETS.TEST has {found}: its AP would be nan")


def check_for_training(cfg: CfgNode, custom_evaluator: bool) -> None:
    """The checks of :func:`setup_cfg` for a program that builds its config itself.

    The loader of the training sets checks them as it reads them.
    """
    check_device(cfg)
    register_custom_datasets(cfg.DATASETS)
    check_test_sets(cfg, custom_evaluator=custom_evaluator)


def warn_of_custom_loader(cfg: CfgNode) -> None:
    """Warn of checks and label noise that a custom loader may lack.

    It may merge classes, or add noise by itself. The class names of COCO sets exist once it is
    built.
    """
    for name in dict.fromkeys(train_sets(cfg)):
        try:
            check_classes(name, (), num_classes_of(cfg), num_classes_key(cfg), exact=False)
        except ValueError as error:
            logger.warning("The custom training loader may train classes as background: %s", error)
    if has_label_noise(cfg):
        logger.warning(
            "DATASETS.LABEL_NOISE is set, but the training loader is custom and was not built by "
            "build_noisy_train_loader(cfg): unless it adds noise by itself, there is none"
        )


def keep_config(cfg: CfgNode) -> None:
    """Write ``config.yaml`` into ``OUTPUT_DIR``; audits and pictures of a run read it.

    It includes entries for VOC and COCO sets that a program registered.
    """
    cfg = cfg.clone()
    cfg.defrost()
    names = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    for key, entries in custom_entries(names).items():
        given = {entry["NAME"] for entry in cfg.DATASETS[key]}
        cfg.DATASETS[key] = [*cfg.DATASETS[key], *(e for e in entries if e["NAME"] not in given)]
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", cfg.dump())


def _check_dataset(
    cfg: CfgNode, name: str, any_format: bool = False
) -> list[dict[str, Any]] | None:
    # The training loader takes what was read here.
    keep = name in train_sets(cfg)
    records = check_dataset(name, cfg.DATASETS.BAD_ANNOTATIONS, any_format, keep)
    check_classes(name, records or (), num_classes_of(cfg), num_classes_key(cfg))
    if needs_masks(cfg):
        is_scored = name in cfg.DATASETS.TEST and is_coco_set(name)
        if is_scored or name in train_sets(cfg):
            check_masks(name, records or (), crowds=is_scored)
    return records


def merge_cfg(config_file: str, opts: list[str]) -> CfgNode:
    """Merge a config file and options over all defaults; data and device are not checked.

    Raises:
        ValueError: a bad key or value, by name; the file or one of its bases is not a config, holds
            code or names itself as its base
    """
    cfg = get_cfg()
    add_superloss_config(cfg)
    try:
        if config_file:
            _check_file(Path(config_file))
            cfg.merge_from_file(config_file, allow_unsafe=False)
        cfg.merge_from_list(opts)
    except (KeyError, AssertionError, ValueError) as error:
        raise ValueError(_explain(error, cfg)) from error
    except (TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{config_file or 'options'}: not a config: {error}") from error
    return cfg


def _check_file(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a file that is not a config of plain values, and such bases of it."""
    named = f"{path} (_BASE_ of {above[-1]})" if above else f"{path}"
    if path.resolve() in {p.resolve() for p in above}:
        raise ValueError(f"{named}: a config cannot be its own base")
    if not path.is_file():
        raise ValueError(f"config file {named} does not exist{_shipped(path) if above else ''}")
    try:
        # Decoded here: yaml names no file for bytes that are not text.
        content = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} is not UTF-8 text: {error}") from error
    except yaml.constructor.ConstructorError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = f"{named}{line}: refused, a config holds values only: {error.problem}"
        raise ValueError(reason) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{named} is not a config: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{named} is not a config: it holds {found}, not KEY: value")
    bases = content.get(BASE_KEY, ())
    for base in bases if isinstance(bases, list | tuple) else [bases]:
        if not isinstance(base, str):
            raise ValueError(f"{named}: {BASE_KEY} must be a path; got {base!r}")
        if not base.startswith(("http://", "https://")):
            _check_file(path.parent / os.path.expanduser(base), (*above, path))


def _shipped(path: Path) -> str:
    """Advice on a base that is looked for beside its config, as outside of a clone."""
    parts = path.parts
    for i in range(len(parts)):
        name = "/".join(parts[i:])
        with suppress(FileNotFoundError, ValueError):
            return (
                f"; a relative {BASE_KEY} is resolved relative to the file that contains it: for "
                f"the shipped config write {BASE_KEY}: {get_config_file(name)}"
            )
    where = "is resolved relative to the file that contains it"
    return f"; a relative {BASE_KEY} {where}: give an absolute path"


def check_device(cfg: CfgNode) -> None:
    """Raise ValueError for a device that torch does not know or have, or that AMP cannot use."""
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; cpu or cuda?") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r} but torch sees no GPU here; "
            "add MODEL.DEVICE cpu to the command"
        )
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith(AMP_DEVICES):
        raise ValueError(
            f"SOLVER.AMP.ENABLED needs MODEL.DEVICE cuda or cpu; got {cfg.MODEL.DEVICE!r}"
        )


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


def _explain(error: Exception, cfg: CfgNode) -> str:
    """Explain an error of yacs: the nearest key, or the form that a value must have."""
    message = str(error.args[0] if error.args else error)
    mismatch = re.search(r"<class '(\w+)'> vs\. <class '(\w+)'>.*config key: ([\w.]+)", message)
    if mismatch:
        wanted, given, key = mismatch.groups()
        forms = {"float": " such as 1.0", "str": ", in quotes: \"'1.5'\""}
        hint = {**forms, "tuple": " such as ('name',), with a comma"}.get(wanted, "")
        return f"{key} takes a {wanted}{hint}; got a {given} ({message})"
    missing = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if missing:
        return f"there is no config key {missing[1]}{did_you_mean(missing[1], config_keys(cfg))}"
    return message
