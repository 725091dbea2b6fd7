"""torchvision's MobileNetV2 as a backbone: detectors on real images that train on a CPU."""

import hashlib
from pathlib import Path

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights

from ..config import is_dense_detector

__all__ = ["MobileNetV2", "build_mobilenet_v2_fpn_backbone"]

# The block that ends each stage, its channels and its stride; the names are those of ResNets.
STAGES = {"stem": (1, 16, 2), "res2": (3, 24, 4), "res3": (6, 32, 8)}
STAGES |= {"res4": (13, 96, 16), "res5": (17, 320, 32)}


class MobileNetV2(Backbone):
    """The feature extractor of ``torchvision.models.mobilenet_v2``, batch norm in evaluation mode.

    Its weights expect ``INPUT.FORMAT: "RGB"`` and torchvision's mean and standard deviation.

    Args:
        out_features: of "stem", "res2", ..., "res5"
        freeze_at: stages from the stem on that are not trained, 0 to 5; 5 freezes all
        cache_images: of how many training images the features are kept, so that they are computed
            once; 0 for none. For a CPU, a frozen trunk and images that come again unchanged: an
            image is known by all of its pixels. 256 x 352 pixels take 0.43 MB.

    Raises:
        ValueError: an unknown feature, a ``freeze_at`` out of range, or a cache of features that
            are trained

    Example:
        >>> trunk = MobileNetV2(["res3", "res5"])
        >>> {name: tuple(x.shape) for name, x in trunk(torch.zeros(1, 3, 64, 96)).items()}
        {'res3': (1, 32, 8, 12), 'res5': (1, 320, 2, 3)}
    """

    def __init__(self, out_features: list[str], freeze_at: int = 5, cache_images: int = 0):
        super().__init__()
        unknown = sorted(set(out_features) - set(STAGES))
        if unknown or not out_features:
            raise ValueError(f"out_features must be some of {list(STAGES)}; got {out_features}")
        if not 0 <= freeze_at <= len(STAGES):
            raise ValueError(f"freeze_at must be in 0 to {len(STAGES)}; got {freeze_at}")
        if cache_images < 0:
            raise ValueError(f"cache_images must be 0 or above; got {cache_images}")
        if cache_images and freeze_at < len(STAGES):
            raise ValueError(
                f"cache_images needs a frozen trunk, freeze_at {len(STAGES)}; got {freeze_at}"
            )
        self._taps = {STAGES[n][0]: n for n in STAGES if n in out_features}
        blocks = torchvision.models.mobilenet_v2(weights=None).features[: max(self._taps) + 1]
        self.features = FrozenBatchNorm2d.convert_frozen_batchnorm(blocks)
        frozen = [end for end, _, _ in STAGES.values()][:freeze_at]
        for block in self.features[: max(frozen, default=-1) + 1]:
            block.requires_grad_(False)
        self._out_features = list(self._taps.values())
        self._out_feature_channels = {n: STAGES[n][1] for n in self._out_features}
        self._out_feature_strides = {n: STAGES[n][2] for n in self._out_features}
        self._cache_images = cache_images
        self._cache: dict[bytes, dict[str, Tensor]] = {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            n: ShapeSpec(
                channels=self._out_feature_channels[n], stride=self._out_feature_strides[n]
            )
            for n in self._out_features
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised RGB images to {feature: (N, channels, H / stride, W / stride)}"""
        if self._cache_images and self.training and not images.is_cuda:
            return self._cached(images)
        return self._compute(images)

    def load_torchvision(self, weights: str) -> None:
        """Load ImageNet weights.

        Args:
            weights: path of a state dict of ``mobilenet_v2()``, or a name of torchvision's
                ``MobileNet_V2_Weights``, which is downloaded

        Raises:
            ValueError: neither a file nor a name, or a file that is no such state dict
        """
        prefix, state = "features.", _read_state_dict(weights)
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        missing = set(self.features.state_dict()) - set(state)
        if missing:
            raise ValueError(
                f"MODEL.MOBILENET_V2.WEIGHTS: {weights} has no {prefix}{min(missing)}; it must be "
                "a state dict of torchvision's mobilenet_v2"
            )
        try:
            self.features.load_state_dict(state, strict=False)
            self._cache.clear()  # features of other weights
        except RuntimeError as error:  # a shape that does not fit
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(
                f"MODEL.MOBILENET_V2.WEIGHTS: {weights} does not fit its features: {reason}"
            ) from error

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        taps = {}
        for index, block in enumerate(self.features):
            images = block(images)
            if index in self._taps:
                taps[self._taps[index]] = images
        return taps

    def _cached(self, images: Tensor) -> dict[str, Tensor]:
        # On a CPU only, see forward: numpy looks at the same memory.
        keys = [hashlib.blake2b(x.numpy().tobytes(), digest_size=16).digest() for x in images]
        new = [i for i, key in enumerate(keys) if key not in self._cache]
        found = {key: self._cache[key] for key in keys if key in self._cache}
        if new:
            computed = self._compute(images[new])
            for row, i in enumerate(new):
                found[keys[i]] = {name: x[row].clone() for name, x in computed.items()}
                if len(self._cache) < self._cache_images:
                    self._cache[keys[i]] = found[keys[i]]
        return {n: torch.stack([found[key][n] for key in keys]) for n in self._out_features}


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2 under detectron2's FPN, for Faster R-CNN and RetinaNet.

    Args:
        cfg: reads ``MODEL.FPN``, ``MODEL.BACKBONE.FREEZE_AT`` (5 freezes the whole trunk) and
            ``MODEL.MOBILENET_V2``
        input_shape: of images, 3 channels

    Returns:
        p3 to p7 for a RetinaNet of "res3" to "res5"; else the levels of ``MODEL.FPN.IN_FEATURES``
        and one more by pooling

    Raises:
        ValueError: a bad value of these keys, by name
    """
    if input_shape.channels != 3:
        raise ValueError(f"MobileNetV2 takes images of 3 channels; got {input_shape.channels}")
    node, in_features = cfg.MODEL.MOBILENET_V2, cfg.MODEL.FPN.IN_FEATURES
    trunk = MobileNetV2(in_features, cfg.MODEL.BACKBONE.FREEZE_AT, node.CACHE_IMAGES)
    if node.WEIGHTS:
        trunk.load_torchvision(node.WEIGHTS)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top: nn.Module = LastLevelMaxPool()
    if is_dense_detector(cfg):
        top = LastLevelP6P7(channels, channels, "p5")
    return FPN(
        trunk,
        in_features,
        channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _read_state_dict(weights: str) -> dict[str, Tensor]:
    """Of a file, or of torchvision's weights of that name."""
    names = [*MobileNet_V2_Weights.__members__]
    if weights in names:
        entry = MobileNet_V2_Weights[weights]
        downloaded: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
        return downloaded
    if not Path(weights).is_file():
        raise ValueError(
            f"MODEL.MOBILENET_V2.WEIGHTS must be a file or one of {names}; got {weights!r}"
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names many for a file that is none of its own
        reason = str(error).splitlines()[0]
        raise ValueError(f"MODEL.MOBILENET_V2.WEIGHTS: cannot read {weights}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"MODEL.MOBILENET_V2.WEIGHTS: {weights} holds no state dict")
    return state
