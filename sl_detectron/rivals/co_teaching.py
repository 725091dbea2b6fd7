"""Co-teaching: two detectors, each trains on what has a small loss for the other.

Shape legend: S samples (RoIs or anchors), G annotations of a batch, Q losses of a queue.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from ..config import num_classes_of
from ..losses.ranks import gather_rows
from ..modeling.class_targets import LossOf, attach_class_targets
from .method import METHOD_REGISTRY, Method, check_is_pair, check_key, per_sample, start_of
from .pair import PairMixin

__all__ = ["CoTeaching"]

# Annotations of a process whose losses the others see in a step, and losses of the queue.
QUEUE = 256
# Losses of the queue for each class, where annotations are compared within their class.
QUEUE_OF_CLASS = 64


class _Side(Method):
    """One of the two detectors: its losses by annotation, and which annotations it trains on."""

    queue: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        length = QUEUE if num_groups == 1 else QUEUE_OF_CLASS * num_groups
        # A loss and its group.
        self.register_buffer("queue", torch.full((length, 2), math.nan))
        self.settled: list[tuple[Tensor, Callable[[], Tensor]]] = []
        self._seen: list[tuple[Tensor, Tensor]] | None = None
        self._kept: Tensor | None = None

    def relabel(self, targets: list[Instances]) -> list[Instances]:
        """The targets as they are; their annotations and given classes are noted."""
        classes = torch.cat([target.gt_classes for target in targets])
        self._groups = classes if self.num_groups > 1 else torch.zeros_like(classes)
        return super().relabel(targets)

    def settle(self, compute: Callable[[], Tensor]) -> Tensor:
        """A placeholder: the class term waits for the choice of the other detector."""
        placeholder = torch.zeros(())
        self.settled.append((placeholder, compute))
        return placeholder

    def expected_losses(
        self, loss_of: LossOf, ids: Tensor, labels: Tensor, probabilities: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The plain losses, with weight 0 for annotations that the other detector drops."""
        losses = loss_of(labels)
        known, columns = self._columns(ids)
        if self._seen is not None:
            self._seen.append(self._sums(per_sample(losses), known, columns))
        kept = torch.ones_like(known) if self._kept is None else ~known
        if self._kept is not None and len(self._kept):
            kept |= self._kept[columns]
        return losses, kept.to(losses.dtype)

    @torch.no_grad()
    def choose(self, share: float, learns: bool = True) -> Tensor:
        """(G,) which annotations have one of the smallest losses; those without loss do.

        Args:
            share: of the losses of the queue and of the batch of all processes
            learns: whether the batch enters the queue; every process calls then
        """
        # Without gradients no tau learns and nothing is observed.
        self._seen, self._kept = [], None
        for _, compute in self.settled:
            compute()
        sums, counts = (sum(values) for values in zip(*self._seen))
        self._seen = None
        losses: Tensor = sums / counts
        rows = torch.stack([losses, self._groups.to(losses)], dim=1)
        rows = torch.cat([self.queue, gather_rows(rows, QUEUE) if learns else rows])
        # Those that are nan come first, the others stay in order.
        rows = rows[(~rows[:, 0].isnan()).to(torch.uint8).argsort(stable=True)]
        if learns:
            self.queue.copy_(rows[-len(self.queue) :])
        return ~(losses > self._largest(share, rows)[self._groups])

    def _largest(self, share: float, rows: Tensor) -> Tensor:
        """(number of groups,) the largest loss of each that is kept."""
        losses = rows[:, 0]
        groups = torch.where(losses.isnan(), self.num_groups, rows[:, 1].nan_to_num()).long()
        # By group, and by loss in a group.
        order = losses.argsort(stable=True)
        ordered = losses[order[groups[order].argsort(stable=True)]]
        zeros = torch.zeros(self.num_groups + 1, dtype=torch.long, device=rows.device)
        num = zeros.index_add(0, groups, torch.ones_like(groups))[:-1]
        # 0.6 * 10 is to be 6, not 7.
        last = (share * num.double() - 1e-9).ceil().long().clamp(min=1) - 1
        places = (num.cumsum(0) - num + last).clamp(max=len(rows) - 1)
        return torch.where(last + 1 < num, ordered[places], math.inf)

    def finish(self, kept: Tensor) -> dict[int, Tensor]:
        """{id of a placeholder: its class term} with the annotations that the other one kept."""
        self._kept = kept
        terms = {id(placeholder): compute() for placeholder, compute in self.settled}
        self.settled, self._kept = [], None
        return terms


