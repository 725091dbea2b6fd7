"""CLC: drop or relabel samples by a matrix of what the detector believes of each given class.

Shape legend: S samples (RoIs or anchors), K classes.
"""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..config import num_classes_of
from ..losses.ranks import sum_over_ranks
from ..modeling.class_targets import LossOf
from .method import METHOD_REGISTRY, Method, check_key, start_of

__all__ = ["CLC"]

FORMS = ("drop", "relabel")
LEAST_THRESHOLD = 0.1
# Share of the sums that one step keeps: an average of about 100 steps.
MOMENTUM = 0.99


@METHOD_REGISTRY.register()
class CLC(Method):
    """Class-aware label correction of DN-TOD (Zhu et al., arXiv 2401.08056, section 4.1).

    For each given class y and each class j the mean and the deviation of p_j over the samples
    labelled y are kept, and thr[y, j] = max(mean + std, 0.1). After a frozen start a sample is
    dropped, or relabelled j, if some j != y has p_j > p_y, p_j >= thr[y, j] and p_j >= thr[j, j];
    of several the most probable. A dropped sample has no class loss: it is no background.

    The paper leaves open, and ours is: the averages are exponential ones over about 100 steps, of
    all processes, and a step, or a stage of a cascade, is judged by those before it; p is over the
    classes of an object, for a RetinaNet its sigmoids; a class that was not seen has no threshold
    and passes none. Boxes stay, as does the matching, and a box regressed by class is that of the
    given class.

    Args:
        num_classes: K
        form: "drop" or "relabel"
        start: iterations of the frozen start; the matrix learns in it
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, num_classes: int, form: str = "drop", start: int = 0) -> None:
        super().__init__(start)
        check_key(form in FORMS, "CLC.FORM", form, f"one of {FORMS}")
        self.form = form
        self.register_buffer("counts", torch.zeros(num_classes, 1, dtype=torch.float64))
        for name in ("sums", "squares"):
            zeros = torch.zeros(num_classes, num_classes, dtype=torch.float64)
            self.register_buffer(name, zeros)

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "CLC":
        return cls(num_classes_of(cfg), cfg.MODEL.METHOD.CLC.FORM, start_of(cfg))

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        cls.from_config(cfg, 0)

    @property
    def thresholds(self) -> Tensor:
        """(K, K) thr[y, j]; nan in rows of classes that were not seen."""
        mean = self.sums / self.counts
        deviation = (self.squares / self.counts - mean.square()).clamp_min(0).sqrt()
        return (mean + deviation).clamp_min(LEAST_THRESHOLD).float()

    def expected_losses(
        self,
        loss_of: LossOf,
        ids: Tensor,
        labels: Tensor,
        probabilities: Callable[[], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses of the labels as corrected, with weight 0 for what is dropped."""
        p = self._of_objects(probabilities)
        is_object = (labels >= 0) & (labels < len(self.sums))
        given = torch.where(is_object, labels, 0)
        better = self._better(p, given) & is_object[:, None]
        best = torch.where(better, p, -1.0).argmax(dim=1)
        changed = better.any(dim=1) & self.is_active
        if self.training and torch.is_grad_enabled():
            self._learn(p, given, is_object)
        if self.form == "relabel":
            return loss_of(torch.where(changed, best, labels)), torch.ones_like(p[:, 0])
        return loss_of(labels), (~changed).to(p)

    def _better(self, p: Tensor, given: Tensor) -> Tensor:
        """(S, K) which classes outrank the given one."""
        thresholds = self.thresholds
        outranks = p > p.gather(1, given[:, None])
        return outranks & (p >= thresholds[given]) & (p >= thresholds.diagonal())

    @torch.no_grad()
    def _learn(self, p: Tensor, given: Tensor, is_object: Tensor) -> None:
        rows = torch.stack([is_object.double(), *p.double().T, *p.double().square().T], dim=1)
        rows = rows * is_object[:, None]
        batch = rows.new_zeros(len(self.sums), rows.shape[1]).index_add_(0, given, rows)
        parts = sum_over_ranks(batch).split([1, p.shape[1], p.shape[1]], dim=1)
        for total, part in zip((self.counts, self.sums, self.squares), parts):
            total.mul_(MOMENTUM).add_(part)
