"""A training job of one round or, where labels are corrected, of several."""

import argparse
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import SafeCheckpointer, check_checkpoint
from ..config import without_federated_loss
from .class_estimates import (
    forget_estimates,
    is_estimated,
    round_config,
    write_class_targets,
    write_first_targets,
)
from .launch import end_logs, setup_job
from .trainer import SuperLossTrainer

__all__ = ["train_net"]


def train_net(
    cfg: CfgNode,
    args: argparse.Namespace,
    after_round: Callable[[int, CfgNode, dict[str, Any]], None] = lambda number, cfg, metrics: None,
) -> dict[str, Any]:
    """Train and evaluate, or evaluate only, on every rank that detectron2's ``launch`` starts.

    Args:
        cfg: from :func:`setup_cfg`
        args: from detectron2's ``default_argument_parser``; ``eval_only`` and ``resume`` count
        after_round: called on every rank with the number, config and metrics of each round but the
            last, before its labels are corrected

    Returns:
        the metrics of the last evaluation, of the last training round; empty on other ranks than
        the main one
    """
    if not args.resume:  # to resume needs none
        check_checkpoint(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
        if comm.is_main_process() and not args.eval_only:
            forget_estimates(cfg)
    num_rounds = cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS
    if cfg.MODEL.SUPERLOSS.CORRECTION.FROM_FEATURES and not args.eval_only:
        first = round_config(cfg, 0)
        if not (args.resume and is_estimated(first)):
            setup_job(first, args)
            write_first_targets(first)
            end_logs()
    for number in () if args.eval_only else range(1, num_rounds):
        round_cfg = round_config(cfg, number)
        if args.resume and is_estimated(round_cfg):
            continue
        after_round(number, round_cfg, _train_round(round_cfg, args, is_estimated_from=True))
        write_class_targets(round_cfg)
        end_logs()
    return _train_round(round_config(cfg, num_rounds), args)


def _train_round(
    cfg: CfgNode, args: argparse.Namespace, is_estimated_from: bool = False
) -> dict[str, Any]:
    setup_job(cfg, args)
    if args.eval_only:
        model = SuperLossTrainer.build_model(without_federated_loss(cfg))
        checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = SuperLossTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = SuperLossTrainer(cfg)
    if is_estimated_from and trainer.annotation_tracker is None:  # not after the training
        raise ValueError(
            "MODEL.SUPERLOSS.CORRECTION.ROUNDS corrects by the statistics of the annotations, and "
            "this run tracks none: it needs SuperLoss heads with MODEL.SUPERLOSS.CLS.ENABLED"
        )
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()
