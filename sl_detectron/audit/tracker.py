"""What a training run said about each annotation, summed up on the device as it goes.

Shape legend: A annotations of the training sets, S samples (RoIs or anchors) of a step, K classes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from .few_classes import Distributions

__all__ = [
    "NUM_VALUES",
    "AnnotationStatistics",
    "AnnotationTracker",
    "entropy_weight",
    "tracked_shape",
]

# Columns of the sums before those of the classes.
_COUNT, _LOSS, _SIGMA, _WEIGHT, NUM_VALUES = range(5)
# Columns of the sums about objects and boxes. They have a buffer of their own: states from before
# there were any are still read.
_OBJECT, _BOX_LOSS, _NUM_BOX_VALUES = range(3)
# Above 0, so that a mean over uniform distributions is still a mean.
_LEAST_WEIGHT = 1e-6


class AnnotationStatistics(NamedTuple):
    """Means over the samples of each annotation; nan for one that was never sampled.

    Args:
        num_samples: (A,) int64
        mean_loss: (A,) nats
        mean_sigma: (A,) the SuperLoss's confidence, in (0, e]
        last_loss: (A,) mean over the samples of the last step that had the annotation; of a
            cascade, over those of all its stages
        last_sigma: (A,) likewise
        probabilities: (A, K) mean predicted class distribution, every sample weighted by its
            :func:`entropy_weight`; of many classes the largest ones
        mean_object: (A,) mean probability that a sample is of an object of any class
        mean_box_loss: (A,) mean box regression loss; nan where no box term was observed, as those
            of plain losses are not
    """

    num_samples: torch.Tensor
    mean_loss: torch.Tensor
    mean_sigma: torch.Tensor
    last_loss: torch.Tensor
    last_sigma: torch.Tensor
    probabilities: Distributions
    mean_object: torch.Tensor
    mean_box_loss: torch.Tensor


def entropy_weight(probabilities: torch.Tensor) -> torch.Tensor:
    """The weight of a class distribution: 1 - H(p) / log K, from 0 for uniform to 1 for certain.

    Where the probabilities of a sigmoid sum to less than 1, the weight is that much less. So the
    nearly uniform predictions of a detector's first iterations count less than later ones.

    Example:
        >>> entropy_weight(torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [0.1, 0.0]]))
        tensor([0.0000, 0.5310, 1.0000, 0.1000])
    """
    tiny = torch.finfo(probabilities.dtype).tiny
    total = probabilities.sum(dim=1, keepdim=True)
    shares = probabilities / total.clamp_min(tiny)
    entropy = -torch.xlogy(shares, shares).sum(dim=1)
    return (1 - entropy / math.log(probabilities.shape[1])).clamp(0, 1) * total[:, 0].clamp(max=1)


class AnnotationTracker(nn.Module):
    """Add up losses, confidences and predicted classes of every annotation.

    It is an observer of a :class:`~sl_detectron.modeling.SuperLossTerm` of classes, and
    :meth:`add_box_losses` is one of a term of boxes of the same samples. A step costs a few
    scatter operations on the device and no trip to the host. Under several processes each adds
    what it sees; the sum over the processes is the truth, which :meth:`synchronize` moves to the
    main one. The state dict of the main process is complete after that.

    Args:
        num_annotations: A; annotation ids are 0..A-1
        num_classes: K, at least 2
        fingerprint: of the annotations, see :class:`AnnotationTable`

    Raises:
        ValueError: there are fewer than two classes: no other could be suggested

    Example:
        >>> tracker = AnnotationTracker(num_annotations=2, num_classes=2)
        >>> ids, losses, sigma = torch.tensor([1, 1, -1]), torch.tensor([1., 3., 9.]), torch.ones(3)
        >>> tracker(ids, losses, sigma, torch.tensor([[0.0, 1.0], [0.9, 0.1], [0.0, 1.0]]))
        >>> tracker.statistics().mean_loss, tracker.statistics().probabilities[1]
        (tensor([nan, 2.]), tensor([0.3122, 0.6878]))
    """

    sums: torch.Tensor
    box_sums: torch.Tensor
    last: torch.Tensor
    last_step: torch.Tensor
    step: torch.Tensor
    fingerprint: torch.Tensor

    def __init__(self, num_annotations: int, num_classes: int, fingerprint: int = 0):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"tracking labels needs at least 2 classes; got {num_classes}")
        # One row more than annotations: it takes the samples without annotation, which a mask
        # could only drop after a trip to the host.
        rows = num_annotations + 1
        self.register_buffer("sums", torch.zeros(rows, self._num_columns(num_classes)))
        self.register_buffer("box_sums", torch.zeros(rows, _NUM_BOX_VALUES))
        self.register_buffer("last", torch.zeros(rows, _WEIGHT))
        # 32 bits: enough for any training, and four bytes an annotation less.
        self.register_buffer("last_step", torch.full((rows,), -1, dtype=torch.int32))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("fingerprint", torch.tensor(fingerprint))
        self.register_load_state_dict_post_hook(lambda module, _: module._keep_on_main())

    @staticmethod
    def _num_columns(num_classes: int) -> int:
        """Of the sums."""
        return NUM_VALUES + num_classes

    def _class_columns(self, rows: torch.Tensor, weighted: torch.Tensor) -> torch.Tensor:
        """What is added to the columns of the classes, of (S, K) weighted probabilities."""
        return weighted

    @torch.no_grad()
    def forward(
        self,
        annotation_ids: torch.Tensor,
        losses: torch.Tensor,
        sigma: torch.Tensor,
        probabilities: torch.Tensor,
        objects: torch.Tensor | None = None,
        begins_step: bool = True,
    ) -> None:
        """Add samples of a step.

        Args:
            annotation_ids: (S,) int64; samples with an id outside of 0..A-1 have no annotation,
                and those with a value that is not finite are left out
            losses: (S,) nats
            sigma: (S,) confidence
            probabilities: (S, K) of the foreground classes
            objects: (S,) probability of an object of any class; None for the largest of a class
            begins_step: whether they are the first of a step; not so for the later stages of a
                cascade, whose samples are of the same step as those of the first
        """
        if begins_step:
            self.step += 1
        num_annotations = len(self.sums) - 1
        known = (annotation_ids >= 0) & (annotation_ids < num_annotations)
        # A sum never gets rid of a nan again.
        known &= losses.isfinite() & sigma.isfinite() & probabilities.isfinite().all(dim=1)
        losses, sigma = torch.where(known, losses, 0), torch.where(known, sigma, 0)
        probabilities = torch.where(known[:, None], probabilities, 0)
        rows = torch.where(known, annotation_ids, num_annotations)
        values = torch.stack([torch.ones_like(losses), losses, sigma], dim=1).to(self.sums)
        probabilities = probabilities.to(values)
        weights = entropy_weight(probabilities).clamp_min(_LEAST_WEIGHT)[:, None]
        of_classes = self._class_columns(rows, weights * probabilities)
        sums = torch.cat([values, weights, of_classes], dim=1)
        self.sums.index_add_(0, rows, sums)
        objects = probabilities.amax(dim=1) if objects is None else objects.to(values)
        objects = torch.where(known & objects.isfinite(), objects, 0)
        self.box_sums[:, _OBJECT].index_add_(0, rows, objects)
        # A sum of its own rather than an assignment: of two samples of one annotation, which one
        # an assignment keeps is undefined. It starts anew with the first samples of a step.
        same_step = (self.last_step[rows] == self.step)[:, None]
        self.last.index_copy_(0, rows, torch.where(same_step, self.last[rows], 0))
        self.last.index_add_(0, rows, values)
        self.last_step.index_copy_(0, rows, self.step.to(self.last_step).expand_as(rows))

    @torch.no_grad()
    def add_box_losses(self, annotation_ids: torch.Tensor, losses: torch.Tensor, *_: Any) -> None:
        """Add the box losses of the samples of a step, in any order with their classes.

        Args:
            annotation_ids: (S,) int64, as there
            losses: (S,) box losses, in the unit of the detector's
        """
        num_annotations = len(self.sums) - 1
        known = (annotation_ids >= 0) & (annotation_ids < num_annotations) & losses.isfinite()
        rows = torch.where(known, annotation_ids, num_annotations)
        losses = torch.where(known, losses, 0).to(self.box_sums)
        self.box_sums[:, _BOX_LOSS].index_add_(0, rows, losses)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Move everything to the main process; every process has to call it."""
        if comm.get_world_size() == 1:
            return
        latest = self.last_step.clone()
        dist.all_reduce(latest, op=dist.ReduceOp.MAX)
        self.last[self.last_step != latest] = 0
        self.last_step.copy_(latest)
        dist.all_reduce(self.sums)
        dist.all_reduce(self.box_sums)
        dist.all_reduce(self.last)
        self._keep_on_main()

    @torch.no_grad()
    def mean_probabilities(self) -> Distributions:
        """(A, K) over all processes, each of which has to call it; nan where never sampled."""
        sums = self.sums.clone()
        if comm.get_world_size() > 1:
            dist.all_reduce(sums)
        return self._means(sums)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As every module's.

        Raises:
            ValueError: the state is of other annotations or classes
        """
        theirs, ours = (
            f"{num_annotations} annotations of {num_classes} classes"
            for num_annotations, num_classes in map(tracked_shape, (state_dict, self.state_dict()))
        )
        said = f"{theirs}, this run has {ours}" if theirs != ours else ""
        if not said and int(state_dict["fingerprint"]) != int(self.fingerprint):
            said = "as many annotations as this run has, but other ones"
        if said:
            raise ValueError(
                f"the checkpoint tracked {said}: resume with the same training sets and noise, or "
                "set MODEL.SUPERLOSS.TRACK_ANNOTATIONS False"
            )
        if "box_sums" not in state_dict:
            # Of a training run from before there were any: a mean would lack its beginning.
            unknown = torch.full_like(self.box_sums, torch.nan)
            state_dict = {**state_dict, "box_sums": unknown}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def statistics(self) -> AnnotationStatistics:
        """Means of all annotations; on the main process, after :meth:`synchronize`."""
        sums, last = self.sums[:-1], self.last[:-1]
        means = sums[:, _LOSS:_WEIGHT] / sums[:, :_LOSS]
        means = torch.cat([means, last[:, _LOSS:] / last[:, :_LOSS]], dim=1)
        probabilities = self._means(self.sums)
        num_samples = sums[:, _COUNT].long()
        mean_loss, mean_sigma, last_loss, last_sigma = means.T
        mean_object, mean_box_loss = (self.box_sums[:-1] / sums[:, :_LOSS]).T
        if not self.box_sums[:-1, _BOX_LOSS].any():
            mean_box_loss = torch.full_like(mean_box_loss, torch.nan)
        return AnnotationStatistics(
            *(num_samples, mean_loss, mean_sigma, last_loss, last_sigma, probabilities),
            *(mean_object, mean_box_loss),
        )

    def _means(self, sums: torch.Tensor) -> Distributions:
        """(A, K) weighted means from (A + 1, columns) sums; the last row is of no annotation."""
        return sums[:-1, NUM_VALUES:] / sums[:-1, _WEIGHT:NUM_VALUES]

    def _keep_on_main(self) -> None:
        """What the main process holds, also from a checkpoint, must not count once a process."""
        if not comm.is_main_process():
            self.sums.zero_()
            self.box_sums.zero_()
            self.last.zero_()
            self.last_step.fill_(-1)


def tracked_shape(state: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of annotations and of classes that the state dict of a tracker is of."""
    num_rows, num_columns = state["sums"].shape
    # Of a compact tracker, whose rows do not say.
    return num_rows - 1, int(state.get("num_classes", num_columns - NUM_VALUES))
