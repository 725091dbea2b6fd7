"""From what a training or a model says about annotations to the ranked list of a label audit.

Shape legend: A annotations of the training sets, K classes.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import BoxMode

from ..data.annotation_ids import annotation_fingerprint
from ..data.formats.annotations import image_id_of
from .records import AuditedAnnotation, LabelAudit, dataset_source
from .tracker import AnnotationStatistics

__all__ = ["audit_annotations", "suspicion"]

# How many of an annotation's most probable classes are kept.
NUM_TOP = 3

logger = logging.getLogger(__name__)

Record = dict[str, Any]


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
            :func:`~sl_detectron.label_noise.noisy_dataset_dicts` returns them
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
            image_id=image_id_of(record),
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
