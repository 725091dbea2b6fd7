"""Training and evaluation jobs on detectron2's engine."""

from .launch import launch_job
from .lazy import setup_lazy_cfg, train_lazy_net
from .setup import setup_cfg
from .trainer import SuperLossTrainer, train_net

__all__ = [
    "SuperLossTrainer",
    "launch_job",
    "setup_cfg",
    "setup_lazy_cfg",
    "train_lazy_net",
    "train_net",
]
