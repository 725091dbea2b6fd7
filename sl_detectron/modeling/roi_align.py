"""RoIAlign as products of matrices: faster to train on a CPU, with a gradient for the boxes."""

import math
from typing import TypeVar

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

__all__ = ["MatrixROIAlign", "use_matrix_roi_align"]

Model = TypeVar("Model", bound=nn.Module)


class MatrixROIAlign(ROIAlign):
    """detectron2's RoIAlign but for rounding, with a gradient for the boxes too.

    A bin is the mean of bilinear samples on a grid, so its weights are those of its rows times
    those of its columns. torchvision goes over the samples of each channel one by one, which takes
    a quarter of a training step on a CPU; here two products with these weights do it. All columns
    and rows take part, so features of some 100 pixels a side and more are slower.

    Boxes stay in float32 under AMP, where those of the stock RoIAlign get the features' 16 bits: in
    bfloat16 they are off by up to a pixel from 256 pixels on.
    """

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool boxes.

        Args:
            input: features (N, C, H, W)
            rois: (R, 5), the index of the image, and XYXY in its pixels

        Returns:
            (R, C, *output_size) with the dtype of the features

        Raises:
            FloatingPointError: a box is infinite or nan
        """
        if torch.jit.is_tracing():
            # A trace would keep the numbers of boxes and samples of its example.
            traced: Tensor = super().forward(input, rois)
            return traced
        # Host trip: how many boxes each image has. ROIPooler gives them in order.
        images = rois[:, 0].tolist()
        if images != sorted(images):
            order = rois[:, 0].argsort(stable=True)
            pooled: Tensor = self(input, rois[order])
            return pooled[order.argsort()]
        counts = [images.count(i) for i in range(len(input))]
        offset = 0.5 if self.aligned else 0.0
        low, high = (rois[:, 1:] * self.spatial_scale - offset).split(2, dim=1)
        lengths = high - low if self.aligned else (high - low).clamp(min=1)
        columns, rows = (
            self._weights(low[:, i], lengths[:, i], self.output_size[1 - i], size).to(input.dtype)
            for i, size in enumerate((input.shape[3], input.shape[2]))
        )
        with torch.autocast(input.device.type, enabled=False):
            parts = [_pool(*x) for x in zip(input, rows.split(counts), columns.split(counts))]
        return torch.cat(parts)

    def __prepare_scriptable__(self) -> ROIAlign:
        """What TorchScript compiles in its place: the stock module."""
        return ROIAlign(self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def _weights(self, starts: Tensor, lengths: Tensor, bins: int, pixels: int) -> Tensor:
        """Weights (R, bins, pixels) along an axis of boxes (R,), in pixels of the features."""
        samples = (lengths.detach() / bins).ceil().clamp(min=0)
        # Host trip: of the largest box.
        largest = samples.max().item() if len(samples) else 0
        if not math.isfinite(largest):
            raise FloatingPointError("a box that RoIAlign is to pool is infinite or nan")
        if self.sampling_ratio > 0:
            largest = self.sampling_ratio
            samples = torch.full_like(samples, largest)
        number = torch.arange(int(largest), device=starts.device)
        divisor = samples.clamp(min=1)[:, None, None]
        steps = torch.arange(bins, device=starts.device)[:, None] + (number + 0.5) / divisor
        at = starts[:, None, None] + steps * (lengths / bins)[:, None, None]
        # torchvision: a sample more than a pixel outside counts as zero, one nearer as the edge.
        used = (number < samples[:, None, None]) & (at >= -1) & (at <= pixels)
        at = at.clamp(0, pixels - 1)
        # Added up by pixel: samples times pixels of one long box would be a gigabyte.
        low = at.detach().long()
        high = (low + 1).clamp(max=pixels - 1)
        weights = at.new_zeros(len(starts), bins, pixels)
        weights = weights.scatter_add(2, low, (1 - (at - low)) * used)
        return weights.scatter_add(2, high, (at - low) * used) / divisor


def _pool(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bins (R, C, h, w) of features (C, H, W) by weights (R, h, H) and (R, w, W)."""
    channels, height = features.shape[:2]
    num, bins = columns.shape[:2]
    across = columns.flatten(0, 1) @ features.flatten(0, 1).T
    pooled = across.view(num, bins * channels, height) @ rows.transpose(1, 2)
    return pooled.view(num, bins, channels, rows.shape[1]).permute(0, 2, 3, 1)


def use_matrix_roi_align(model: Model) -> Model:
    """Replace each RoIAlign of a model's poolers by a :class:`MatrixROIAlign` of its settings.

    Args:
        model: a detector, ROI heads or a :class:`ROIPooler`, which is changed

    Returns:
        the same model, so that a LazyConfig can call it
    """
    for pooler in (m for m in model.modules() if isinstance(m, ROIPooler)):
        for i, stock in enumerate(pooler.level_poolers):
            if type(stock) is ROIAlign:
                settings = stock.output_size, stock.spatial_scale, stock.sampling_ratio
                pooler.level_poolers[i] = MatrixROIAlign(*settings, stock.aligned)
    return model
