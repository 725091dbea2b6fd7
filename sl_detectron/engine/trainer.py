"""A trainer for noisy labels on the hooks and checkpoints of detectron2, and what it trains."""

import logging
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor, DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..audit.tracker import AnnotationTracker
from ..checkpoint import SafeCheckpointer, check_checkpoint
from ..config import check_has_keys, train_sets, without_federated_loss
from ..data.annotation_ids import AnnotationTable
from ..data.class_checks import check_test_classes
from ..data.test_loader import build_test_loader
from ..data.train_loader import shield_workers
from ..evaluation.evaluator_choice import build_evaluator
from ..label_noise import build_noisy_train_loader
from ..losses import DataParams
from ..modeling import MatrixROIAlign, SuperLossTerm, use_matrix_roi_align
from ..rivals import build_method
from .finite import trainer_class
from .hooks import (
    DrawTrainingImages,
    LogTau,
    TrackAnnotations,
    WarnOfUnusedTerms,
    build_annotation_tracker,
)
from .label_correction import LabelCorrection, check_one_round
from .methods import TrainMethod
from .resume import ResumeState, SaveAndStop, StopOnSignal, resume_or_load
from .rng import keep_rng_state
from .setup import check_for_training, keep_config, merge_cfg, warn_of_custom_loader

__all__ = ["SuperLossTrainer", "build_predictor", "distribute"]

logger = logging.getLogger(__name__)


class SuperLossTrainer(DefaultTrainer):
    """:class:`DefaultTrainer` with label noise in its loader and VOC evaluation.

    Beyond the stock trainer it runs under several processes on a machine without GPU, resumes to
    the same losses as without the interruption, stops with a checkpoint at SIGTERM, and reports the
    term and images of a loss that is infinite or nan.

    Args:
        cfg: a config with the keys of :func:`~sl_detectron.add_superloss_config`

    Example::

        cfg = get_cfg()
        add_superloss_config(cfg)
        cfg.merge_from_file("config.yaml")
        trainer = SuperLossTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    """

    def __init__(self, cfg: CfgNode):
        # Not DefaultTrainer.__init__, which cannot pass device_ids to create_ddp_model.
        TrainerBase.__init__(self)
        check_has_keys(cfg)
        check_one_round(cfg)
        cfg = _with_tuples(cfg)
        for name in ("detectron2", "sl_detectron"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        stock: Any = SuperLossTrainer.build_evaluator
        builder: Any = type(self).build_evaluator
        check_for_training(cfg, custom_evaluator=builder.__func__ is not stock.__func__)
        self._given_cfg = cfg
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        # Before the model, which may learn a value for each annotation.
        data_loader = shield_workers(self.build_train_loader(cfg))
        # Loading a COCO set sets its class names.
        check_test_classes(cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        # A custom loader may have an attribute of this name for something else.
        table = getattr(data_loader, "annotations", None)
        self.annotations = table if isinstance(table, AnnotationTable) else None
        if self.annotations is None:
            warn_of_custom_loader(cfg)
        cfg = _with_num_annotations(cfg, self.annotations)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        model = distribute(model)
        step_trainer = trainer_class(cfg.SOLVER.AMP.ENABLED, cfg.MODEL.DEVICE)
        self._trainer = step_trainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        # None where nothing is tracked.
        self.annotation_tracker: AnnotationTracker | None = None
        if cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS:
            self.annotation_tracker = build_annotation_tracker(model, self.annotations)
        if self.annotation_tracker is not None:
            self.checkpointer.add_checkpointable("annotation_tracker", self.annotation_tracker)
        # None where labels are not corrected.
        self._correction = LabelCorrection.from_cfg(cfg)
        self.class_targets = self._correction.build_targets(model, self.annotations)
        if self.class_targets is not None:
            self.checkpointer.add_checkpointable("class_targets", self.class_targets)
        # None where no method of another paper is named.
        num_annotations = self.annotations.num_annotations if self.annotations else 0
        self.method = build_method(cfg, self.checkpointer.model, num_annotations)
        if self.method is not None:
            self.checkpointer.add_checkpointable("method", self.method)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any]:
        """Train to the end; returns the metrics of the last evaluation, on the main rank."""
        if comm.is_main_process():
            keep_config(self._given_cfg)
        super().train()
        return getattr(self, "_last_eval_results", {})

    def resume_or_load(self, resume: bool = True) -> None:
        """As the stock trainer; weights for a new training run leave tau at its start."""
        if resume_or_load(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume):
            # The checkpoint has the iteration that just finished.
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase | None]:
        """The stock hooks with those of this package before them.

        The last three stay the stock ones, checkpointer, evaluation and writer, beside which
        projects put hooks by their places: at -1 what comes before the writer.
        """
        stop = StopOnSignal(self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD)
        state = ResumeState(self.model, self.data_loader, stop)
        first: list[HookBase | None] = [stop, state, WarnOfUnusedTerms()]
        table, tracker = self.annotations, self.annotation_tracker
        if table is not None and tracker is not None:
            first.append(TrackAnnotations(tracker, table, self.cfg.OUTPUT_DIR, stop))
        first.append(self._correction.build_hook(tracker, self.class_targets, self.max_iter))
        if self.method is not None:
            first.append(TrainMethod(self.method, tracker, table))
        if self.cfg.VIS_PERIOD > 0 and comm.is_main_process():
            true_classes = table.true_classes() if table else {}
            first.append(DrawTrainingImages(self.cfg, true_classes))
        stock = super().build_hooks()
        # After what a checkpoint needs, and before an evaluation, for which a scheduler does not
        # wait. Other ranks than the main one have neither checkpointer nor writer.
        tail = (PeriodicCheckpointer, EvalHook)
        at = next(i for i, hook in enumerate(stock) if isinstance(hook, tail))
        stock[at:at] = [LogTau(), SaveAndStop(stop, self.checkpointer)]
        return [*first, *stock]

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """The stock evaluation, without disturbing the training RNG state."""
        with keep_rng_state():
            return super().test(_with_tuples(cfg), model, evaluators)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The stock model builder; warns where our keys of the model have no effect."""
        model = super().build_model(cfg)
        if cfg.MODEL.ROI_HEADS.MATRIX_ROI_ALIGN:
            use_matrix_roi_align(model)
            if not any(isinstance(m, MatrixROIAlign) for m in model.modules()):
                logger.warning(
                    "MODEL.ROI_HEADS.MATRIX_ROI_ALIGN is set but has no effect: the model has no "
                    "ROIPooler of type ROIAlign or ROIAlignV2"
                )
        stock = merge_cfg("", [])
        has_superloss = any(isinstance(m, SuperLossTerm) for m in model.modules())
        if cfg.MODEL.SUPERLOSS != stock.MODEL.SUPERLOSS and not has_superloss:
            logger.warning(
                "MODEL.SUPERLOSS is set but the model has no SuperLoss: set "
                "MODEL.ROI_HEADS.NAME or MODEL.META_ARCHITECTURE to a SuperLoss one"
            )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The stock optimizer; the temperatures of "data_params" get their custom settings."""
        optimizer = super().build_optimizer(cfg, model)
        for criterion in (m for m in model.modules() if isinstance(m, DataParams)):
            temperatures = {id(p) for p in criterion.parameters()}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in temperatures]
            optimizer.add_param_group(criterion.param_group(cfg.MODEL.SUPERLOSS.DATA_PARAMS.LR))
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """Loader over ``DATASETS.TRAIN`` with the noise of ``DATASETS.LABEL_NOISE``."""
        return build_noisy_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """Loader of a test set by :func:`~sl_detectron.data.test_loader.build_test_loader`."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Evaluator of a test set by ``TEST.EVALUATOR`` and ``TEST.ABSENT_CLASSES``."""
        return build_evaluator(
            *(dataset_name, cfg.TEST.EVALUATOR, cfg.OUTPUT_DIR, cfg.TEST.ABSENT_CLASSES),
            bad_annotations=cfg.DATASETS.BAD_ANNOTATIONS,
        )


