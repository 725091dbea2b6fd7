"""What a method is, and from ``MODEL.METHOD`` to the one that a config names.

Shape legend: S samples (RoIs or anchors), G annotations of a batch, A of the training sets, K
classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..config import check_has_keys, is_dense_detector
from ..modeling.class_targets import SampleTargets, attach_class_targets
from ..modeling.matched_annotations import FIELD

__all__ = ["METHOD_REGISTRY", "Method", "build_method", "check_method"]

METHOD_REGISTRY = Registry("METHOD")
METHOD_REGISTRY.__doc__ = """
Methods by the names that ``MODEL.METHOD.NAME`` takes: subclasses of :class:`Method`.
"""


class Method(SampleTargets):
    """Decides what the samples of annotations are trained as, from the batch and its past.

    Its state is in buffers, which the checkpoints of a training run hold beside the model. A
    trainer calls :meth:`begin_step` and :meth:`end_step`; without one every step is step 0.

    In a LazyConfig it is the name ``method``; the arguments of the constructor are the keys of
    ``MODEL.METHOD`` in small letters, and ``start`` is in iterations.

    Args:
        start: iterations of training before it changes anything
    """

    # Of the batch that relabel() saw last: (G,) ids, in the order of the targets.
    _ids: Tensor

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        check_key(start >= 0, "START", start, "at least 0")
        self.start = start
        self.iteration = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "Method":
        """Build it; a value out of range is a ValueError that names the key."""
        raise NotImplementedError

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        """Refuse a config that it cannot train, before anything is written."""

    def attach(self, model: nn.Module) -> None:
        """Let a model train by it.

        Raises:
            ValueError: the model takes no targets of samples
        """
        if not attach_class_targets(model, self):
            raise ValueError(
                "MODEL.METHOD needs SuperLoss heads or SuperLossRetinaNet; set "
                "MODEL.ROI_HEADS.NAME or MODEL.META_ARCHITECTURE to a SuperLoss one"
            )

    def begin_step(self, iteration: int) -> None:
        """Before the forward of an iteration, which counts from 0."""
        self.iteration = iteration

    def end_step(self) -> None:
        """After the optimizer's step."""

    @property
    def is_active(self) -> bool:
        """Whether the start is over."""
        return self.iteration >= self.start

    def relabel(self, targets: list[Instances]) -> list[Instances]:
        """The targets as they are; their annotations are noted."""
        self._ids = torch.cat([target.get(FIELD) for target in targets])
        return targets

    def _of_objects(self, probabilities: Callable[[], Tensor] | None) -> Tensor:
        """(S, K) float32 probabilities of the classes of an object, without gradient.

        Raises:
            ValueError: the head has other scores
        """
        if probabilities is None:
            name = type(self).__name__
            raise ValueError(f"{name} needs a head with a score for each of its classes")
        return probabilities().detach().float()

    def _columns(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Which samples are of an annotation of the batch, (S,) bool, and its place, (S,)."""
        if not len(self._ids):
            return torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids)
        same = ids[:, None] == self._ids
        return same.any(dim=1), same.int().argmax(dim=1)

    def _means(self, values: Tensor, known: Tensor, columns: Tensor) -> Tensor:
        """(G, ...) means of (S, ...) values over the samples of annotations; nan without any."""
        sums, counts = self._sums(values, known, columns)
        return sums / counts.view(-1, *[1] * (values.dim() - 1))

    def _sums(self, values: Tensor, known: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(G, ...) sums of (S, ...) values and (G,) numbers of samples."""
        values = torch.where(known.view(-1, *[1] * (values.dim() - 1)), values.detach(), 0).float()
        sums = values.new_zeros(len(self._ids), *values.shape[1:])
        if not len(self._ids):
            return sums, sums.new_zeros(0)
        counts = sums.new_zeros(len(self._ids)).index_add_(0, columns, known.to(sums))
        return sums.index_add_(0, columns, values), counts


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(G,) classes to (G, K) float; torch's own looks at them on the host."""
    return (classes[:, None] == torch.arange(num_classes, device=classes.device)).float()


def per_sample(losses: Tensor) -> Tensor:
    """(S,) losses of (S,) or (S, K), as a dense detector has them."""
    return losses.detach().float().flatten(1).sum(dim=1) if losses.dim() > 1 else losses.detach()


def check_method(cfg: CfgNode) -> None:
    """Check the values of ``MODEL.METHOD`` before anything is trained.

    Raises:
        ValueError: a bad value, by name
    """
    check_has_keys(cfg)
    node = cfg.MODEL.METHOD
    names = [name for name, _ in METHOD_REGISTRY]
    check_key(node.NAME in ("", *names), "NAME", node.NAME, f'"" or one of {names}')
    check_key(0 <= node.START < 1, "START", node.START, "in [0, 1)")
    check_key(node.NOISE_RATE < 1, "NOISE_RATE", node.NOISE_RATE, "in [0, 1), or below 0")
    if not node.NAME:
        return
    correction = cfg.MODEL.SUPERLOSS.CORRECTION
    estimates = correction.FROM_FEATURES or correction.TARGETS or correction.ROUNDS > 1
    if estimates or correction.START < 1:
        raise ValueError(
            f"MODEL.METHOD.NAME {node.NAME!r} and MODEL.SUPERLOSS.CORRECTION both set the "
            "training targets: switch one off"
        )
    METHOD_REGISTRY.get(node.NAME).check(cfg)


def check_key(ok: bool, key: str, value: Any, accepted: str) -> None:
    """Raise ValueError with the key of ``MODEL.METHOD`` whose value is not accepted."""
    if not ok:
        raise ValueError(f"MODEL.METHOD.{key} must be {accepted}; got {value!r}")


def check_is_pair(cfg: CfgNode, accepted: tuple[str, ...]) -> None:
    """Refuse a meta-architecture without a second detector."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in accepted:
        kind = "RetinaNet" if is_dense_detector(cfg) else "R-CNN"
        raise ValueError(
            f"MODEL.METHOD.NAME {cfg.MODEL.METHOD.NAME!r} trains two detectors: set "
            f"MODEL.META_ARCHITECTURE to one of {accepted}; got the {kind} {name!r}"
        )


def start_of(cfg: CfgNode) -> int:
    """Iterations before a method begins."""
    return round(cfg.MODEL.METHOD.START * cfg.SOLVER.MAX_ITER)


def build_method(cfg: CfgNode, model: nn.Module, num_annotations: int) -> Method | None:
    """The method that ``MODEL.METHOD.NAME`` asks for, attached to a model; None for none.

    Args:
        cfg: a config with the keys of :func:`~sl_detectron.add_superloss_config`
        model: not wrapped for several processes
        num_annotations: A, of the training loader; 0 where it does not number them

    Raises:
        ValueError: a bad value; a loader without annotation ids; a model that does not fit
    """
    check_method(cfg)
    name = cfg.MODEL.METHOD.NAME
    if not name:
        return None
    if not num_annotations:
        raise ValueError(
            f"MODEL.METHOD.NAME {name!r} needs a training loader of build_noisy_train_loader, "
            "whose annotations have ids"
        )
    method: Method = METHOD_REGISTRY.get(name).from_config(cfg, num_annotations)
    method.to(cfg.MODEL.DEVICE).attach(model)
    return method
