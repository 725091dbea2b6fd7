"""From what a training or a model says about annotations to a ranked list of suspects.

Shape legend: A annotations of the training sets, K classes.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ..data import annotation_fingerprint
from .tracker import AnnotationStatistics

__all__ = [
    "AuditedAnnotation",
    "LabelAudit",
    "audit_annotations",
    "dataset_source",
    "suspicion",
    "top_suspects",
]

# How many of an annotation's most probable classes are kept.
NUM_TOP = 3

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class AuditedAnnotation:
    """One annotation and what speaks for and against its label.

    Args:
        annotation_id: its number in the training sets
        dataset: name of its data set
        image_id: of its image, as in the data set
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
        sources: {data set name: where its files are}, see :func:`dataset_source`
        annotations: most suspect first
        num_unseen: annotations that no sample was ever matched to; they are not ranked
        fingerprint: of all annotations of the training sets, from
            :func:`~sl_detectron.data.annotation_fingerprint`; empty where it is not known
    """

    classes: tuple[str, ...]
    sources: dict[str, dict[str, Any]]
    annotations: tuple[AuditedAnnotation, ...]
    num_unseen: int = field(default=0)
    fingerprint: str = field(default="")


def suspicion(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probability of the best other class against the given one: p_other / (p_other + p_given).

    Args:
        probabilities: (A, K) mean predicted class distributions
        labels: (A,) int64 given classes

    Returns:
        (A,) in [0, 1]; higher is more suspect

    Example:
        >>> suspicion(torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([0, 0]))
        tensor([0.2500, 0.8889])
    """
    given = probabilities.gather(1, labels[:, None])[:, 0]
    other = _without_given(probabilities, labels).amax(dim=1)
    # A sigmoid classifier may find no class probable at all: nothing speaks for another one then.
    return torch.where(other > 0, other / (other + given).clamp_min(1e-30), 0.0)


def audit_annotations(
    sets: Mapping[str, Sequence[Record]],
    classes: Sequence[str],
    statistics: AnnotationStatistics,
    fingerprint: str | None = None,
) -> LabelAudit:
    """Rank the annotations of training sets by :func:`suspicion`.

    Args:
        sets: {data set name: dataset dicts} whose annotations have an ``annotation_id``, as
            :func:`~sl_detectron.data.noisy_dataset_dicts` returns them
        classes: K names, at least two
        statistics: from the tracker of a training on these sets, or of one pass over them
        fingerprint: the tracker's; an empty one, of an older version, is only warned of; None
            where the statistics were made of ``sets`` themselves

    Raises:
        ValueError: the statistics are of other sets or classes
    """
    _check_size(sets, classes, statistics)
    found = annotation_fingerprint(sets)
    if fingerprint and fingerprint != found:
        raise ValueError(
            f"the statistics are of other annotations than {', '.join(sets)} at hand, though of as "
            "many: the files, the sets' names or DATASETS.LABEL_NOISE have changed since the "
            "training; bring those of the training back, or audit by --checkpoint"
        )
    if fingerprint == "":
        logger.warning(
            "The statistics do not say which annotations they are of (an older version wrote "
            "them); if the sets or their noise have changed since, this audit is wrong"
        )
    entries = list(_entries(sets))
    statistics = AnnotationStatistics(*(values.cpu() for values in statistics))
    seen = [e for e in entries if statistics.num_samples[e[3]["annotation_id"]] > 0]
    annotations = _audited(seen, classes, statistics) if seen else []
    annotations.sort(key=lambda a: (-a.suspicion, a.annotation_id))
    return LabelAudit(
        classes=tuple(classes),
        sources={name: dataset_source(name) for name in sets},
        annotations=tuple(annotations),
        num_unseen=len(entries) - len(seen),
        fingerprint=found,
    )


