"""The ranked lists of suspects, and their heads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

__all__ = ["AuditedAnnotation", "LabelAudit", "Suspect", "SuspectList", "top_suspects"]

Box = tuple[float, float, float, float]


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
    bbox: Box
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


@dataclass(frozen=True)
class Suspect:
    """One thing that looks wrong.

    Args:
        kind: one of :data:`~sl_detectron.audit.kinds.KINDS`
        score: in [0, 1]; **higher is more suspect**, comparable within a kind
        dataset: name of the dataset
        image_id: of the image, as in the dataset
        file_name: of the image
        annotation_id: its number in the training sets; -1 for a missing object
        index: position in the image's annotations, from 0; -1 for a missing object
        label: the given class; "" for a missing object
        bbox: (x0, y0, x1, y1) as annotated, in pixels, 0-based edges; None for a missing object
        suggested_label: the class that the detector takes it for: of a wrong class the most
            probable other one, of a missing object that of the detection; else the given one
        suggested_bbox: the box that the detector would draw, of a misplaced box and of a missing
            object; of a duplicate the box of the annotation that it repeats; else None
    """

    kind: str
    score: float
    dataset: str
    image_id: str | int
    file_name: str
    annotation_id: int = -1
    index: int = -1
    label: str = ""
    bbox: Box | None = None
    suggested_label: str = ""
    suggested_bbox: Box | None = None


@dataclass(frozen=True)
class SuspectList:
    """All suspects, most suspect first.

    Args:
        classes, sources, fingerprint: see :class:`LabelAudit`
        suspects: ranked by score
    """

    classes: tuple[str, ...]
    sources: dict[str, dict[str, Any]]
    suspects: tuple[Suspect, ...]
    fingerprint: int = 0


Listed = TypeVar("Listed", LabelAudit, SuspectList)


def top_suspects(
    listed: Listed, num: int | None = None, per_class: bool = False, classes: Sequence[str] = ()
) -> Listed:
    """The head of a list; of one of several kinds the heads of all of them, whose scores cannot be
    compared.

    Args:
        listed: the ranked list
        num: how many to keep of each kind; None for all
        per_class: whether to keep ``num`` of every given class; that of a missing object is the
            suggested one
        classes: given classes to keep; none for all

    Raises:
        ValueError: a class that the audit does not have, or ``num`` below 1
    """
    unknown = sorted({*classes} - {*listed.classes})
    if unknown:
        raise ValueError(f"the audit has no class {unknown}; it has {[*listed.classes]}")
    if num is not None and num < 1:
        raise ValueError(f"the number of suspects must be at least 1; got {num}")
    counts: Counter[tuple[str, str]] = Counter()

    def is_kept(kind: str, label: str) -> bool:
        group = kind, label if per_class else ""
        if (classes and label not in classes) or (num is not None and counts[group] >= num):
            return False
        counts[group] += 1
        return True

    # mypy: fields of either class.
    head: Any
    if isinstance(listed, SuspectList):
        suspects = (s for s in listed.suspects if is_kept(s.kind, s.label or s.suggested_label))
        head = {"suspects": tuple(suspects)}
    else:
        head = {"annotations": tuple(a for a in listed.annotations if is_kept("", a.label))}
    return replace(listed, **head)
