"""How well an audit finds labels that are known to be wrong.

An annotation counts as wrong if its label was flipped or its box was added where there is no
object. All numbers are of the annotations that the audit ranked.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..data.annotation_ids import AnnotationTable
from ..data.formats.annotations import Annotation, Record
from ..files import write_json
from .records import LabelAudit

__all__ = [
    "AuditEvaluation",
    "ScoreQuality",
    "evaluate_audit",
    "evaluation_table",
    "plot_evaluation",
    "score_quality",
    "truth_from_manifest",
    "write_evaluation",
]

OURS = "suspicion"
# Below k = the number of wrong labels, beyond which no score can be all right.
CUTOFFS = (10, 50, 100, 500, 1000)


@dataclass(frozen=True)
class ScoreQuality:
    """How well one score ranks wrong labels first; fractions in [0, 1].

    Args:
        auroc: area under the ROC curve
        average_precision: area under the precision-recall curve
        precision_at: {k: share of wrong labels among the k most suspect}; the key "wrong" is for
            k = the number of wrong labels
    """

    auroc: float
    average_precision: float
    precision_at: dict[str, float]

    def by_name(self) -> dict[str, float]:
        """All of them by their names in tables and pictures."""
        precisions = {f"P@{k}": value for k, value in self.precision_at.items()}
        return {"AUROC": self.auroc, "AP": self.average_precision, **precisions}


@dataclass(frozen=True)
class AuditEvaluation:
    """
    Args:
        num_annotations: how many were ranked
        num_wrong: how many of them have a wrong label
        right_suggestions: share of the flipped labels that are among the most suspect, as many as
            labels are wrong, with the true class as their suggestion
        scores: {name: quality}
    """

    num_annotations: int
    num_wrong: int
    right_suggestions: float
    scores: dict[str, ScoreQuality]


def truth_from_manifest(
    table: AnnotationTable, lines: Iterable[Mapping[str, Any]], classes: Sequence[str]
) -> dict[int, int]:
    """{annotation id: true class} of datasets that hold the noise of a manifest on disk.

    Args:
        table: of the noisy datasets
        lines: from :func:`~sl_detectron.data.formats.manifest.read_manifest`
        classes: K names

    Raises:
        ValueError: the manifest is of other sets
    """
    by_image = defaultdict(list)
    for line in lines:
        by_image[line["dataset"], str(line["image_id"])].append(line)
    others = sorted({name for name, _ in by_image} - table.sources.keys())
    if others:
        raise ValueError(
            f"the manifest is of the datasets {others}, the audit of {list(table.sources)}: give "
            "the manifest the name that the dataset is registered by"
        )
    truth = table.true_classes()
    for record in table.records():
        changes = by_image[record["dataset"], str(record["image_id"])]
        gone = [c["annotation"] for c in changes if c["what"] == "missing"]
        for change in changes:
            if change["what"] not in ("label", "spurious"):
                continue
            # The manifest counts clean annotations; those that went missing are not there.
            index = change["annotation"] - sum(g < change["annotation"] for g in gone)
            wrong = _noisy_annotation(record, index, change, classes)
            old = change["old"]
            truth[wrong["annotation_id"]] = len(classes) if old is None else classes.index(old)
    return truth


def evaluate_audit(
    audit: LabelAudit,
    truth: Mapping[int, int],
    references: Mapping[str, Mapping[int, float]] | None = None,
) -> AuditEvaluation:
    """Compare the audit's ranking, its loss and other scores with the truth.

    Args:
        audit: the ranked list
        truth: {annotation id: true class id}, K for a box without an object
        references: {name: {annotation id: score}}, **higher is more suspect**

    Raises:
        ValueError: no label is wrong, or all are: then there is nothing to tell apart
    """
    names = {name: i for i, name in enumerate(audit.classes)}
    ids = [a.annotation_id for a in audit.annotations]
    true = np.array([truth[i] for i in ids])
    given = np.array([names[a.label] for a in audit.annotations])
    wrong = true != given
    if not 0 < wrong.sum() < len(wrong):
        raise ValueError(
            f"{wrong.sum()} of {len(wrong)} labels are wrong: an evaluation needs right and wrong "
            "labels; check that run and manifest are the right ones"
        )
    scores = {
        OURS: [a.suspicion for a in audit.annotations],
        "low confidence": [-a.confidence for a in audit.annotations],
        "plain loss": [a.mean_loss for a in audit.annotations],
    }
    for name, values in (references or {}).items():
        scores[name] = [values[i] for i in ids]
    num_wrong = int(wrong.sum())
    suggested = np.array([names[a.suggested_label] for a in audit.annotations])
    flipped = wrong & (true < len(names))
    # The audit's own order, most suspect first.
    found = (flipped & (suggested == true))[:num_wrong].sum()
    return AuditEvaluation(
        num_annotations=len(ids),
        num_wrong=num_wrong,
        right_suggestions=float(found / max(flipped.sum(), 1)),
        scores={name: score_quality(wrong, np.array(values)) for name, values in scores.items()},
    )


def evaluation_table(evaluation: AuditEvaluation) -> str:
    """A text table of an evaluation, in percent."""
    rows = [
        [name, *(f"{100 * x:.1f}" for x in quality.by_name().values())]
        for name, quality in evaluation.scores.items()
    ]
    metrics = evaluation.scores[OURS].by_name()
    table = tabulate(rows, ["score", *metrics], disable_numparse=True)
    return (
        f"{table}\n{evaluation.num_wrong} of {evaluation.num_annotations} labels are wrong; "
        f"right suggestions for {100 * evaluation.right_suggestions:.1f} % of the flipped ones "
        f"among the {evaluation.num_wrong} most suspect"
    )


def write_evaluation(evaluation: AuditEvaluation, path: str | os.PathLike) -> None:
    """Write an evaluation as JSON."""
    write_json(Path(path), asdict(evaluation), indent=1)


def plot_evaluation(evaluation: AuditEvaluation, path: str | os.PathLike) -> None:
    """Draw AUROC, AP and precision of every score as bars, by the suffix a PNG or PDF."""
    from matplotlib.figure import Figure  # pyplot would take the user's backend

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    metrics = list(evaluation.scores[OURS].by_name())
    width = 0.8 / len(evaluation.scores)
    for i, (name, quality) in enumerate(evaluation.scores.items()):
        places = np.arange(len(metrics)) + (i - (len(evaluation.scores) - 1) / 2) * width
        axes.bar(places, [100 * x for x in quality.by_name().values()], width, label=name)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set(ylabel="%", ylim=(0, 100))
    num_wrong, num_labels = evaluation.num_wrong, evaluation.num_annotations
    axes.axhline(100 * num_wrong / num_labels, color="gray", linewidth=0.8)
    axes.set_title(f"Finding {num_wrong} wrong of {num_labels} labels")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _noisy_annotation(
    record: Record, index: int, change: Mapping[str, Any], classes: Sequence[str]
) -> Annotation:
    """The annotation that a change made, if the dataset holds it."""
    new = change["new"] if change["what"] == "label" else change["new"]["category"]
    annotations: list[Annotation] = record["annotations"]
    if index < len(annotations) and new in classes:
        annotation = annotations[index]
        if annotation["category_id"] == classes.index(new):
            return annotation
    raise ValueError(
        f"by the manifest {change['what']} noise made annotation {change['annotation']} of image "
        f"{record['image_id']!r} a {new!r}, but it is not in the dataset: not this dataset's "
        "manifest"
    )


def score_quality(wrong: np.ndarray, scores: np.ndarray) -> ScoreQuality:
    """How well scores, of which higher is more suspect, rank what is wrong, some but not all."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    ranked = wrong[np.argsort(-scores, kind="stable")]
    num_wrong = int(wrong.sum())
    cutoffs = {str(k): k for k in CUTOFFS if k < num_wrong} | {"wrong": num_wrong}
    return ScoreQuality(
        auroc=float(roc_auc_score(wrong, scores)),
        average_precision=float(average_precision_score(wrong, scores)),
        precision_at={name: float(ranked[:k].mean()) for name, k in cutoffs.items()},
    )
