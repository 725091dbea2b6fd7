"""A small batch on which detectron2's losses are compared with ours when a model is built.

Shape legend: S samples (RoIs or anchors), K foreground classes, D numbers of a box.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TrialBatch", "trial_batch"]

# With K + 1 of them every class occurs; of more classes, as many that are evenly spread.
_MIN_SAMPLES, _MAX_SAMPLES = 16, 256


class TrialBatch(NamedTuple):
    """Logits, labels and boxes without a random draw; every loss of a sample is another one.

    Args:
        scores: (S, K+1) logits
        labels: (S,) in [0, K], sorted; K is background, which occurs
        deltas: (S, K*D) predicted deltas
        boxes: (S, D) in pixels
        gt_boxes: (S, D) in pixels
    """

    scores: Tensor
    labels: Tensor
    deltas: Tensor
    boxes: Tensor
    gt_boxes: Tensor


def trial_batch(num_classes: int, box_dim: int, device: torch.device) -> TrialBatch:
    """Make the batch; D is 4 (XYXY), or 5 for rotated boxes."""
    size = min(max(num_classes + 1, _MIN_SAMPLES), _MAX_SAMPLES)

    def waves(rows: int, columns: int, amplitude: float) -> Tensor:
        steps = torch.arange(rows * columns, dtype=torch.float64, device=device)
        return (amplitude * torch.sin(1 + 7 * steps)).float().view(rows, columns)

    corners = 40 + waves(size, 2, 30)
    sizes = 30 + waves(size, 2, 20)
    angles = [waves(size, 1, 45)] if box_dim == 5 else []
    boxes = torch.cat([corners, sizes if angles else corners + sizes, *angles], dim=1)
    return TrialBatch(
        waves(size, num_classes + 1, 2),
        torch.linspace(0, num_classes, size, dtype=torch.float64, device=device).long(),
        waves(size, num_classes * box_dim, 0.3),
        boxes,
        boxes + waves(size, box_dim, 4),
    )
