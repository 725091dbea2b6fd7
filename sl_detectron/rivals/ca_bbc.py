"""CA-BBC: two heads correct the labels and the boxes of annotations together.

Shape legend: G annotations of a batch, K classes.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import RROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..modeling import MatrixROIAlign, SuperLossStandardROIHeads, use_matrix_roi_align
from .method import METHOD_REGISTRY, check_is_pair, check_key, one_hot, start_of
from .pair import PairMixin
from .soft_targets import SoftTargets

__all__ = ["CABBC", "soft_labels"]


def soft_labels(
    given: Tensor, first: Tensor, second: Tensor, temperature: float, num_classes: int
) -> Tensor:
    """y* proportional to ((y + p1 + p2) / 3)^(1 / T), over the classes of an object.

    Args:
        given: (G,) classes
        first, second: (G, K+1) predictions of the two heads
        temperature: T above 0; the smaller, the nearer to the most probable class
        num_classes: K

    Returns:
        (G, K)

    Example:
        >>> p = torch.tensor([[0.2, 0.6, 0.2]])
        >>> soft_labels(torch.tensor([0]), p, p, temperature=0.5, num_classes=2)
        tensor([[0.5765, 0.4235]])
    """
    mean = (one_hot(given, num_classes) + (first + second)[:, :num_classes]) / 3
    return (mean.clamp_min(1e-12).log() / temperature).softmax(dim=1)


@METHOD_REGISTRY.register()
class CABBC(SoftTargets):
    """CA-BBC with dual-head correction (Li, Xiong, Socher and Hoi, arXiv 2003.01285, section 3).

    A trunk and an RPN under two box heads, kept apart by initialisation and by the RoIs that each
    samples. After a warm-up on the given labels, with p1 and p2 of a pass over the given boxes
    without gradient: soft labels y* for both heads, see :func:`soft_labels`, and with alpha > 0

        b* = b - alpha * d/db (|p1 - p2|^2 + lambda * (p1_bg + p2_bg))
        b** = b* moved by rho * (t1 + t2) / 2, the box deltas of class argmax y* at b*.

    The paper leaves open, and ours is: y* is a distribution over the K classes without background;
    b is in pixels of the input image; the squared distance is over all K + 1 outcomes; with
    alpha = 0, for wrong classes alone, the boxes stay as they are, without the second move too;
    warm-up is ``MODEL.METHOD.START``; the losses of the heads are added; the first head predicts.
    Boxes are corrected for the heads, not for the RPN, which runs before them.

    Args:
        temperature: T; the paper's is 0.4
        alpha: step of the box; the paper's is 0, 100, 200 for 0, 20, 40 % box noise
        background: lambda, 0.1
        refinement: rho, 0.5
        start: iterations of warm-up
    """

    def __init__(
        self,
        temperature: float = 0.4,
        alpha: float = 0.0,
        background: float = 0.1,
        refinement: float = 0.5,
        start: int = 0,
    ) -> None:
        super().__init__(start)
        check_key(temperature > 0, "CA_BBC.TEMPERATURE", temperature, "> 0")
        steps = {"ALPHA": alpha, "BACKGROUND": background, "REFINEMENT": refinement}
        for key, value in steps.items():
            check_key(value >= 0, f"CA_BBC.{key}", value, "0.0 or above")
        self.temperature = temperature
        self.alpha = alpha
        self.background = background
        self.refinement = refinement
        self._targets: list[Instances] = []

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "CABBC":
        node = cfg.MODEL.METHOD.CA_BBC
        return cls(node.TEMPERATURE, node.ALPHA, node.BACKGROUND, node.REFINEMENT, start_of(cfg))

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        check_is_pair(cfg, ("PairedRCNN",))
        shared = cfg.MODEL.METHOD.SHARED_TRUNK
        check_key(shared, "SHARED_TRUNK", shared, "True for CABBC: it is two heads on one trunk")
        cls.from_config(cfg, 0)

    def attach(self, model: nn.Module) -> None:
        """To both heads of a pair."""
        heads: list[Any] = []
        if isinstance(model, PairMixin):
            heads = [model.roi_heads, model.second.roi_heads]
        if not heads or not all(map(_fits, heads)):
            names = [type(h).__name__ for h in heads]
            raise ValueError(
                "CABBC needs a PairedRCNN of ROI heads with one box head each, a softmax and boxes "
                f"that are not rotated, such as {SuperLossStandardROIHeads.__name__} without "
                f"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE; got {type(model).__name__} of {names}"
            )
        if not model.shared_trunk:
            raise ValueError(
                "CABBC is two heads on one trunk: set MODEL.METHOD.SHARED_TRUNK True, or "
                "shared_trunk of the PairedRCNN in a LazyConfig"
            )
        poolers = [p for h in heads for p in _differentiable(h).level_poolers]
        if self.alpha and not all(isinstance(p, MatrixROIAlign) for p in poolers):
            raise ValueError(
                "CA_BBC.ALPHA above 0 needs the gradient of RoIAlign: set "
                "MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignV2 or ROIAlign; the poolers are "
                f"{type(poolers[0]).__name__}"
            )
        super().attach(model)
        heads[0].register_forward_pre_hook(partial(self._correct, heads))
        heads[1].register_forward_pre_hook(self._repeat)

    def _correct(self, heads: Sequence[Any], _: nn.Module, args: tuple[Any, ...]) -> Any:
        """Before the first head: labels and boxes of the batch, for both."""
        images, features, proposals, targets = args[:4]
        self.table, self._targets = None, targets
        if targets is None or not heads[0].training or not self.is_active:
            return None
        boxes = [target.gt_boxes.tensor for target in targets]
        with torch.no_grad(), _evaluating(heads):
            p1, p2 = (_predict(h, features, boxes)[0].float().softmax(dim=1) for h in heads)
            given = torch.cat([target.gt_classes for target in targets])
            self.table = soft_labels(given, p1, p2, self.temperature, heads[0].num_classes)
            if self.alpha:
                boxes = self._move(heads, features, boxes, [t.image_size for t in targets])
                self._targets = [_with_boxes(*pair) for pair in zip(targets, boxes)]
        # Older versions of torch would train on the weights that autocast has cast without
        # gradient here, and so not at all.
        torch.clear_autocast_cache()
        return (images, features, proposals, self._targets, *args[4:])

    def _repeat(self, heads: nn.Module, args: tuple[Any, ...]) -> Any:
        """Before the second head."""
        return (*args[:3], self._targets, *args[4:])

    def _move(
        self,
        heads: Sequence[Any],
        features: dict[str, Tensor],
        boxes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Tensor]:
        """b** of boxes per image."""
        # Gradients of a box are small: those of 16 bits could vanish.
        with torch.enable_grad(), torch.autocast(boxes[0].device.type, enabled=False):
            leaves = [b.detach().clone().requires_grad_() for b in boxes]
            constants = {name: value.detach().float() for name, value in features.items()}
            scores = [_predict(h, constants, leaves, _differentiable(h))[0] for h in heads]
            p1, p2 = (s.float().softmax(dim=1) for s in scores)
            unsure = (p1 - p2).square().sum() + self.background * (p1 + p2)[:, -1].sum()
            gradients = torch.autograd.grad(unsure, leaves, allow_unused=True)
        moved = [b if g is None else b - self.alpha * g for b, g in zip(boxes, gradients)]
        moved = [_inside(*pair) for pair in zip(moved, sizes)]
        deltas = [_predict(h, features, moved)[1].float() for h in heads]
        if self.table is not None and deltas[0].shape[1] != 4:
            row = torch.arange(len(self.table), device=self.table.device)
            best = self.table.argmax(dim=1)
            deltas = [d.view(len(row), heads[0].num_classes, 4)[row, best] for d in deltas]
        mean = self.refinement * (deltas[0] + deltas[1]) / 2
        transform = heads[0].box_predictor.box2box_transform
        refined = transform.apply_deltas(mean, torch.cat(moved)).split([*map(len, moved)])
        return [_inside(*pair) for pair in zip(refined, sizes)]


def _fits(heads: Any) -> bool:
    """Whether heads have one box head of upright boxes, and a softmax."""
    if not isinstance(heads, StandardROIHeads) or isinstance(heads, RROIHeads):
        return False
    is_cascade = isinstance(heads.box_head, nn.ModuleList)
    return not is_cascade and not getattr(heads.box_predictor, "use_sigmoid_ce", False)


def _predict(
    heads: Any,
    features: dict[str, Tensor],
    boxes: Sequence[Tensor],
    pooler: ROIPooler | None = None,
) -> Any:
    """Scores and deltas of a head for boxes, not sampled and not matched."""
    levels = [features[name] for name in heads.box_in_features]
    pooled = (pooler or heads.box_pooler)(levels, [Boxes(b) for b in boxes])
    return heads.box_predictor(heads.box_head(pooled))


def _differentiable(heads: Any) -> ROIPooler:
    """The pooler of a head with a gradient for the boxes, which detectron2's does not have."""
    pooler: ROIPooler = copy.deepcopy(heads.box_pooler)
    use_matrix_roi_align(pooler)
    return pooler


def _with_boxes(target: Instances, boxes: Tensor) -> Instances:
    return Instances(target.image_size, **{**target.get_fields(), "gt_boxes": Boxes(boxes)})


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes within an image, of a pixel at least: a step may turn one inside out."""
    height, width = size
    # Host trip: once an image with a box step, of its size.
    limit = boxes.new_tensor([width, height])
    low = torch.minimum(boxes[:, :2].clamp_min(0), limit - 1)
    return torch.cat([low, torch.maximum(torch.minimum(boxes[:, 2:], limit), low + 1)], dim=1)


@contextmanager
def _evaluating(heads: Sequence[Any]) -> Iterator[None]:
    """Batch norm and dropout of box heads as in a prediction."""
    was = [h.box_head.training for h in heads]
    for h in heads:
        h.box_head.eval()
    try:
        yield
    finally:
        for h, training in zip(heads, was):
            h.box_head.train(training)
