"""Training hooks for detectron2's trainers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from ..audit import AUDIT_JSON, AnnotationTracker, write_audit
from ..audit.run import audit_tracked, class_names_of
from ..losses import SuperLoss
from ..modeling import SuperLossTerm
from ..visualization.boxes import LabelledBox, draw_boxes, labelled_box
from .resume import StopOnSignal

__all__ = ["DrawTrainingImages", "LogTau", "TrackAnnotations"]

logger = logging.getLogger(__name__)


class LogTau(HookBase):
    """After training, log every tau of every rank.

    They are equal: each step sums the losses over ranks before it moves tau. A line that shows
    otherwise is the first thing to know about a training that went wrong.
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


class TrackAnnotations(HookBase):
    """Keep the checkpoints' annotation statistics complete; write the label audit after training.

    Register it before the hook that writes checkpoints.

    Args:
        tracker: what the loss terms tell about every annotation
        cfg: of the run; the audit goes into its ``OUTPUT_DIR``
        stop: says when a checkpoint is due
    """

    def __init__(self, tracker: AnnotationTracker, cfg: CfgNode, stop: StopOnSignal):
        self.tracker = tracker
        self.cfg = cfg
        self.stop = stop

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
            audit = audit_tracked(self.cfg, self.tracker)
            write_audit(audit, self.cfg.OUTPUT_DIR)
        except Exception as error:
            # The checkpoint holds the statistics; the evaluation that follows must not be lost.
            logger.error(
                "No label audit (%s: %s). Mend that and run sl-audit --from-run %s",
                *(type(error).__name__, error, self.cfg.OUTPUT_DIR),
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
        self.classes = class_names_of(cfg)
        self.true_classes = true_classes
        self.max_images = max_images
        self._batch: Sequence[dict[str, Any]] | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._observed: list[SuperLossTerm] = []
        self._handle: Any = None

    def before_step(self) -> None:
        if self.trainer.iter % self.period:
            return
        model = self.trainer.model
        self._handle = model.register_forward_pre_hook(self._keep_batch)
        self._observed = [
            m for m in model.modules() if isinstance(m, SuperLossTerm) and m.name == "cls"
        ]
        for term in self._observed:
            term.observers.append(self._keep_confidences)

    def after_step(self) -> None:
        if self._handle is None:
            return
        self._handle.remove()
        for term in self._observed:
            term.observers.remove(self._keep_confidences)
        sigma = _means(self._seen)
        for i, item in enumerate((self._batch or ())[: self.max_images]):
            image = detection_utils.convert_image_to_rgb(
                item["image"].permute(1, 2, 0), self.format
            )
            picture = draw_boxes(image, self._boxes(item, sigma))
            self.trainer.storage.put_image(f"training_labels/{i}", picture.transpose(2, 0, 1))
        self._batch, self._seen, self._observed, self._handle = None, [], [], None

    def _keep_batch(self, _: Any, args: tuple[Any, ...]) -> None:
        self._batch = args[0]

    def _keep_confidences(self, ids: Tensor, losses: Tensor, sigma: Tensor, _: Tensor) -> None:
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
    sums = torch.zeros(len(unique), device=sigma.device).index_add_(0, inverse, sigma.float())
    means = sums / torch.bincount(inverse, minlength=len(unique))
    return dict(zip(unique.tolist(), means.tolist()))
