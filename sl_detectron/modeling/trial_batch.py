"""A small batch on which detectron2's losses are compared with ours when a model is built.

Shape legend: S samples (RoIs or anchors), K foreground classes, D numbers of a box.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["TrialBatch", "trial_batch"]

# More than the 512 RoIs of an image, so that a loss of the hardest ones is not of all of them.
_MIN_SAMPLES = 1024
# So many classes occur; of more, as many that are evenly spread.
_MAX_CLASSES = 2048


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
    """Make the batch; D is 4 (XYXY), or 5 for rotated boxes.

    Half of the samples are evenly spread over the classes, half favour the first ones, so that
    weights by how often a class occurs are none of 1.
    """
    half = min(max(num_classes + 1, _MIN_SAMPLES // 2), _MAX_CLASSES)
    size = 2 * half
    even = torch.linspace(0, num_classes, half, dtype=torch.float64, device=device)

    def waves(rows: int, columns: int, amplitude: float) -> Tensor:
        steps = torch.arange(rows * columns, dtype=torch.float64, device=device)
        return (amplitude * torch.sin(1 + 7 * steps)).float().view(rows, columns)

    corners = 40 + waves(size, 2, 30)
    sizes = 30 + waves(size, 2, 20)
    angles = [waves(size, 1, 45)] if box_dim == 5 else []
    boxes = torch.cat([corners, sizes if angles else corners + sizes, *angles], dim=1)
    labels = torch.cat([even, even**2 / max(num_classes, 1)]).long().sort().values
    # Found the better, the higher the class: in means, no change of some samples cancels.
    found = (1 + 2 * labels[:, None] / max(num_classes, 1)).float()
    return TrialBatch(
        waves(size, num_classes + 1, 2).scatter_add(1, labels[:, None], found),
        labels,
        waves(size, num_classes * box_dim, 0.3),
        boxes,
        boxes + waves(size, box_dim, 4),
    )