@METHOD_REGISTRY.register()
class CoTeaching(Method):
    """Co-teaching (Han et al., NeurIPS 2018, algorithm 1), of annotations in place of images.

    l_i is the mean cross-entropy of an annotation's foreground samples (RetinaNet: focal loss).
    Each detector keeps the R(t) of the annotations with the smallest l_i, and the *other* one is
    trained on them; R(t) = 1 - rate * min(t / T_k, 1). The samples of the others have no class
    loss: they are neither objects nor background. Box loss, background and divisor stay.

    The paper keeps R(t) of a mini-batch of 128 images. A detector's batch has some 20 annotations,
    so ours are compared with the last 256 losses of all processes, and an annotation that a
    detector has sampled no RoI of is kept. T_k is ``MODEL.METHOD.START``, a tenth of the schedule;
    the paper's is 10 of 200 epochs. The rate is ``NOISE_RATE``, or estimated at T_k, 2 T_k, ...
    from the statistics of the annotations. The two detectors differ by initialisation and by the
    RoIs that they sample; a RetinaNet samples none. The first one is evaluated; the paper reports
    both.

    While classes differ more by how far they are learned than right labels from wrong ones, the
    smallest losses leave out whole classes, which are then never learned. ``BY_CLASS``, which the
    paper has not, keeps R(t) of each given class.

    Args:
        rate: share of wrong labels; below 0 where it is to be estimated, then 0 until that is done
        ramp: T_k in iterations, 0 for none
        num_classes: K, to compare annotations within their given class; 1 to compare all
    """

    def __init__(self, rate: float, ramp: int, num_classes: int = 1) -> None:
        super().__init__(ramp)
        check_key(rate < 1, "NOISE_RATE", rate, "in [0, 1), or below 0")
        self.needs_rate = rate < 0
        # No buffer: a step would wait for a GPU to read it.
        self.rate = max(rate, 0.0)
        self.first, self.second = _Side(num_classes), _Side(num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "CoTeaching":
        node = cfg.MODEL.METHOD
        num_groups = num_classes_of(cfg) if node.CO_TEACHING.BY_CLASS else 1
        return cls(node.NOISE_RATE, start_of(cfg), num_groups)

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        check_is_pair(cfg, ("PairedRCNN", "PairedRetinaNet"))
        if cfg.MODEL.METHOD.NOISE_RATE < 0 and not cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS:
            raise ValueError(
                "MODEL.METHOD.NOISE_RATE below 0 is estimated from the statistics of the "
                "annotations, and MODEL.SUPERLOSS.TRACK_ANNOTATIONS is off"
            )

    def attach(self, model: nn.Module) -> None:
        """To both detectors of a pair."""
        if not isinstance(model, PairMixin):
            raise ValueError(f"Co-teaching needs a pair of detectors; got {type(model).__name__}")
        self.first.attach(model)
        attach_class_targets(model.second, self.second)
        # As a module it would be a child, whose state the model's has.
        object.__setattr__(model, "exchange", self)

    def get_extra_state(self) -> dict[str, float]:
        """What a checkpoint has beside the queues."""
        return {"rate": self.rate}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Go on with an estimated rate; one that is given stays."""
        if self.needs_rate:
            self.rate = state["rate"]

    @property
    def share(self) -> float:
        """R(t)."""
        ramp = min(self.iteration / self.start, 1.0) if self.start else 1.0
        return 1.0 - self.rate * ramp

    def exchanged(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of both, with the class terms that waited for each other.

        Raises:
            TypeError: a detector did not return a class term as it was
        """
        # A forward for batch statistics or a validation loss may be that of one process.
        share, learns = self.share, torch.is_grad_enabled()
        sides = self.first, self.second
        kept_by_first, kept_by_second = (side.choose(share, learns) for side in sides)
        terms = self.first.finish(kept_by_second) | self.second.finish(kept_by_first)
        if not terms.keys() <= {id(v) for v in losses.values()}:
            raise TypeError(
                f"the losses {sorted(losses)} lack a class term of the SuperLoss: this detector "
                "changes it after losses()"
            )
        return {name: terms.get(id(value), value) for name, value in losses.items()}
