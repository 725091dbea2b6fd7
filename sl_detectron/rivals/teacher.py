"""Soft targets from a teacher: the exponential average of the detector's weights.

Shape legend: S samples of the teacher, G annotations of a batch, K classes.
"""

import copy
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..audit.scorers import scorer_of
from ..config import num_classes_of
from ..losses.ranks import num_processes
from ..modeling.matched_annotations import FIELD
from .method import METHOD_REGISTRY, check_key, one_hot, start_of
from .soft_targets import SoftTargets

__all__ = ["EMATeacher"]


@METHOD_REGISTRY.register()
class EMATeacher(SoftTargets):
    """y* = (1 - share) * y + share * p of the mean teacher (Tarvainen and Valpola 2017, eq. 1).

    The teacher's weights are theta' = decay * theta' + (1 - decay) * theta after every step, with
    decay = min(DECAY, 1 - 1 / (t + 1)), so that it begins as the plain average. The paper's teacher
    makes a second loss for unlabelled images. Ours, for wrong labels: it scores the annotated
    boxes of the batch (a RetinaNet the anchors that are matched to them), in evaluation mode and
    on the image that the detector sees, and p is over the classes of an object. The detector is
    evaluated, not the teacher. A step takes a forward longer, and memory and checkpoints hold the
    weights twice.

    Args:
        num_classes: K
        decay, share: in [0, 1)
        start: iterations before the targets are soft
    """

    teacher: nn.Module

    def __init__(self, num_classes: int, decay: float, share: float, start: int = 0) -> None:
        super().__init__(start)
        for key, value in (("DECAY", decay), ("SHARE", share)):
            check_key(0 <= value < 1, f"TEACHER.{key}", value, "in [0, 1)")
        self.num_classes = num_classes
        self.decay = decay
        self.share = share

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "EMATeacher":
        node = cfg.MODEL.METHOD.TEACHER
        return cls(num_classes_of(cfg), node.DECAY, node.SHARE, start_of(cfg))

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        cls.from_config(cfg, 0)

    def attach(self, model: nn.Module) -> None:
        """As every method; the teacher starts as a copy."""
        self._score = scorer_of(model)
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        super().attach(model)
        object.__setattr__(self, "_student", model)
        model.register_forward_pre_hook(self._ask)

    def train(self, mode: bool = True) -> "EMATeacher":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the teacher to the weights of the step."""
        student: nn.Module = self._student  # type: ignore[assignment]
        rate = 1 - min(self.decay, 1 - 1 / (self.iteration + 1))
        ours = dict(self.teacher.named_parameters())
        for name, parameter in student.named_parameters():
            if name in ours:
                ours[name].lerp_(parameter, rate)
        # Statistics of batch norm are averages already, but each process has its own.
        theirs = dict(student.named_buffers())
        buffers = {
            n: b for n, b in self.teacher.named_buffers() if n in theirs and b.is_floating_point()
        }
        for name, buffer in buffers.items():
            buffer.copy_(theirs[name])
        if num_processes() > 1 and buffers:
            flat = torch.cat([b.flatten() for b in buffers.values()])
            dist.broadcast(flat, 0)
            for buffer, part in zip(
                buffers.values(), flat.split([b.numel() for b in buffers.values()])
            ):
                buffer.copy_(part.view_as(buffer))

    def _ask(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self.table = None
        if not (model.training and torch.is_grad_enabled() and self.is_active):
            return
        with torch.no_grad():
            tables = [self._table_of(item) for item in args[0] if "instances" in item]
            self.table = torch.cat(tables) if tables else None

    def _table_of(self, item: dict[str, Any]) -> Tensor:
        """(G, K) of an image."""
        # Host trip: the targets of the batch come to the device, as in the detector's forward.
        targets = item["instances"].to(self._student.device)
        given = one_hot(targets.gt_classes, self.num_classes)
        if not len(targets) or not self.share:
            return given
        answers = self._score(self.teacher, item, targets, draw=False)
        ids, p = answers.ids, answers.probabilities
        same = (targets.get(FIELD)[:, None] == ids).float()
        # Autocast multiplies in 16 bits, in which rows would not sum to 1.
        p = (same @ p.float()).float()
        total = p.sum(dim=1, keepdim=True)
        # No anchor is matched to some annotations.
        mixed = (1 - self.share) * given + self.share * p / total.clamp_min(1e-12)
        return torch.where(total > 0, mixed, given)