def _check_size(
    sets: Mapping[str, Sequence[Record]], classes: Sequence[str], statistics: AnnotationStatistics
) -> None:
    num_rows, num_classes = statistics.probabilities.shape
    # Crowds have an id too, but nothing is said of them. One annotation less, and all ids after it
    # would be those of their neighbours.
    ids = [a["annotation_id"] for rs in sets.values() for r in rs for a in r.get("annotations", ())]
    last = max(ids, default=-1)
    if last + 1 != num_rows or num_classes != len(classes) or num_classes < 2:
        raise ValueError(
            f"the statistics are of {num_rows} annotations and {num_classes} classes, the "
            f"training sets have ids up to {last} and {len(classes)} classes (at least 2 are "
            "needed): they are not of one run, or the data set has changed since"
        )


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
    unknown = sorted(set(classes) - set(audit.classes))
    if unknown:
        raise ValueError(f"the audit has no class {unknown}; it has {list(audit.classes)}")
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


def dataset_source(name: str) -> dict[str, Any]:
    """Where the files of a registered set are, for corrections.

    Returns:
        ``{"format": "voc", "root", "split", "other_classes"}``, ``{"format": "coco",
        "json_file"}``, or ``{"format": "other"}``
    """
    metadata = MetadataCatalog.get(name)
    if hasattr(metadata, "dirname") and hasattr(metadata, "split"):
        return {
            "format": "voc",
            "root": str(metadata.dirname),
            "split": metadata.split,
            "other_classes": metadata.get("other_classes", "error"),
        }
    if metadata.get("json_file"):
        return {"format": "coco", "json_file": str(metadata.json_file)}
    return {"format": "other"}


def _entries(sets: Mapping[str, Sequence[Record]]) -> Any:
    """Yield set, record, position and annotation of all that training looks at."""
    for name, records in sets.items():
        for record in records:
            for index, annotation in enumerate(record.get("annotations", ())):
                if not annotation.get("iscrowd", 0):
                    yield name, record, index, annotation


def _audited(
    entries: Sequence[tuple[str, Record, int, Record]],
    classes: Sequence[str],
    statistics: AnnotationStatistics,
) -> list[AuditedAnnotation]:
    ids = torch.tensor([annotation["annotation_id"] for *_, annotation in entries])
    classes_given = [int(annotation["category_id"]) for *_, annotation in entries]
    labels = torch.tensor(classes_given)
    probabilities = statistics.probabilities[ids]
    suggested = _without_given(probabilities, labels).argmax(dim=1).tolist()
    rows = torch.arange(len(ids))
    columns = {
        "suspicion": suspicion(probabilities, labels),
        "suggested_probability": probabilities[rows, suggested],
        "expected_correctness": probabilities[rows, labels],
        "confidence": statistics.mean_sigma[ids],
        "last_confidence": statistics.last_sigma[ids],
        "mean_loss": statistics.mean_loss[ids],
        "last_loss": statistics.last_loss[ids],
    }
    values = {key: _rounded(column) for key, column in columns.items()}
    best, best_classes = probabilities.topk(min(NUM_TOP, len(classes)), dim=1)
    tops = [
        tuple((classes[c], round(p, 4)) for c, p in zip(*row))
        for row in zip(best_classes.tolist(), best.tolist())
    ]
    return [
        AuditedAnnotation(
            annotation_id=annotation["annotation_id"],
            dataset=name,
            image_id=_image_id(record),
            index=index,
            file_name=str(record.get("file_name", "")),
            bbox=_box(annotation),
            label=classes[classes_given[i]],
            suggested_label=classes[suggested[i]],
            num_samples=int(statistics.num_samples[ids[i]]),
            top_labels=tops[i],
            **{key: column[i] for key, column in values.items()},
        )
        for i, (name, record, index, annotation) in enumerate(entries)
    ]


def _without_given(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return probabilities.scatter(1, labels[:, None], -1.0)


def _rounded(values: torch.Tensor) -> list[float]:
    """Six significant digits: what a file needs, and the same on every machine."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _box(annotation: Record) -> tuple[float, float, float, float]:
    box = BoxMode.convert(
        [float(x) for x in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYXY_ABS
    )
    x0, y0, x1, y1 = (round(x, 2) for x in box)
    return x0, y0, x1, y1


def _image_id(record: Record) -> str | int:
    # COCO's ids stay numbers; numpy's strings and numbers would not go into JSON.
    image_id = record["image_id"]
    return str(image_id) if isinstance(image_id, str) else int(image_id)
