"""Training and evaluation jobs on detectron2's engine."""

from .setup import setup_cfg, train_net
from .trainer import SuperLossTrainer

__all__ = ["SuperLossTrainer", "setup_cfg", "train_net"]
