"""Training hooks for detectron2's trainers."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, detection_utils
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..audit.compact_tracker import build_tracker
from ..audit.files import AUDIT_JSON, write_audit
from ..audit.ranking import audit_annotations
from ..audit.tracker import AnnotationTracker
from ..config import num_classes_of, train_sets
from ..data.annotation_ids import AnnotationTable
from ..losses import SuperLoss
from ..modeling import SuperLossTerm
from ..visualization.boxes import LabelledBox, draw_boxes, labelled_box
from .resume import StopOnSignal

__all__ = [
    "DrawTrainingImages",
    "LogTau",
    "TrackAnnotations",
    "WarnOfUnusedTerms",
    "build_annotation_tracker",
]

logger = logging.getLogger(__name__)

# Above this size tracking is off by default: it would fill a GPU.
MAX_BYTES = 2**32


class LogTau(HookBase):
    """After training, log every tau of every rank.

    They are equal: each step sums the losses over ranks before it updates tau. If this line shows
    different values, look here first for the cause of a failed training run.
    """

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            # Called after an exception too: the other ranks would not join the gather.
            return
        taus = {
            name: float(module.tau)  # training is over: a host round trip costs nothing
            for name, module in self.trainer.model.named_modules()
            if isinstance(module, SuperLoss)
        }
        by_rank = comm.gather(taus)
        for name in taus if by_rank else ():
            logger.info("tau by rank of %s: %s", name, [rank[name] for rank in by_rank])


class WarnOfUnusedTerms(HookBase):
    """After the first step, warn of SuperLoss terms that were not called.

    A custom detector may override the method that computes the losses, and train without them.
    """

    _unused: dict[str, Any]

    def before_train(self) -> None:
        self._unused = {
            name: module.register_forward_pre_hook(partial(self._note, name))
            for name, module in self.trainer.model.named_modules()
            if isinstance(module, SuperLossTerm)
        }

    def _note(self, name: str, *_: Any) -> None:
        self._unused.pop(name).remove()

    def after_step(self) -> None:
        for name, handle in self._unused.items():
            handle.remove()
            logger.warning(
                "%s was not called in the first step: this detector does not train on it. It may "
                "override the method that calls losses()",
                name,
            )
        self._unused = {}


def build_annotation_tracker(
    model: nn.Module, annotations: AnnotationTable | None
) -> AnnotationTracker | None:
    """A tracker that observes the terms of a model, on the model's device.

    None where the model has no SuperLoss, the loader has no table of annotations, there is one
    class only, or the statistics would take more than 4 GiB: those of 33 million annotations,
    whatever the number of classes.
    """
    observed = _classification_terms(model)
    num_classes = max(observed.values(), default=0)
    # With one class no other one can be suggested.
    if annotations is None or num_classes < 2:
        return None
    labels = torch.tensor(annotations.labels())
    tracker = build_tracker(labels, num_classes, annotations.fingerprint)
    num_bytes = sum(buffer.nbytes for buffer in tracker.buffers())
    if num_bytes > MAX_BYTES:
        logger.warning(
            "No label audit: statistics of %d annotations would take %.1f GiB; set "
            "MODEL.SUPERLOSS.TRACK_ANNOTATIONS False to silence this",
            *(annotations.num_annotations, num_bytes / 2**30),
        )
        return None
    tracker.to(next(model.parameters()).device)
    for i, term in enumerate(observed):
        # The stages of a cascade, which come in this order, make one step.
        term.observers.append(tracker if i == 0 else partial(tracker, begins_step=False))
    for term in _terms(model, "box_reg"):
        term.observers.append(tracker.add_box_losses)
    return tracker


def _classification_terms(model: nn.Module) -> dict[SuperLossTerm, int]:
    return _terms(model, "cls")


def _terms(model: nn.Module, name: str) -> dict[SuperLossTerm, int]:
    """{term of that name: number of classes K of the module that has it}."""
    terms = {}
    for module in model.modules():
        num_classes: Any = getattr(module, "num_classes", 0)
        for child in module.children():
            if isinstance(child, SuperLossTerm) and child.name == name:
                terms[child] = int(num_classes)
    return terms


class TrackAnnotations(HookBase):
    """Keep the checkpoints' annotation statistics complete; write the label audit after training.

    Register it before the hook that writes checkpoints. As training starts it writes the table of
    annotations, which an audit of the run needs beside a checkpoint.

    Args:
        tracker: the statistics of every annotation, from the loss terms
        annotations: of the training loader
        folder: ``OUTPUT_DIR`` of the run
        stop: decides when a checkpoint is due
    """

    def __init__(
        self,
        tracker: AnnotationTracker,
        annotations: AnnotationTable,
        folder: str | os.PathLike,
        stop: StopOnSignal,
    ):
        self.tracker = tracker
        self.annotations = annotations
        self.folder = folder
        self.stop = stop

    def before_train(self) -> None:
        # Of a resumed run too: its checkpoint was refused if it is of other annotations.
        if comm.is_main_process():
            self.annotations.write(self.folder)

    def after_step(self) -> None:
        if self.stop.checkpoint_is_due():
            self.tracker.synchronize()

    def after_train(self) -> None:
        # Called after an exception too: the statistics are then of this process alone.
        if self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        if not self.tracker.statistics().num_samples.any():
            logger.warning(
                "No annotation was tracked: the training loader gives no gt_annotation_ids; build "
                "it with sl_detectron.label_noise.build_noisy_train_loader(cfg, mapper)"
            )
            return
        try:
            audit = audit_annotations(self.annotations, self.tracker.statistics())
            write_audit(audit, self.folder)
        except Exception as error:
            # The checkpoint holds the statistics; the evaluation that follows must not be lost.
            logger.error(
                "No label audit (%s: %s). Correct that and run sl-audit --from-run %s",
                *(type(error).__name__, error, self.folder),
            )
            return
        logger.info("Ranked %d annotations: %s", len(audit.annotations), AUDIT_JSON)


class DrawTrainingImages(HookBase):
    """Every ``VIS_PERIOD`` iterations put training images into the event storage.

    TensorBoard then shows them with the labels and the confidences of that very step: wrong labels
    in red as "given (true)", orange where the mean confidence of an annotation's samples is below
    1. Register it on the main process. Between those iterations it costs nothing.

    Args:
        cfg: of the run
        true_classes: {annotation id: true class} of the annotations whose class noise changed
        max_images: of a batch
    """

    def __init__(self, cfg: CfgNode, true_classes: Mapping[int, int], max_images: int = 4):
        self.period = cfg.VIS_PERIOD
        self.format = cfg.INPUT.FORMAT
        names = MetadataCatalog.get(train_sets(cfg)[0]).get("thing_classes")
        self.classes = names or [str(i) for i in range(num_classes_of(cfg))]
        self.true_classes = true_classes
        self.max_images = max_images
        self._batch: Sequence[dict[str, Any]] = ()
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._attached = ExitStack()

    def before_step(self) -> None:
        if self.trainer.iter % self.period:
            return
        model = self.trainer.model
        self._attached.callback(model.register_forward_pre_hook(self._keep_batch).remove)
        for term in _classification_terms(model):
            term.observers.append(self._keep_confidences)
            self._attached.callback(term.observers.remove, self._keep_confidences)

    def after_step(self) -> None:
        self._attached.close()
        sigma = _means(self._seen)
        for i, item in enumerate(self._batch[: self.max_images]):
            image = detection_utils.convert_image_to_rgb(
                item["image"].permute(1, 2, 0), self.format
            )
            picture = draw_boxes(image, self._boxes(item, sigma))
            self.trainer.storage.put_image(f"training_labels/{i}", picture.transpose(2, 0, 1))
        self._batch, self._seen = (), []

    def _keep_batch(self, _: Any, args: tuple[Any, ...]) -> None:
        self._batch = args[0]

    def _keep_confidences(self, ids: Tensor, losses: Tensor, sigma: Tensor, *_: Any) -> None:
        self._seen.append((ids, sigma))

    def _boxes(self, item: Mapping[str, Any], sigma: Mapping[int, float]) -> list[LabelledBox]:
        target = item["instances"]
        categories = target.gt_classes.tolist()
        ids = [-1] * len(target)
        if target.has("gt_annotation_ids"):
            ids = target.gt_annotation_ids.tolist()
        return [
            labelled_box(
                *(box, category, self.true_classes.get(i, category), self.classes),
                sigma=sigma.get(i),
            )
            for box, category, i in zip(target.gt_boxes.tensor.numpy(), categories, ids)
        ]


def _means(seen: Sequence[tuple[Tensor, Tensor]]) -> dict[int, float]:
    """{annotation id: mean confidence of its samples}."""
    if not seen:
        return {}
    ids, sigma = (torch.cat(parts) for parts in zip(*seen))
    unique, inverse = ids.unique(return_inverse=True)
    means = torch.zeros(len(unique), device=sigma.device)
    means.scatter_reduce_(0, inverse, sigma.float(), "mean", include_self=False)
    return dict(zip(unique.tolist(), means.tolist()))
