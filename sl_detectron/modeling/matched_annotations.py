"""Which annotation a sample is matched to: ``gt_annotation_ids`` from the targets to the losses.

Shape legend: R RoIs or anchors of an image, G annotations of it.
"""

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = [
    "FIELD",
    "UNMATCHED",
    "annotation_ids_of",
    "check_target_classes",
    "ids_by_target",
    "with_annotation_ids",
]

# sl_detectron's training loader sets it; any loader can. detectron2 carries fields named gt_*
# along wherever it indexes targets.
FIELD = "gt_annotation_ids"
UNMATCHED = -1
# Where the loader gives no ids, the annotations of a batch count down from here: the numbers tell
# them apart, and no one can take them for those of a dataset.
FIRST_LOCAL_ID = -2


def with_annotation_ids(targets: list[Instances], needs_known: bool = False) -> list[Instances]:
    """The targets, each with the field ``gt_annotation_ids``; the arguments stay as they are.

    Ids that the loader gave are kept. Without them the annotations of the batch are numbered,
    which is enough to tell them apart.

    Args:
        targets: per image, with ``gt_classes``
        needs_known: whether ids of the batch alone are an error

    Returns:
        per image, with ``gt_annotation_ids``, int64 (G,)

    Raises:
        ValueError: the loader gave no ids, and they are needed
    """
    numbered, start = [], FIRST_LOCAL_ID
    for target in targets:
        if not target.has(FIELD):
            if needs_known and len(target):
                raise ValueError(
                    "the loss learns for every training annotation, but the loader does not number "
                    f"them: give its instances {FIELD}, as "
                    "sl_detectron.label_noise.build_noisy_train_loader does"
                )
            ids = torch.arange(start, start - len(target), -1, device=target.gt_classes.device)
            target = Instances(target.image_size, **target.get_fields(), **{FIELD: ids})
        numbered.append(target)
        start -= len(target)
    return numbered


def check_target_classes(targets: list[Instances], num_classes: int) -> None:
    """Refuse classes that the detector does not have, which stock trains as background.

    Without a trip to the host: on a GPU the error comes with a later kernel.

    Args:
        targets: per image, with ``gt_classes``
        num_classes: K

    Raises:
        RuntimeError: a class is K or above
    """
    classes = torch.cat([target.gt_classes for target in targets])
    torch._assert_async(
        (classes < num_classes).all(),
        f"the training set has a class above {num_classes - 1}, which the detector would learn as "
        "background: set NUM_CLASSES of MODEL.ROI_HEADS or MODEL.RETINANET to their number",
    )


def ids_by_target(labels: Tensor, boxes: Tensor, num_classes: int, target: Instances) -> Tensor:
    """Find the annotations again from which labels and boxes were copied.

    For matchings that pass on nothing else of the targets. Of two annotations with the same class
    and box, which no loss tells apart, it is the first.

    Args:
        labels: (R,) int64; below 0 or K where no annotation is matched
        boxes: (R, D) the matched boxes in pixels, equal to the target's bit for bit
        num_classes: K
        target: of the image, with ``gt_classes``, ``gt_boxes`` and ``gt_annotation_ids``

    Returns:
        (R,) int64, ``UNMATCHED`` where there is none
    """
    ids = torch.full_like(labels, UNMATCHED, dtype=torch.int64)
    if len(target) == 0:
        return ids
    # Host trip: only the matched ones are compared, as most of a dense detector's anchors are
    # background; the matcher of detectron2 has waited for the device just before.
    matched = ((labels >= 0) & (labels < num_classes)).nonzero()[:, 0]
    same = (boxes[matched, None] == target.gt_boxes.tensor).all(dim=-1)
    same &= labels[matched, None] == target.gt_classes
    return ids.index_copy(0, matched, target.get(FIELD)[same.int().argmax(dim=1)])


def annotation_ids_of(proposals: list[Instances], foreground: Tensor) -> Tensor | None:
    """Ids of all sampled proposals of a batch.

    Args:
        proposals: per image, as the matching leaves them
        foreground: bool, one entry for every proposal of all images

    Returns:
        int64, ``UNMATCHED`` for background, which detectron2 gives the fields of some annotation;
        None where an image has annotations and none has ids
    """
    if any(p.has("gt_boxes") for p in proposals) and not any(p.has(FIELD) for p in proposals):
        return None
    ids = torch.full_like(foreground, UNMATCHED, dtype=torch.int64)
    # Images without annotations have no fields of targets.
    for image_ids, p in zip(ids.split([len(p) for p in proposals]), proposals):
        if p.has(FIELD):
            image_ids.copy_(p.get(FIELD))
    return torch.where(foreground, ids, UNMATCHED)
