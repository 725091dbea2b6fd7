"""Features of annotated boxes, from the feature maps that a detector's backbone makes anyway.

Shape legend: G boxes of an image, C channels of a feature map, D features of a box.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["FeaturePooler", "trunk_of"]

# Coarser maps than this describe the image rather than an object in it.
MAX_STRIDE = 32
# More features are projected onto that many directions, which keeps their inner products.
MAX_FEATURES = 2048
# Width and height of the surroundings that are pooled beside the box itself.
CONTEXT = 1.5
# Rows and columns of a box; beside their mean its middle is kept, which small objects fill.
CELLS = 3


def trunk_of(backbone: nn.Module) -> Any:
    """What makes the features under an FPN, or the backbone itself."""
    trunk = getattr(backbone, "bottom_up", None)
    return trunk if isinstance(trunk, Backbone) else backbone


class FeaturePooler(ExitStack):
    """While it is entered, notes the feature maps of a backbone, or of the trunk under an FPN.

    The FPN itself has seen the labels more closely: with its features wrong ones look more right.

    Args:
        backbone: of the detector; in its next passes there is one image
        mirrored: whether features of the mirrored image are wanted too

    Example::

        with FeaturePooler(model.backbone) as pooler:
            model.backbone(images.tensor)
            features = pooler.pool(boxes)
    """

    def __init__(self, backbone: Backbone, mirrored: bool = False) -> None:
        super().__init__()
        self.mirrored = mirrored
        self.trunk = trunk_of(backbone)
        self._maps: Mapping[str, Tensor] = {}
        self._projection: Tensor | None = None

    def __enter__(self) -> "FeaturePooler":
        super().__enter__()
        self.callback(self.trunk.register_forward_hook(self._note).remove)
        return self

    def _note(self, _: Any, __: Any, maps: Mapping[str, Tensor]) -> None:
        self._maps = maps

    def pool(self, boxes: Tensor) -> Tensor:
        """Mean and middle features of boxes and of their surroundings in the last pass's image.

        Args:
            boxes: (G, 4) XYXY in pixels of the network's input

        Returns:
            (G, D) float32 on the CPU, D at most 2048
        """
        centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        around = torch.cat([centers - CONTEXT / 2 * sizes, centers + CONTEXT / 2 * sizes], dim=1)
        parts, shapes = [], self.trunk.output_shape()
        # Those that it declares: it may make other maps too.
        for name, shape in shapes.items():
            if shape.stride <= MAX_STRIDE:
                features, scale = self._maps[name], 1 / shape.stride
                for rois in (boxes, around):
                    pooled = roi_align(features, [rois.to(features)], CELLS, scale, 2, True).float()
                    parts += [pooled.mean(dim=(2, 3)), pooled[:, :, CELLS // 2, CELLS // 2]]
        return self._projected(torch.cat(parts, dim=1).cpu())

    def _projected(self, features: Tensor) -> Tensor:
        if features.shape[1] <= MAX_FEATURES:
            return features
        if self._projection is None:
            generator = torch.Generator().manual_seed(0)
            self._projection = torch.randn(features.shape[1], MAX_FEATURES, generator=generator)
        return features @ self._projection / MAX_FEATURES**0.5
