"""RoIAlign with a gradient for the boxes, which detectron2's and torchvision's do not have."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

__all__ = ["pool_boxes", "roi_align"]

# Points of a bin and side. torchvision takes as many as a bin has pixels unless it is told.
SAMPLING_RATIO = 2


def roi_align(
    features: Tensor, boxes: Tensor, output_size: tuple[int, int], scale: float
) -> Tensor:
    """As torchvision's aligned ``roi_align`` with sampling ratio 2, differentiable in the boxes.

    Args:
        features: (C, H, W) of one image
        boxes: (G, 4) XYXY in pixels of the image
        output_size: bins, height and width
        scale: pixels of the features for one of the image

    Returns:
        (G, C, *output_size)
    """
    height, width = features.shape[1:]
    rows, columns = (size * SAMPLING_RATIO for size in output_size)
    # grid_sample takes -1 and 1 for the outer edges of the first and the last pixel.
    low, high = boxes[:, :2] * scale, boxes[:, 2:] * scale
    along = [(torch.arange(n, device=boxes.device) + 0.5) / n for n in (columns, rows)]
    x, y = (low[:, i, None] + (high - low)[:, i, None] * t for i, t in enumerate(along))
    x, y = 2 * x / width - 1, 2 * y / height - 1
    grid = torch.stack(
        [x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], dim=-1
    )
    # All boxes below each other: features for each of them would be many. Coordinates in 16 bits
    # would be off by pixels.
    sampled = F.grid_sample(
        features[None].to(grid.dtype),
        grid.reshape(1, -1, columns, 2),
        padding_mode="border",
        align_corners=False,
    )
    sampled = sampled.reshape(len(features), len(boxes), rows, columns).transpose(0, 1)
    return F.avg_pool2d(sampled, SAMPLING_RATIO)


def pool_boxes(pooler: ROIPooler, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """What a pooler returns, differentiable in the boxes.

    Args:
        pooler: of detectron2's ROI heads
        features: per level (N, C, H, W)
        boxes: per image (G, 4) XYXY in pixels
    """
    levels = assign_boxes_to_levels(
        [Boxes(b.detach()) for b in boxes],
        *(pooler.min_level, pooler.max_level),
        *(pooler.canonical_box_size, pooler.canonical_level),
    )
    size = tuple(pooler.output_size)
    pooled = []
    for i, (image_boxes, image_levels) in enumerate(zip(boxes, levels.split([*map(len, boxes)]))):
        parts = image_boxes.new_zeros(len(image_boxes), features[0].shape[1], *size)
        for level, level_pooler in enumerate(pooler.level_poolers):
            # Host trip: as in detectron2's pooler, the boxes of a level.
            rows = (image_levels == level).nonzero()[:, 0]
            if len(rows):
                scale = level_pooler.spatial_scale
                aligned = roi_align(features[level][i], image_boxes[rows], size, scale)
                parts = parts.index_copy(0, rows, aligned.to(parts))
        pooled.append(parts)
    return torch.cat(pooled)
