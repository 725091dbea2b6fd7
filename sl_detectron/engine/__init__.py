"""Training and evaluation jobs on detectron2's engine."""

from .lazy import setup_lazy_cfg, train_lazy_net
from .setup import setup_cfg, train_net
from .trainer import SuperLossTrainer

__all__ = ["SuperLossTrainer", "setup_cfg", "setup_lazy_cfg", "train_lazy_net", "train_net"]
