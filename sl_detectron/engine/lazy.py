"""Train what a LazyConfig, a Python file of objects, describes."""

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.engine import HookBase, SimpleTrainer, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..checkpoint import SafeCheckpointer, check_checkpoint
from ..cli import did_you_mean
from ..config import config_keys
from ..data.annotation_ids import AnnotationTable
from ..data.train_loader import shield_workers
from ..rivals import Method
from .finite import AMP_DEVICES, trainer_class
from .hooks import LogTau, TrackAnnotations, WarnOfUnusedTerms, build_annotation_tracker
from .label_correction import LabelCorrection
from .launch import setup_job
from .methods import TrainMethod
from .resume import ResumeState, SaveAndStop, StopOnSignal, resume_or_load
from .rng import keep_rng_state
from .trainer import distribute

__all__ = ["setup_lazy_cfg", "train_lazy_net"]

# NotImplementedError: LazyConfig cannot delete.
OTHER_ERRORS = (KeyError, AttributeError, NotImplementedError)
_ABSENT = object()
NEEDED = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def setup_lazy_cfg(config_file: str, overrides: list[str]) -> DictConfig:
    """Load a LazyConfig and check that it has what a training run needs.

    Args:
        config_file: path of a Python file in the form of detectron2's LazyConfigs, with the names
            ``model``, ``dataloader`` (with ``train``, ``test``, ``evaluator``), ``optimizer``,
            ``lr_multiplier`` and ``train``; ``label_correction``, a
            :class:`~sl_detectron.engine.LabelCorrection`, where labels are corrected; ``method``, a
            :class:`~sl_detectron.rivals.Method` of another paper
        overrides: ``["train.max_iter=100", ...]``

    Raises:
        ValueError: a name is missing, or a value or override does not fit
        FileNotFoundError: there is no such config or checkpoint
    """
    cfg = LazyConfig.load(config_file)
    for override in overrides:
        _check_key(cfg, override, config_file)
    try:
        cfg = LazyConfig.apply_overrides(cfg, overrides)
    except (OmegaConfBaseException, HydraException, *OTHER_ERRORS) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{config_file}: cannot apply {overrides}: {reason}") from error
    missing = [name for name in NEEDED if name not in cfg]
    if missing:
        raise ValueError(f"{config_file} has no {', '.join(missing)}; training needs {NEEDED}")
    if cfg.train.amp.enabled and not cfg.train.device.startswith(AMP_DEVICES):
        raise ValueError(
            f"train.amp.enabled needs train.device cuda or cpu; got {cfg.train.device!r}"
        )
    check_checkpoint(cfg.train.init_checkpoint, "train.init_checkpoint")
    return cfg


def _check_key(cfg: DictConfig, override: str, config_file: str) -> None:
    """detectron2 would add a misspelt key and train on as if it had not been given."""
    key, equals, _ = override.partition("=")
    if not equals or key.startswith(("+", "~")):
        return
    if OmegaConf.select(cfg, key, default=_ABSENT) is not _ABSENT:
        return
    container: Any = OmegaConf.to_container(cfg)
    hint = did_you_mean(key, config_keys(container))
    raise ValueError(f"{config_file} has no {key}{hint} (+{override} adds a key)")


