"""A training step with all that may listen to it: tracker, numbered annotations, class targets."""

from collections.abc import Callable

import torch
from detectron2.utils.events import EventStorage

from helpers.detectors import NUM_CLASSES, make_batch
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.modeling import SuperLossTerm
from sl_detectron.modeling.class_targets import ClassTargets, attach_class_targets


def numbered_batch() -> list[dict]:
    batch, start = make_batch(), 0
    for sample in batch:
        target = sample["instances"]
        target.gt_annotation_ids = torch.arange(start, start + len(target))
        start += len(target)
    return batch


def tracked_step(model: torch.nn.Module, listens: bool = True) -> Callable[[], None]:
    """Makes forward and backward of one batch, in an iteration that logs no scalars.

    A SuperLoss model tells a tracker what it sees, and trains on class targets, if it is asked to.
    """
    batch, device = numbered_batch(), next(model.parameters()).device
    labels = torch.cat([sample["instances"].gt_classes for sample in batch])
    terms = [m for m in model.modules() if isinstance(m, SuperLossTerm) and m.name == "cls"]
    for term in terms if listens else ():
        term.observers.append(AnnotationTracker(len(labels), NUM_CLASSES).to(device))
    if terms and listens:
        attach_class_targets(model, ClassTargets(labels.to(device)))

    def step() -> None:
        torch.manual_seed(1)
        with EventStorage(0):
            sum(model(batch).values()).backward()

    return step
