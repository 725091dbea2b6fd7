"""Training and evaluation jobs on detectron2's engine."""

from .label_correction import LabelCorrection
from .launch import launch_job
from .rounds import train_net
from .setup import setup_cfg
from .trainer import SuperLossTrainer

__all__ = [
    "LabelCorrection",
    "SuperLossTrainer",
    "launch_job",
    "setup_cfg",
    "train_net",
]
