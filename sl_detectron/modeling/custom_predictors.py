"""Box predictors whose class computes its losses in a way of its own: are they detectron2's?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["MAKERS", "RoILosses", "check_keys", "compare_own_losses"]

# Methods of FastRCNNOutputLayers that make each of its losses.
MAKERS = {
    "loss_cls": ("losses", "sigmoid_cross_entropy_loss"),
    "loss_box_reg": ("losses", "box_reg_loss"),
}
_PER_ROI = {
    "loss_cls": "classification_losses(scores, gt_classes) -> (R,)",
    "loss_box_reg": (
        "foreground_box_losses(proposal_boxes, gt_boxes, pred_deltas, gt_classes) -> (M,)"
    ),
}


@dataclass(frozen=True)
class RoILosses:
    """What a scalar loss is the mean of: values (S,) and which RoIs they are of, None for all."""

    losses: Tensor
    index: Tensor | None = None

    @property
    def where(self) -> Any:
        """An index of tensors with one entry for every RoI."""
        return slice(None) if self.index is None else self.index


def check_keys(predictor: Any, keys: Sequence[str], losses: Mapping[str, Tensor]) -> None:
    """Refuse a predictor whose ``losses()`` lack one that the SuperLoss would replace.

    Raises:
        TypeError: a key is missing
    """
    missing = [key for key in keys if key not in losses]
    if missing:
        raise TypeError(
            f"losses() of {type(predictor).__name__} has {sorted(losses)} and no {missing}, which "
            "the SuperLoss would replace; switch those terms off"
        )


def compare_own_losses(
    predictor: Any,
    keys: Sequence[str],
    own_losses: Mapping[str, Tensor],
    samples: Mapping[str, RoILosses],
    num_rois: int,
    has_per_roi: bool,
) -> None:
    """Refuse to put the SuperLoss of detectron2's losses in the place of other losses.

    Args:
        predictor: a :class:`FastRCNNOutputLayers`
        keys: which losses to compare
        own_losses: 0-d tensors, as the class computes them
        samples: what the SuperLoss would take, by key
        num_rois: R
        has_per_roi: whether the class has a ``classification_losses`` of its own

    Raises:
        TypeError: the losses differ, or draw classes at random and cannot be compared
    """
    name = type(predictor).__name__
    for key in keys:
        if key == "loss_cls" and getattr(predictor, "use_fed_loss", False):
            if has_per_roi:
                continue
            raise TypeError(
                f"{name} has federated losses of its own, which draw classes for every loss; give "
                f"it a method {_PER_ROI[key]} or switch superloss_cls off"
            )
        own = float(own_losses[key].detach())
        expected = math.inf if key not in samples else _mean(predictor, key, samples[key], num_rois)
        if key in samples and not (math.isfinite(own) and math.isfinite(expected)):
            continue  # diverged, which is another matter
        # Wide enough for another order of summation, in 16 bits too.
        tolerance = 1e-5 if own_losses[key].dtype.itemsize > 2 else 1e-2
        if not abs(own - expected) <= tolerance * (1 + abs(own)):
            raise TypeError(
                f"{name}: its {key} is {own:.6g}, but the losses of its RoIs that the SuperLoss "
                f"would take come to {expected:.6g}. Give the class a method {_PER_ROI[key]} or "
                f"switch {key.replace('loss', 'superloss')} off"
            )


def _mean(predictor: Any, key: str, samples: RoILosses, num_rois: int) -> float:
    mean = samples.losses.detach().sum() / num_rois
    return float(mean * predictor.loss_weight.get(key, 1.0))
