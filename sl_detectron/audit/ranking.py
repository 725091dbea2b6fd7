"""From the scores that a training run or a model gives annotations to the ranked list of an audit.

Shape legend: A annotations of the training sets, K classes.
"""

from collections.abc import Sequence

import torch

from ..data.annotation_ids import AnnotationTable
from ..data.formats.annotations import Annotation, Record
from ..data.many_objects import many_objects
from .few_classes import Distributions, blocks
from .records import AuditedAnnotation, LabelAudit
from .tracker import AnnotationStatistics

__all__ = ["audit_annotations", "suspicion"]

# How many of an annotation's most probable classes are kept.
NUM_TOP = 3


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


@many_objects()
def audit_annotations(table: AnnotationTable, statistics: AnnotationStatistics) -> LabelAudit:
    """Rank the annotations of training sets by :func:`suspicion`.

    Args:
        table: the annotations
        statistics: from the tracker of a training run on them, or of one pass over them

    Raises:
        ValueError: the statistics are of other annotations or classes
    """
    num_rows, num_classes = statistics.probabilities.shape
    classes = table.classes or tuple(map(str, range(num_classes)))
    if (num_rows, num_classes) != (table.num_annotations, len(classes)):
        raise ValueError(
            f"the statistics cover {num_rows} annotations and {num_classes} classes, the table "
            f"has {table.num_annotations} and {len(classes)}: they belong to different runs"
        )
    statistics = AnnotationStatistics._make(values.cpu() for values in statistics)
    entries = [
        (record, index, annotation)
        for record in table.records()
        for index, annotation in enumerate(record["annotations"])
        if "iscrowd" not in annotation
    ]
    seen = [e for e in entries if statistics.num_samples[e[2]["annotation_id"]] > 0]
    annotations = _audited(seen, classes, statistics) if seen else []
    annotations.sort(key=lambda a: (-a.suspicion, a.annotation_id))
    num_unseen = len(entries) - len(seen)
    return LabelAudit(classes, table.sources, tuple(annotations), num_unseen, table.fingerprint)


def _audited(
    entries: Sequence[tuple[Record, int, Annotation]],
    classes: Sequence[str],
    statistics: AnnotationStatistics,
) -> list[AuditedAnnotation]:
    ids = torch.tensor([annotation["annotation_id"] for *_, annotation in entries])
    labels = torch.tensor([annotation["category_id"] for *_, annotation in entries])
    columns, suggested, tops = _columns_of_classes(statistics.probabilities[ids], labels, classes)
    columns |= {
        "confidence": statistics.mean_sigma[ids],
        "last_confidence": statistics.last_sigma[ids],
        "mean_loss": statistics.mean_loss[ids],
        "last_loss": statistics.last_loss[ids],
    }
    values = {key: _rounded(column) for key, column in columns.items()}
    num_samples = statistics.num_samples[ids].tolist()
    return [
        AuditedAnnotation(
            annotation_id=annotation["annotation_id"],
            dataset=record["dataset"],
            image_id=record["image_id"],
            index=index,
            file_name=record["file_name"],
            bbox=tuple(annotation["bbox"]),
            label=classes[annotation["category_id"]],
            suggested_label=classes[suggested[i]],
            num_samples=num_samples[i],
            top_labels=tops[i],
            **{key: column[i] for key, column in values.items()},
        )
        for i, (record, index, annotation) in enumerate(entries)
    ]


def _columns_of_classes(
    distributions: Distributions, labels: torch.Tensor, classes: Sequence[str]
) -> tuple[dict[str, torch.Tensor], list[int], list[tuple[tuple[str, float], ...]]]:
    """Columns by name, the best other classes, and the most probable ones with probabilities."""
    parts, tops = [], []
    for rows, probabilities in blocks(distributions):
        given = labels[rows]
        suggested = _without_given(probabilities, given).argmax(dim=1)
        of_classes = torch.stack([suggested, given], dim=1)
        values = probabilities.gather(1, of_classes).unbind(dim=1)
        parts.append((suspicion(probabilities, given), *values, suggested))
        best, best_classes = probabilities.topk(min(NUM_TOP, len(classes)), dim=1)
        tops += [
            tuple((classes[c], round(p, 4)) for c, p in zip(*row))
            for row in zip(best_classes.tolist(), best.tolist())
        ]
    *columns, suggested = map(torch.cat, zip(*parts))
    names = ("suspicion", "suggested_probability", "expected_correctness")
    return dict(zip(names, columns)), suggested.tolist(), tops


def _without_given(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return probabilities.scatter(1, labels[:, None], -1.0)


def _rounded(values: torch.Tensor) -> list[float]:
    """Six significant digits: what a file needs, and the same on every machine."""
    return [float(f"{value:.6g}") for value in values.tolist()]
