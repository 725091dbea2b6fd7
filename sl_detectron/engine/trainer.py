"""A trainer for noisy labels on detectron2's own hooks, checkpoints and command line."""

import logging
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..audit.run import build_annotation_tracker
from ..checkpoint import SafeCheckpointer
from ..config import add_superloss_config
from ..data.train_loader import shield_workers
from ..evaluation import build_evaluator
from ..label_noise import build_noisy_train_loader, noisy_dataset_dicts
from ..losses import DataParams
from ..modeling import SuperLossTerm
from .finite import trainer_class
from .hooks import DrawTrainingImages, LogTau, TrackAnnotations
from .resume import ResumeState, SaveAndStop, StopOnSignal, get_rng_state, set_rng_state

__all__ = ["SuperLossTrainer", "distribute"]

logger = logging.getLogger(__name__)


class SuperLossTrainer(DefaultTrainer):
    """:class:`DefaultTrainer` with label noise in its loader and VOC evaluation.

    Beyond the stock trainer it runs under several processes on a machine without GPU, resumes to
    the same losses as without the interruption, stops with a checkpoint at SIGTERM, and says which
    term and images made a loss infinite or nan.

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
        # Not DefaultTrainer's own: it offers no way to pass device_ids to create_ddp_model.
        TrainerBase.__init__(self)
        for name in ("detectron2", "sl_detectron"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        cfg = _count_annotations(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = shield_workers(self.build_train_loader(cfg))
        model = distribute(model)
        self._trainer = trainer_class(cfg.SOLVER.AMP.ENABLED)(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        # None where nothing is tracked.
        self.annotation_tracker = build_annotation_tracker(cfg, model, data_loader)
        if self.annotation_tracker is not None:
            self.checkpointer.add_checkpointable("annotation_tracker", self.annotation_tracker)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            the metrics of the last evaluation; empty on other ranks than the main one
        """
        super().train()
        return getattr(self, "_last_eval_results", {})

    def build_hooks(self) -> list[HookBase | None]:
        """The stock hooks with those of this package around them."""
        stop = StopOnSignal(self.cfg.SOLVER.CHECKPOINT_PERIOD)
        first: list[HookBase | None] = [stop, ResumeState(self.model, self.data_loader, stop)]
        if self.annotation_tracker is not None:
            first.append(TrackAnnotations(self.annotation_tracker, self.cfg, stop))
        if self.cfg.VIS_PERIOD > 0 and comm.is_main_process():
            true_classes = getattr(self.data_loader, "true_classes", {})
            first.append(DrawTrainingImages(self.cfg, true_classes))
        stock = super().build_hooks()
        # A scheduler does not wait for an evaluation.
        at = next(i for i, hook in enumerate(stock) if isinstance(hook, EvalHook))
        stock.insert(at, SaveAndStop(stop, self.checkpointer))
        return [*first, *stock, LogTau()]

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """The stock evaluation; training goes on with the random numbers it would have without."""
        state = get_rng_state()
        try:
            return super().test(cfg, model, evaluators)
        finally:
            set_rng_state(state)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The stock model builder; warns where the keys of the SuperLoss have no effect."""
        model = super().build_model(cfg)
        stock = get_cfg()
        add_superloss_config(stock)
        has_superloss = any(isinstance(m, SuperLossTerm) for m in model.modules())
        if cfg.MODEL.SUPERLOSS != stock.MODEL.SUPERLOSS and not has_superloss:
            logger.warning(
                "MODEL.SUPERLOSS is set but the model has no SuperLoss: set "
                "MODEL.ROI_HEADS.NAME or MODEL.META_ARCHITECTURE to a SuperLoss one"
            )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The stock optimizer; the temperatures of "data_params" get settings of their own."""
        optimizer = super().build_optimizer(cfg, model)
        for criterion in (m for m in model.modules() if isinstance(m, DataParams)):
            own = {id(p) for p in criterion.parameters()}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in own]
            optimizer.add_param_group(criterion.param_group(cfg.MODEL.SUPERLOSS.DATA_PARAMS.LR))
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """Loader over ``DATASETS.TRAIN`` with the noise of ``DATASETS.LABEL_NOISE``."""
        return build_noisy_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """The stock loader; SIGTERM to the whole job does not end an evaluation half-way."""
        return shield_workers(super().build_test_loader(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Evaluator of a test set by ``TEST.EVALUATOR`` and ``TEST.ABSENT_CLASSES``."""
        return build_evaluator(
            dataset_name, cfg.TEST.EVALUATOR, cfg.OUTPUT_DIR, cfg.TEST.ABSENT_CLASSES
        )


def _count_annotations(cfg: CfgNode) -> CfgNode:
    """The config with the number of training annotations, where the loss learns for each."""
    node = cfg.MODEL.get("SUPERLOSS")
    if node is None:  # the model says what is missing, if it needs it
        return cfg
    if node.CLS.LOSS != "data_params" or node.DATA_PARAMS.NUM_ANNOTATIONS:
        return cfg
    sets = noisy_dataset_dicts(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    # The largest id and one: images that a filter dropped have used up theirs.
    ids = [a["annotation_id"] for rs in sets.values() for r in rs for a in r.get("annotations", ())]
    cfg.MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS = max(ids, default=-1) + 1
    cfg.freeze()
    return cfg


def distribute(model: nn.Module, **kwargs: Any) -> nn.Module:
    """:func:`create_ddp_model`; DDP takes device_ids for modules on GPUs only."""
    if next(model.parameters()).device.type == "cpu":
        kwargs["device_ids"] = None
    return create_ddp_model(model, **{"broadcast_buffers": False, **kwargs})