def _with_tuples(cfg: CfgNode) -> CfgNode:
    """The config with tuples of datasets, where a comma is missing: ``("name")``."""
    test = cfg.DATASETS.TEST
    if not isinstance(cfg.DATASETS.TRAIN, str) and not isinstance(test, str):
        return cfg
    is_frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = train_sets(cfg)
    cfg.DATASETS.TEST = (test,) if isinstance(test, str) else test
    if is_frozen:
        cfg.freeze()
    return cfg


def _with_num_annotations(cfg: CfgNode, annotations: AnnotationTable | None) -> CfgNode:
    """The config with the number of training annotations, where the loss learns for each."""
    node = cfg.MODEL.SUPERLOSS
    if annotations is None or node.CLS.LOSS != "data_params" or node.DATA_PARAMS.NUM_ANNOTATIONS:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS = annotations.num_annotations
    cfg.freeze()
    return cfg


def distribute(model: nn.Module, **kwargs: Any) -> nn.Module:
    """:func:`create_ddp_model`; DDP takes device_ids for modules on GPUs only."""
    if next(model.parameters()).device.type == "cpu":
        kwargs["device_ids"] = None
    return create_ddp_model(model, **{"broadcast_buffers": False, **kwargs})


def build_predictor(
    cfg: CfgNode, weights: str | os.PathLike, score_threshold: float
) -> DefaultPredictor:
    """detectron2's predictor with other weights; it keeps detections of at least that score."""
    check_checkpoint(weights)
    cfg = without_federated_loss(cfg).clone()
    cfg.defrost()
    # Loaded afterwards: DefaultPredictor would run the code of a pickle.
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score_threshold
    predictor = DefaultPredictor(cfg)
    SafeCheckpointer(predictor.model).load(str(weights))
    return predictor
