"""Features of annotated boxes, from the feature maps that a detector's backbone makes anyway.

Shape legend: G boxes of an image, C channels of a feature map, D features of a box.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["FeaturePooler"]

# Coarser maps than this describe the image rather than an object in it.
MAX_STRIDE = 32
# More features are projected onto that many directions, which keeps their inner products.
MAX_FEATURES = 2048
# Width and height of the surroundings that are pooled beside the box itself.
CONTEXT = 1.5


class FeaturePooler(ExitStack):
    """While it is entered, notes the feature maps of a backbone, and under an FPN of its trunk.

    Args:
        backbone: of the detector; in its next passes there is one image

    Example::

        with FeaturePooler(model.backbone) as pooler:
            model.backbone(images.tensor)
            features = pooler.pool(boxes)
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        trunk = getattr(backbone, "bottom_up", None)
        self.modules = [m for m in (trunk, backbone) if m is not None]
        self._maps: dict[int, Mapping[str, Tensor]] = {}
        self._projection: Tensor | None = None

    def __enter__(self) -> "FeaturePooler":
        super().__enter__()
        for i, module in enumerate(self.modules):

            def note(_: Any, __: Any, maps: Mapping[str, Tensor], i: int = i) -> None:
                self._maps[i] = maps

            self.callback(module.register_forward_hook(note).remove)
        return self

    def pool(self, boxes: Tensor) -> Tensor:
        """Mean features of boxes and of their surroundings in the image of the last pass.

        Args:
            boxes: (G, 4) XYXY in pixels of the network's input

        Returns:
            (G, D) float32 on the CPU, D at most 2048
        """
        centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        around = torch.cat([centers - CONTEXT / 2 * sizes, centers + CONTEXT / 2 * sizes], dim=1)
        parts = []
        for i, module in enumerate(self.modules):
            shapes = module.output_shape()
            for name, features in self._maps[i].items():
                if shapes[name].stride <= MAX_STRIDE:
                    scale = 1 / shapes[name].stride
                    for rois in (boxes, around):
                        pooled = roi_align(features, [rois.to(features)], 2, scale, 2, True)
                        parts.append(pooled.float().mean(dim=(2, 3)))
        return self._projected(torch.cat(parts, dim=1).cpu())

    def _projected(self, features: Tensor) -> Tensor:
        if features.shape[1] <= MAX_FEATURES:
            return features
        if self._projection is None:
            generator = torch.Generator().manual_seed(0)
            self._projection = torch.randn(features.shape[1], MAX_FEATURES, generator=generator)
        return features @ self._projection / MAX_FEATURES**0.5
