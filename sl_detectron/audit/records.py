"""The ranked list of suspects, and its head."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["AuditedAnnotation", "LabelAudit", "top_suspects"]


@dataclass(frozen=True, slots=True)
class AuditedAnnotation:
    """One annotation and what speaks for and against its label.

    Args:
        annotation_id: its number in the training sets
        dataset: name of its dataset
        image_id: of its image, as in the dataset
        index: position in the image's annotations, from 0
        file_name: of the image
        bbox: (x0, y0, x1, y1) in pixels, 0-based edges
        label: the class that it was given
        suspicion: in [0, 1]; **higher is more suspect**, 0.5 where the best other class is as
            probable as the given one
        suggested_label: the most probable other class
        suggested_probability: its mean predicted probability, in [0, 1]
        expected_correctness: mean predicted probability of the given class, in [0, 1]
        confidence: mean sigma of the SuperLoss over the samples, in (0, e]
        last_confidence: the same in the last step that had the annotation
        mean_loss: mean classification loss, nats
        last_loss: the same in the last step that had the annotation
        num_samples: number of RoIs or anchors that this is the mean of
        top_labels: the most probable classes as (name, mean probability), best first
    """

    annotation_id: int
    dataset: str
    image_id: str | int
    index: int
    file_name: str
    bbox: tuple[float, float, float, float]
    label: str
    suspicion: float
    suggested_label: str
    suggested_probability: float
    expected_correctness: float
    confidence: float
    last_confidence: float
    mean_loss: float
    last_loss: float
    num_samples: int
    top_labels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class LabelAudit:
    """All annotations that were seen, ranked.

    Args:
        classes: K names in the order of the class ids
        sources: {dataset name: where its files are}, from
            :func:`~sl_detectron.data.annotation_ids.dataset_source`
        annotations: most suspect first
        num_unseen: annotations that no sample was ever matched to; they are not ranked
        fingerprint: of all annotations, see :class:`AnnotationTable`
    """

    classes: tuple[str, ...]
    sources: dict[str, dict[str, Any]]
    annotations: tuple[AuditedAnnotation, ...]
    num_unseen: int = 0
    fingerprint: int = 0


def top_suspects(
    audit: LabelAudit, num: int | None = None, per_class: bool = False, classes: Sequence[str] = ()
) -> LabelAudit:
    """The head of the list.

    Args:
        audit: the ranked list
        num: how many to keep; None for all
        per_class: whether to keep ``num`` of every given class
        classes: given classes to keep; none for all

    Raises:
        ValueError: a class that the audit does not have, or ``num`` below 1
    """
    unknown = sorted({*classes} - {*audit.classes})
    if unknown:
        raise ValueError(f"the audit has no class {unknown}; it has {[*audit.classes]}")
    if num is not None and num < 1:
        raise ValueError(f"the number of suspects must be at least 1; got {num}")
    counts: Counter[str] = Counter()
    kept = []
    for annotation in audit.annotations:
        group = annotation.label if per_class else ""
        if (not classes or annotation.label in classes) and (num is None or counts[group] < num):
            counts[group] += 1
            kept.append(annotation)
    return replace(audit, annotations=tuple(kept))
