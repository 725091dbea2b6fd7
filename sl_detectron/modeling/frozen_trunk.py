"""A pretrained feature extractor as a backbone: detectors on real images that train on a CPU."""

import hashlib
import logging
from pathlib import Path

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..config import is_dense_detector
from .feature_store import GIB, FeatureStore
from .trunks import TRUNK_REGISTRY, Trunk

__all__ = ["FrozenTrunk", "build_frozen_trunk_fpn_backbone"]

logger = logging.getLogger(__name__)


class FrozenTrunk(Backbone):
    """A feature extractor of :data:`TRUNK_REGISTRY`, batch norm in evaluation mode.

    On a CPU a wholly frozen trunk takes the images of a batch one by one. This is faster, a batch
    does not fit the processor's cache, and the features of an image depend on no other image, so
    that a store changes no bit of them.

    Args:
        name: key of :data:`TRUNK_REGISTRY`
        out_features: of "stem", "res2", ..., "res5"
        freeze_at: stages from the stem on that are not trained, 0 to 5; 5 freezes all
        store: where features are kept, on a CPU; needs a trunk that is frozen as a whole. An image
            is known by all of its pixels, padding too.

    Raises:
        ValueError: an unknown name or feature, a ``freeze_at`` out of range, or a store for
            features that are trained

    Example:
        >>> trunk = FrozenTrunk("mobilenet_v2", ["res3", "res5"])
        >>> {name: tuple(x.shape) for name, x in trunk(torch.zeros(1, 3, 64, 96)).items()}
        {'res3': (1, 32, 8, 12), 'res5': (1, 320, 2, 3)}
    """

    def __init__(
        self,
        name: str,
        out_features: list[str],
        freeze_at: int = 5,
        store: FeatureStore | None = None,
    ):
        super().__init__()
        trunk = _trunk(name)
        stages = trunk.stages
        unknown = sorted(set(out_features) - set(stages))
        if unknown or not out_features:
            raise ValueError(f"out_features must be some of {list(stages)}; got {out_features}")
        if not 0 <= freeze_at <= len(stages):
            raise ValueError(f"freeze_at must be in 0 to {len(stages)}; got {freeze_at}")
        self._is_frozen = freeze_at == len(stages)
        if store is not None and not self._is_frozen:
            raise ValueError(
                f"a store of features needs a frozen trunk, freeze_at {len(stages)}; "
                f"got {freeze_at}"
            )
        self.name, self._store, self._to_blocks = name, store, trunk.to_blocks
        self._taps = {stages[n][0]: n for n in stages if n in out_features}
        blocks = trunk.make_blocks()[: max(self._taps) + 1]
        self.features = FrozenBatchNorm2d.convert_frozen_batchnorm(blocks)
        frozen = [end for end, _, _ in stages.values()][:freeze_at]
        for block in self.features[: max(frozen, default=-1) + 1]:
            block.requires_grad_(False)
        self._out_features = list(self._taps.values())
        self._out_feature_channels = {n: stages[n][1] for n in self._out_features}
        self._out_feature_strides = {n: stages[n][2] for n in self._out_features}
        self._digest: tuple[object, str] = (None, "")

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            n: ShapeSpec(
                channels=self._out_feature_channels[n], stride=self._out_feature_strides[n]
            )
            for n in self._out_features
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images to {feature: (N, channels, H / stride, W / stride)}"""
        if not (self._is_frozen and images.device.type == "cpu" and len(images)):
            return self._compute(images)
        store = self._store
        # Without autocast: what is stored serves runs with AMP and without.
        with torch.autocast("cpu", enabled=False):
            if store is None:
                each = [self._compute(image) for image in images.split(1)]
            else:
                trunk = self._trunk_key()
                each = [self._stored(store, trunk, image) for image in images.split(1)]
        return {n: torch.cat([x[n] for x in each]) for n in self._out_features}

    def load_pretrained(self, weights: str) -> None:
        """Load ImageNet weights.

        Args:
            weights: path of a state dict, or a name of torchvision's weights, such as
                "IMAGENET1K_V1", which are downloaded

        Raises:
            ValueError: neither a file nor a name, or a file that is no such state dict
        """
        state = self._to_blocks(_read_state_dict(self.name, weights))
        missing = set(self.features.state_dict()) - set(state)
        if missing:
            raise ValueError(
                f"{weights} has no weight for {min(missing)} of the trunk; it must be a state dict "
                f"of {self.name}"
            )
        try:
            self.features.load_state_dict(state, strict=False)
        except RuntimeError as error:  # a shape that does not fit
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{weights} does not fit {self.name}: {reason}") from error

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        taps = {}
        for index, block in enumerate(self.features):
            images = block(images)
            if index in self._taps:
                taps[self._taps[index]] = images
        return taps

    def _stored(self, store: FeatureStore, trunk: str, image: Tensor) -> dict[str, Tensor]:
        """The features of an image, (1, 3, H, W), which are computed if the store lacks them."""
        key = store.key(image)
        features = store.read(trunk, key)
        if features is None:
            computed = self._compute(image)
            features = [computed[n] for n in self._out_features]
            store.write(trunk, key, features)
            features = store.round(features)
        return dict(zip(self._out_features, features, strict=True))

    def _trunk_key(self) -> str:
        """Of the weights, the features and all else that may change a bit of them."""
        tensors = self.features.state_dict()
        # Weights that are loaded or changed in place get another version or address.
        state = [(x.data_ptr(), x._version) for x in tensors.values()]
        state.append((torch.get_num_threads(), 0))
        if self._digest[0] != state:
            capability = torch.backends.cpu.get_cpu_capability()
            settings = (self.name, self._out_features, torch.__version__, capability, state[-1])
            digest = hashlib.sha256(repr(settings).encode())
            for key, x in tensors.items():
                digest.update(f"{key} {tuple(x.shape)}".encode())
                digest.update(x.cpu().contiguous().numpy().data)
            self._digest = (state, f"{self.name}-{digest.hexdigest()[:16]}")
        return self._digest[1]


@BACKBONE_REGISTRY.register()
def build_frozen_trunk_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A pretrained trunk under detectron2's FPN, for Faster R-CNN and RetinaNet.

    Args:
        cfg: reads ``MODEL.FROZEN_TRUNK``, ``MODEL.FPN`` and ``MODEL.BACKBONE.FREEZE_AT`` (5 freezes
            the whole trunk)
        input_shape: of images, 3 channels

    Returns:
        the levels of ``MODEL.FPN.IN_FEATURES`` and above them, for a Faster R-CNN, one by pooling,
        for a RetinaNet two by convolution if its ``IN_FEATURES`` name them

    Raises:
        ValueError: a bad value of these keys, by name
    """
    node, in_features = cfg.MODEL.FROZEN_TRUNK, cfg.MODEL.FPN.IN_FEATURES
    if input_shape.channels != 3:
        raise ValueError(f"{node.NAME} takes images of 3 channels; got {input_shape.channels}")
    trunk = FrozenTrunk(node.NAME, in_features, cfg.MODEL.BACKBONE.FREEZE_AT, _store(cfg))
    if node.WEIGHTS:
        _check_pixels(cfg, _trunk(node.NAME))
        try:
            trunk.load_pretrained(node.WEIGHTS)
        except ValueError as error:
            raise ValueError(f"MODEL.FROZEN_TRUNK.WEIGHTS: {error}") from error
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    # FPN numbers its levels by the logarithm of the stride.
    last = max(shape.stride for shape in trunk.output_shape().values()).bit_length() - 1
    return FPN(
        trunk,
        in_features,
        channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_top_block(cfg, last, channels),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _top_block(cfg: CfgNode, last: int, channels: int) -> nn.Module | None:
    """What makes the levels above that of the trunk's last feature."""
    top: nn.Module | None = None
    if not is_dense_detector(cfg):
        top = LastLevelMaxPool()
        setattr(top, "in_feature", f"p{last}")  # noqa: B010 - detectron2 fixes "p5"
    # Convolutions without a loss would stop DistributedDataParallel.
    elif {f"p{last + 1}", f"p{last + 2}"} & {*cfg.MODEL.RETINANET.IN_FEATURES}:
        top = LastLevelP6P7(channels, channels, f"p{last}")
    return top


def _store(cfg: CfgNode) -> FeatureStore | None:
    node = cfg.MODEL.FROZEN_TRUNK
    if not node.STORE:
        return None
    if torch.device(cfg.MODEL.DEVICE).type != "cpu":
        # A GPU computes the features in less time than a disk takes to read them.
        logger.info("MODEL.FROZEN_TRUNK.STORE is for a CPU; on %s it is off", cfg.MODEL.DEVICE)
        return None
    try:
        return FeatureStore(node.STORE, node.STORE_GIB * GIB, node.STORE_DTYPE)
    except ValueError as error:
        raise ValueError(f"MODEL.FROZEN_TRUNK.STORE, STORE_GIB or STORE_DTYPE: {error}") from error


def _trunk(name: str) -> Trunk:
    if name not in TRUNK_REGISTRY:
        known = sorted(key for key, _ in TRUNK_REGISTRY)
        raise ValueError(f"MODEL.FROZEN_TRUNK.NAME must be one of {known}; got {name!r}")
    trunk: Trunk = TRUNK_REGISTRY.get(name)()
    return trunk


def _check_pixels(cfg: CfgNode, trunk: Trunk) -> None:
    """Images in another form would cost AP without a word."""
    for key, given, expected in (
        ("MODEL.PIXEL_MEAN", tuple(cfg.MODEL.PIXEL_MEAN), trunk.pixel_mean),
        ("MODEL.PIXEL_STD", tuple(cfg.MODEL.PIXEL_STD), trunk.pixel_std),
        ("INPUT.FORMAT", cfg.INPUT.FORMAT, trunk.pixel_format),
    ):
        if given != expected:
            raise ValueError(
                f"{key} is {given}, but the pretrained weights of {cfg.MODEL.FROZEN_TRUNK.NAME} "
                f"expect {expected}; set it so"
            )


def _read_state_dict(name: str, weights: str) -> dict[str, Tensor]:
    """Of a file, or of torchvision's weights of that name."""
    names: list[str] = []
    if name in torchvision.models.list_models():
        entries = torchvision.models.get_model_weights(name)
        names = [*entries.__members__]
        if weights in names:
            state = entries[weights].get_state_dict(progress=False, check_hash=True)
            downloaded: dict[str, Tensor] = state
            return downloaded
    if not Path(weights).is_file():
        choice = f" or one of {names}" if names else ""
        raise ValueError(f"must be a file{choice}; got {weights!r}")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a foreign file
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot read {weights}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{weights} has no state dict")
    return state
