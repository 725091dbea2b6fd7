"""Train detectron2 detectors on noisy labels with the SuperLoss.

Importing this package registers its heads, meta-architectures and the toy set with detectron2 and
changes none of detectron2's defaults. ``sl_detectron.losses`` needs torch only.
"""

import importlib.util

from .cli import silence_in_tools

__version__ = "0.1.0"

__all__ = [
    "add_superloss_config",
    "get_config",
    "SuperLossStandardROIHeads",
    "SuperLossRes5ROIHeads",
    "SuperLossCascadeROIHeads",
    "SuperLossRROIHeads",
    "SuperLossRetinaNet",
    "SuperLossTerm",
    "superloss_roi_heads",
    "SuperLossTrainer",
    "NoisyLabelMapper",
    "VOCEvaluator",
    "register_voc_dataset",
]

silence_in_tools()

if importlib.util.find_spec("detectron2") is None:

    def __getattr__(name: str) -> object:
        # Raised on first use rather than on import, so that sl_detectron.losses stays importable.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        raise ImportError(
            f"sl_detectron.{name} needs detectron2, which is not installed. "
            "Install it as its guide says, for example: "
            "pip install 'git+https://github.com/facebookresearch/detectron2.git'"
        )

else:
    from .config import add_superloss_config
    from .data import register_voc_dataset
    from .engine import SuperLossTrainer
    from .evaluation import VOCEvaluator
    from .label_noise import NoisyLabelMapper
    from .model_zoo import get_config
    from .modeling import (
        SuperLossCascadeROIHeads,
        SuperLossRes5ROIHeads,
        SuperLossRetinaNet,
        SuperLossRROIHeads,
        SuperLossStandardROIHeads,
        SuperLossTerm,
        superloss_roi_heads,
    )
