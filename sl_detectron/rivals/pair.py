"""Two detectors that train on the same images; one of them is evaluated."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from torch import Tensor, nn

from ..modeling import SuperLossRetinaNet

__all__ = ["PairMixin", "PairedRCNN", "PairedRetinaNet", "fill_both"]

logger = logging.getLogger(__name__)


class PairMixin(nn.Module):
    """A detector with another one of its kind, ``second``, that is trained beside it.

    The second is built and called after the first, which starts and in its first step samples as
    it does alone.
    With ``MODEL.METHOD.SHARED_TRUNK`` the second takes features and proposals of the first and has
    only a head; the trunk then learns from the sum of both heads' losses. Losses of the second are
    named ``second_...``. Predictions are those of the first, whose checkpoint keys are those of a
    single detector: a config of one evaluates it.

    Put it before the detector that it extends. Built by arguments, as in a LazyConfig, it takes
    those of the detector, ``second``, and ``shared_trunk`` in place of the key.
    """

    detector: type[nn.Module]
    second: nn.Module
    shared_trunk: bool
    # A method that has to see the losses of both before it can say what they are.
    exchange: Any = None

    def __init__(
        self,
        *args: Any,
        second: nn.Module | None = None,
        shared_trunk: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)  # a config, or arguments: detectron2's @configurable
        cfg = kwargs.get("cfg", args[0] if args else None)
        if isinstance(cfg, CfgNode):
            second, shared_trunk = self.detector(cfg), cfg.MODEL.METHOD.SHARED_TRUNK
        if not isinstance(second, self.detector):
            raise ValueError(
                f"{type(self).__name__} needs second, another {self.detector.__name__}; got "
                f"{type(second).__name__}"
            )
        other: Any = second
        other.vis_period = 0
        self.second = other
        self.shared_trunk = shared_trunk
        if shared_trunk:
            first: Any = self
            other.backbone = _Replay(first.backbone)
            if getattr(self, "proposal_generator", None) is not None:
                other.proposal_generator = _ReplayProposals(first.proposal_generator)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses of both in training, predictions of the first otherwise."""
        if not self.training:
            return super().forward(batched_inputs)
        losses = dict(super().forward(batched_inputs))
        losses |= {f"second_{name}": v for name, v in self.second(batched_inputs).items()}
        return losses if self.exchange is None else self.exchange.exchanged(losses)


@META_ARCH_REGISTRY.register()
class PairedRCNN(PairMixin, GeneralizedRCNN):
    """Two :class:`GeneralizedRCNN`."""

    detector = GeneralizedRCNN


@META_ARCH_REGISTRY.register()
class PairedRetinaNet(PairMixin, SuperLossRetinaNet):
    """Two :class:`SuperLossRetinaNet`."""

    detector = SuperLossRetinaNet


class _Replay(nn.Module):
    """Returns what a part of the first detector has just returned, once."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        # Some of what detectron2 asks of a backbone.
        for name in ("size_divisibility", "padding_constraints"):
            if hasattr(part, name):
                setattr(self, name, getattr(part, name))
        self._returned: list[Any] = []
        # A method of this module, so that a copy of both detectors has a hook of its own.
        part.register_forward_hook(self._keep)

    def _keep(self, part: nn.Module, inputs: Any, output: Any) -> None:
        self._returned = [output] if part.training else []

    def forward(self, *_: Any) -> Any:
        return self._returned.pop()


class _ReplayProposals(_Replay):
    """The proposals, whose losses the first detector has."""

    def forward(self, *_: Any) -> tuple[Any, dict[str, Tensor]]:
        proposals, _losses = super().forward()
        return proposals, {}


@contextmanager
def fill_both(model: nn.Module) -> Iterator[None]:
    """Load weights for a new training run inside: both detectors of a pair get them.

    A file of one detector names no second one, and detectron2's matching of names refuses a
    checkpoint that fits two places. What the weights lack stays random, and different.

    Raises:
        ValueError: they lack nothing, for detectors that only their weights tell apart
    """
    if not isinstance(model, PairMixin):
        yield
        return
    second = model._modules.pop("second")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model._modules["second"] = second
    _copy_changes(before, model.state_dict(), second)
    _check_differ(model)


def _check_differ(model: PairMixin) -> None:
    """Refuse two dense detectors of equal weights: they sample nothing, and would stay equal."""
    first = dict(model.named_parameters())
    if all(torch.equal(first[n], p) for n, p in model.second.named_parameters()):
        if not isinstance(model, GeneralizedRCNN):
            raise ValueError(
                "MODEL.WEIGHTS fills both detectors of a pair wholly, so that they would never "
                "differ: set it to weights without a class head, such as those of a backbone"
            )
        logger.warning(
            "MODEL.WEIGHTS fills both detectors of a pair wholly: they start equal, and differ "
            "only by the RoIs that they sample"
        )


@torch.no_grad()
def _copy_changes(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], second: nn.Module | None
) -> None:
    for name, value in (second.state_dict() if second is not None else {}).items():
        if name in after and not torch.equal(before[name], after[name]):
            value.copy_(after[name])