def train_lazy_net(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    """:func:`train_net` for a config from :func:`setup_lazy_cfg`."""
    setup_job(cfg, args)
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        SafeCheckpointer(model, cfg.train.output_dir).resume_or_load(
            cfg.train.init_checkpoint, resume=args.resume
        )
        return _evaluate(cfg, model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    train_loader = shield_workers(instantiate(cfg.dataloader.train))
    _check_num_classes(model, train_loader)
    model = distribute(model, **cfg.train.get("ddp", {}))
    trainer = trainer_class(cfg.train.amp.enabled, cfg.train.device)(model, train_loader, optimizer)
    checkpointer = SafeCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    stop = StopOnSignal(cfg.train.checkpointer.period, cfg.train.eval_period)
    results: dict[str, Any] = {}

    def evaluate() -> dict[str, Any]:
        results.clear()
        results.update(_evaluate(cfg, model))
        return results

    trainer.register_hooks(_hooks(cfg, trainer, checkpointer, stop, evaluate))
    resumes = resume_or_load(checkpointer, cfg.train.init_checkpoint, args.resume)
    trainer.train(trainer.iter + 1 if resumes else 0, cfg.train.max_iter)
    return results


def _check_num_classes(model: nn.Module, train_loader: Any) -> None:
    """Refuse sets of more classes than the detector has: it would train the rest as background."""
    table = getattr(train_loader, "annotations", None)
    key = "model.roi_heads.num_classes" if hasattr(model, "roi_heads") else "model.num_classes"
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if not isinstance(table, AnnotationTable) or not isinstance(num_classes, int):
        return
    if len(table.classes) > num_classes:
        raise ValueError(
            f"{key} is {num_classes}, but the training sets have {len(table.classes)} classes; set "
            f"it to {len(table.classes)}"
        )
    for record in table.records():
        for annotation in record["annotations"]:
            if not 0 <= annotation["category_id"] < num_classes:
                raise ValueError(
                    f"dataset {record['dataset']!r}, image {record['image_id']!r:.80}: category_id "
                    f"{annotation['category_id']} is outside 0..{num_classes - 1}; {key} is "
                    f"{num_classes}"
                )


def _annotation_hooks(
    cfg: DictConfig, trainer: SimpleTrainer, checkpointer: SafeCheckpointer, stop: StopOnSignal
) -> list[HookBase | None]:
    """What tracks annotations and corrects labels, where the loader gives annotations an id."""
    table = getattr(trainer.data_loader, "annotations", None)
    table = table if isinstance(table, AnnotationTable) else None
    correction = instantiate(cfg.get("label_correction")) or LabelCorrection()
    tracker = build_annotation_tracker(trainer.model, table)
    targets = correction.build_targets(trainer.model, table)
    if targets is not None:
        checkpointer.add_checkpointable("class_targets", targets)
    method = _build_method(cfg, checkpointer.model, table, corrects=targets is not None)
    tracked: list[HookBase | None] = []
    if table is not None and tracker is not None:
        checkpointer.add_checkpointable("annotation_tracker", tracker)
        tracked = [TrackAnnotations(tracker, table, cfg.train.output_dir, stop)]
    correct = correction.build_hook(tracker, targets, cfg.train.max_iter)
    if method is None:
        return [*tracked, correct]
    checkpointer.add_checkpointable("method", method)
    return [*tracked, correct, TrainMethod(method, tracker, table)]


def _build_method(
    cfg: DictConfig, model: nn.Module, table: AnnotationTable | None, corrects: bool
) -> Method | None:
    """What ``method`` describes, attached to the model; None without one.

    A ``num_annotations`` that is None is that of the training loader.
    """
    node = cfg.get("method")
    if node is None:
        return None
    if corrects:
        raise ValueError("method and label_correction both set the training targets: leave one out")
    if table is None:
        raise ValueError(
            "method needs dataloader.train to be a build_noisy_train_loader, whose annotations "
            "have ids"
        )
    if "num_annotations" in node and node.num_annotations is None:
        node.num_annotations = table.num_annotations
    method = instantiate(node)
    if not isinstance(method, Method):
        raise ValueError(f"method must be a sl_detectron.rivals.Method; got {type(method)}")
    method.to(cfg.train.device).attach(model)
    return method


def _hooks(
    cfg: DictConfig,
    trainer: SimpleTrainer,
    checkpointer: SafeCheckpointer,
    stop: StopOnSignal,
    evaluate: Callable,
) -> list[HookBase | None]:
    save = write = None
    if comm.is_main_process():
        save = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        write = hooks.PeriodicWriter(writers, period=cfg.train.log_period)
    return [
        stop,
        ResumeState(trainer.model, trainer.data_loader, stop),
        WarnOfUnusedTerms(),
        *_annotation_hooks(cfg, trainer, checkpointer, stop),
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        LogTau(),
        SaveAndStop(stop, checkpointer),
        save,
        hooks.EvalHook(cfg.train.eval_period, evaluate),
        write,
    ]


def _evaluate(cfg: DictConfig, model: nn.Module) -> dict[str, Any]:
    if "evaluator" not in cfg.dataloader:
        return {}
    loader = shield_workers(instantiate(cfg.dataloader.test))
    evaluator = instantiate(cfg.dataloader.evaluator)
    with keep_rng_state():
        results = inference_on_dataset(model, loader, evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results
