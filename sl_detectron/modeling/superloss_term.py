"""One term of a detector's loss under the SuperLoss: which samples, which divisor, what is logged.

Shape legend: (...) any shape, one entry per sample (RoI, anchor or box); S samples; K classes.
"""

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..losses import FixedConfidence, SuperLoss
from ..losses.grouping import group_mean
from .matched_annotations import UNMATCHED
from .term_log import batch_scalars, storage_to_log_to, training_storage

__all__ = ["GRANULARITIES", "SCOPES", "Observer", "SuperLossTerm", "reduce_losses"]

logger = logging.getLogger(__name__)

SCOPES = ("foreground", "all")
# "class" is for the entries of a dense sigmoid loss: RetinaNet.
GRANULARITIES = ("sample", "instance", "class")

# Called with annotation ids (S,), losses (S,), sigma (S,), class probabilities (S, K), and the
# probability of an object of any class (S,), or None where that is the largest of a class.
Observer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], None]


class SuperLossTerm(nn.Module):
    """Reduce per-sample losses to ``sum(SL(l)) / divisor``, detectron2's divisor kept.

    A term may be called outside of a training loop; it then logs nothing.

    Args:
        name: scalars are logged as ``superloss_{name}/...``
        superloss: the per-sample loss with its running tau, or a fixed confidence as a control
        scope: "foreground": background keeps its plain loss and does not count in tau; "all":
            the SuperLoss weighs every sample
        granularity: "sample": every sample has its own confidence; "instance": all samples of one
            annotation share that of their mean loss; "class": every entry of a dense loss has one
        warmup_iters: steps that train on the plain loss while tau is estimated; they are counted
            in the state dict, as tau is

    A loaded state is used by a resumed training run. A new run, at iteration 0 of detectron2's
    event storage, restores the state from before the load in its first step.

    ``observers`` are called after the loss with detached tensors of the samples that are matched to
    an annotation; there are none unless one is appended. Only a step that trains is observed and
    logged: a forward under ``torch.no_grad()``, as of PreciseBN or for a validation loss, is not.

    Raises:
        ValueError: an argument is out of range
    """

    num_steps: Tensor

    def __init__(
        self,
        name: str,
        superloss: SuperLoss | FixedConfidence,
        scope: str = "foreground",
        granularity: str = "sample",
        warmup_iters: int = 0,
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"scope must be one of {SCOPES}; got {scope!r}")
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be one of {GRANULARITIES}; got {granularity!r}")
        if warmup_iters < 0:
            raise ValueError(f"warmup_iters must be 0 or above; got {warmup_iters!r}")
        self.name = name
        self.superloss = superloss
        self.scope = scope
        self.granularity = granularity
        self.warmup_iters = warmup_iters
        if warmup_iters:  # else it would be a key of every state dict
            self.register_buffer("num_steps", torch.tensor(0))
        self.observers: list[Observer] = []
        # The state before a load, until the first step shows whether a training run is resumed.
        self._before_load: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy gets: an observer belongs to one model and one training."""
        return {**self.__dict__, "observers": []}

    @torch.jit.unused
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *args: Any
    ) -> None:
        """A state of a stock detector, which has no tau, leaves the one that is here."""
        ours = self.state_dict()
        # Filled in: torch does not pass on here whether a load is strict.
        if ours and not any(key.startswith(prefix) for key in state_dict):
            logger.info(
                "The loaded weights have no tau or other state of %s: the current one is kept",
                prefix[:-1],
            )
            state_dict.update((prefix + key, value) for key, value in ours.items())
        elif ours and self._before_load is None:
            self._before_load = {key: copy.deepcopy(value) for key, value in ours.items()}
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *args)

    @property
    @torch.jit.unused
    def needs_annotation_ids(self) -> bool:
        """Whether the granularity or an observer needs the matched annotation of a sample."""
        return self.granularity == "instance" or bool(self.observers)

    # Not part of inference: TorchScript need not understand it.
    @torch.jit.unused
    def forward(
        self,
        losses: Tensor,
        foreground: Tensor,
        divisor: float | Tensor,
        annotation_ids: Tensor | None = None,
        probabilities: Callable[[], Tensor] | None = None,
        weights: Tensor | None = None,
        objects: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """
        Args:
            losses: (...) the samples' losses in nats (or the unit of the box loss)
            foreground: (...) bool, samples that are matched to an annotation
            divisor: what the stock loss divides its sum by
            annotation_ids: (S,) int64, -1 for samples without annotation; S is the length of
                the first dimension of the losses
            probabilities: makes (S, K) class probabilities, for the observers; None where the
                detector has none of K classes
            weights: (S,) that the samples count with; tau leaves those of weight 0 out
            objects: makes (S,) probabilities of an object of any class, for the observers; None
                where it is the largest class probability

        Returns:
            0-d tensor; 0 with a gradient for an empty batch

        Raises:
            ValueError: the granularity is "instance" and there are no ids
        """
        mask = foreground if self.scope == "foreground" else None
        if weights is not None:
            counts = _weighted(torch.ones_like(losses), weights) > 0
            mask = counts if mask is None else mask & counts
        pooled = losses
        if self.granularity == "instance":
            pooled = _pool(losses, annotation_ids)
        learns = self.training and torch.is_grad_enabled()
        if learns and self._before_load is not None:
            self._leave_other_training()
        storage = storage_to_log_to() if learns else None
        scalars = {}
        if storage is not None and isinstance(self.superloss, SuperLoss):
            # A copy, before the batch moves it: this is the tau that the batch meets.
            scalars["tau"] = self.superloss.tau.clone()
        superlosses, sigma = self.superloss.with_confidence(pooled, mask)
        if self.warmup_iters:
            superlosses, sigma = self._warm_up(losses, superlosses, sigma, learns)
        reduced = _weighted(superlosses, weights).sum() / divisor
        if storage is not None:
            with torch.no_grad():
                scalars["superloss"] = reduced
                weighted = _weighted(losses, weights)
                scalars |= batch_scalars(weighted, sigma, foreground, mask, divisor)
                # Host trip: the one of a logged iteration, all scalars in a single copy.
                values = torch.stack([v.detach().double() for v in scalars.values()]).tolist()
            for key, value in zip(scalars, values):
                if not math.isnan(value):
                    storage.put_scalar(f"superloss_{self.name}/{key}", value, smoothing_hint=False)
        if learns and annotation_ids is not None and probabilities is not None and self.observers:
            found = None if objects is None else objects().detach()
            self._tell(annotation_ids, losses.detach(), sigma, probabilities().detach(), found)
        return reduced

    def _leave_other_training(self) -> None:
        """Undo a load for a new training run, as an average of many losses would hardly move."""
        before, storage = self._before_load or {}, training_storage()
        loaded = self.state_dict()
        is_changed = any(
            not torch.equal(value, before[key].to(value.device)) for key, value in loaded.items()
        )
        if is_changed and storage is not None and storage.iter == 0:
            self.load_state_dict(before)
            logger.info(
                "tau and other running state of the term %r were loaded, but this training run "
                "starts from its beginning: they are reset",
                self.name,
            )
        self._before_load = None

    def _warm_up(
        self, losses: Tensor, superlosses: Tensor, sigma: Tensor, learns: bool
    ) -> tuple[Tensor, Tensor]:
        """The plain losses in the first steps; chosen on the device, which no step waits for."""
        is_warm = self.num_steps >= self.warmup_iters
        if learns:
            self.num_steps += 1
        return torch.where(is_warm, superlosses, losses), torch.where(is_warm, sigma, 1.0)

    def _tell(
        self,
        ids: Tensor,
        losses: Tensor,
        sigma: Tensor,
        probabilities: Tensor,
        objects: Tensor | None,
    ) -> None:
        if losses.dim() > ids.dim():
            losses, sigma = losses.sum(dim=-1), sigma.mean(dim=-1)
        # Host trip: a dense detector has a million samples, of which a hundred are matched. The
        # losses of detectron2 have waited for the same samples in this step, so that it is short.
        matched = (ids != UNMATCHED).nonzero()[:, 0]
        found = None if objects is None else objects[matched]
        for observer in self.observers:
            observer(ids[matched], losses[matched], sigma[matched], probabilities[matched], found)

    def extra_repr(self) -> str:
        return (
            f"name={self.name!r}, scope={self.scope!r}, granularity={self.granularity!r}, "
            f"warmup_iters={self.warmup_iters}"
        )


def reduce_losses(
    term: SuperLossTerm | None,
    losses: Tensor,
    foreground: Tensor,
    divisor: float,
    annotation_ids: Tensor | None,
    probabilities: Callable[[], Tensor] | None,
    weights: Tensor | None = None,
    objects: Callable[[], Tensor] | None = None,
) -> Tensor:
    """A call of the term, or without one the weighted ``sum(losses) / divisor``."""
    if term is None:
        return _weighted(losses, weights).sum() / divisor
    arguments = losses, foreground, divisor, annotation_ids, probabilities, weights, objects
    reduced: Tensor = term(*arguments)
    return reduced


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Losses of samples, or of every class of them, times (S,) weights."""
    if weights is None:
        return losses
    return losses * weights.to(losses).view(-1, *[1] * (losses.dim() - 1))


def _pool(losses: Tensor, annotation_ids: Tensor | None) -> Tensor:
    """The mean loss of its annotation for every sample that has one; the others keep theirs."""
    if annotation_ids is None:
        raise ValueError(
            "GRANULARITY 'instance' needs the annotation that each sample is matched to: call the "
            "detector with its targets, not its losses alone"
        )
    # A group of its own for each of the others, by ids that no loader has: to choose the matched
    # ones would be a trip to the host.
    alone = torch.iinfo(torch.int64).min + torch.arange(len(losses), device=losses.device)
    groups = torch.where(annotation_ids == UNMATCHED, alone, annotation_ids)
    return group_mean(losses, groups)
