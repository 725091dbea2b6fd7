"""How well each kind of suspect is found, against annotations that are taken for true."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from tabulate import tabulate

from ..data.annotation_ids import AnnotationTable
from ..files import write_json
from .compare import SetComparison
from .kinds import KINDS, SAME
from .objectlab import objectlab_box_scores, objectlab_scores
from .records import SuspectList
from .score_annotations import AnnotationScores
from .scoring import ScoreQuality, score_quality

__all__ = [
    "KindEvaluation",
    "Ranked",
    "evaluate_kinds",
    "kinds_table",
    "objectlab_ranked",
    "write_kinds_evaluation",
]

OURS = "sl_detectron"
PRECISION = 0.9
Box = Sequence[float]


@dataclass(frozen=True)
class Ranked:
    """Something that a score ranks.

    Args:
        image: name of the image's file without folders and suffix
        index: position of an annotation in the image; -1 for a missing object
        score: higher is more suspect
        bbox: of a missing object
    """

    image: str
    index: int
    score: float
    bbox: Box = ()


@dataclass(frozen=True)
class KindEvaluation:
    """How well a kind is found; fractions in [0, 1].

    Args:
        num_ranked: how many suspects of this kind our list has in images that both sets have
        num_wrong: how many flaws of this kind there are: of these annotations, or missing objects
        scores: {name: quality}; none where nothing can be told apart. Of missing objects the AUROC
            is of the candidates of that score, and the average precision counts an object that is
            no candidate as not found
        found: {name: how many flaws are found before the precision falls below 0.9 for good}
        iou_before, iou_after: of misplaced boxes, the mean IoU with the true box of what is
            annotated, and of what is suggested; else None
    """

    num_ranked: int
    num_wrong: int
    scores: dict[str, ScoreQuality]
    found: dict[str, int]
    iou_before: float | None = None
    iou_after: float | None = None


def evaluate_kinds(
    suspects: SuspectList,
    comparison: SetComparison,
    kinds: Iterable[str],
    references: Mapping[str, Mapping[str, Sequence[Ranked]]],
) -> dict[str, KindEvaluation]:
    """Compare the ranking of each kind, and other scores of it, with what differs.

    Args:
        suspects: of the given annotations
        comparison: of the same annotations with true ones
        kinds: to evaluate
        references: {kind: {name: what another score ranks}}

    Returns:
        {kind: evaluation}
    """
    images = {*comparison.images}
    result = {}
    for kind in kinds:
        ours = [
            Ranked(Path(s.file_name).stem, s.index, s.score, s.suggested_bbox or ())
            for s in suspects.suspects
            if s.kind == kind
        ]
        rankings = {OURS: ours, **references.get(kind, {})}
        rankings = {name: [r for r in rows if r.image in images] for name, rows in rankings.items()}
        if kind != "missing_object":
            # All scores are of the same annotations: not each has an answer of the detector.
            places = {(r.image, r.index) for r in rankings[OURS]}
            rankings = {
                name: [r for r in rows if (r.image, r.index) in places]
                for name, rows in rankings.items()
            }
        result[kind] = _evaluate(kind, rankings, comparison)
        if kind == "misplaced_box":
            result[kind] = _with_ious(result[kind], rankings[OURS], comparison)
    return result


def _evaluate(
    kind: str, rankings: Mapping[str, Sequence[Ranked]], comparison: SetComparison
) -> KindEvaluation:
    flaws = [d for d in comparison.differences if d.kind == kind]
    scores, found = {}, {}
    places = {(d.image, d.given) for d in flaws}
    num_wrong = len(flaws)
    if kind != "missing_object":
        num_wrong = sum((r.image, r.index) in places for r in rankings[OURS])
    for name, rows in rankings.items():
        rows = sorted(rows, key=lambda r: -r.score)
        if kind == "missing_object":
            hits = _hits(rows, [(d.image, d.true_bbox or ()) for d in flaws])
        else:
            hits = np.array([(r.image, r.index) in places for r in rows], dtype=bool)
        if not 0 < hits.sum() < len(hits):
            continue
        quality = score_quality(hits, np.array([r.score for r in rows]))
        share = hits.sum() / num_wrong
        scores[name] = replace(quality, average_precision=quality.average_precision * share)
        counts = np.cumsum(hits)
        precise = counts >= PRECISION * np.arange(1, len(hits) + 1)
        found[name] = int(counts[precise].max(initial=0))
    return KindEvaluation(len(rankings[OURS]), num_wrong, scores, found)


def _hits(rows: Sequence[Ranked], missing: Iterable[tuple[str, Box]]) -> np.ndarray:
    """Whether each candidate, best first, is a missing object that none before it was."""
    left: dict[str, list[Box]] = defaultdict(list)
    for image, box in missing:
        left[image].append(box)
    hits = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        if not left[row.image]:
            continue
        overlaps = _iou([row.bbox], left[row.image])[0]
        best = int(overlaps.argmax())
        if overlaps[best] >= SAME:
            hits[i] = True
            del left[row.image][best]
    return hits


def _iou(one: Sequence[Box], other: Sequence[Box]) -> torch.Tensor:
    boxes = (Boxes(torch.tensor(rows, dtype=torch.float64)) for rows in (one, other))
    return pairwise_iou(*boxes)


def _with_ious(
    evaluation: KindEvaluation, ours: Sequence[Ranked], comparison: SetComparison
) -> KindEvaluation:
    suggested = {(r.image, r.index): r.bbox for r in ours}
    pairs = [
        (d.iou, float(_iou([suggested[d.image, d.given]], [d.true_bbox or ()])))
        for d in comparison.differences
        if d.kind == "misplaced_box" and suggested.get((d.image, d.given))
    ]
    if not pairs:
        return evaluation
    before, after = np.mean(pairs, axis=0).tolist()
    return replace(evaluation, iou_before=before, iou_after=after)


def objectlab_ranked(
    table: AnnotationTable, scores: AnnotationScores, num_classes: int
) -> dict[str, dict[str, list[Ranked]]]:
    """What cleanlab's ObjectLab ranks of each kind that it has a score of, by the same detections.

    It has none of boxes without an object: its score of a badly located box takes one that no
    detection is near to for right.

    Args:
        table: the annotations
        scores: of them, with detections
        num_classes: K

    Raises:
        ImportError: cleanlab is not installed
    """
    records = [*table.records()]
    places = {
        a["annotation_id"]: (Path(record["file_name"]).stem, index)
        for record in records
        for index, a in enumerate(record["annotations"])
    }
    of_label = objectlab_scores(records, scores.detections, num_classes)
    badly_located, overlooked = objectlab_box_scores(records, scores.detections, num_classes)
    by_id = {
        "wrong_class": {name: of_label[name] for name in ("swap", "swap at 0.5")},
        "misplaced_box": {"badloc": badly_located},
    }
    ranked = {
        kind: {
            f"ObjectLab, {name}": [Ranked(*places[i], 1 - q) for i, q in qualities.items()]
            for name, qualities in of_kind.items()
        }
        for kind, of_kind in by_id.items()
    }
    candidates = [
        Ranked(Path(record["file_name"]).stem, -1, 1 - quality, box)
        for record, rows in zip(records, overlooked)
        for box, quality in rows
    ]
    return {**ranked, "missing_object": {"ObjectLab, overlooked": candidates}}


def kinds_table(evaluation: Mapping[str, KindEvaluation]) -> str:
    """A text table of an evaluation, in percent."""
    rows, lines = [], []
    for kind in (k for k in KINDS if k in evaluation):
        e = evaluation[kind]
        if not e.scores:
            lines.append(f"{kind}: {e.num_wrong} flaws, so that there is nothing to tell apart")
        for name, quality in e.scores.items():
            values = (quality.auroc, quality.average_precision, quality.precision_at["wrong"])
            percent = [f"{100 * x:.1f}" for x in values]
            rows.append([kind, name, *percent, e.found[name], e.num_wrong])
        if e.iou_after is not None:
            moved = f"from {e.iou_before:.3f} to {e.iou_after:.3f}"
            lines.append(f"misplaced boxes: the suggestions take the mean IoU {moved}")
    head = ["kind", "score", "AUROC", "AP", "P@wrong", f"found at P {PRECISION}", "flaws"]
    return "\n".join([tabulate(rows, head, disable_numparse=True), *lines])


def write_kinds_evaluation(
    evaluation: Mapping[str, KindEvaluation], path: str | os.PathLike
) -> None:
    """Write an evaluation as JSON."""
    write_json(Path(path), {kind: asdict(e) for kind, e in evaluation.items()}, indent=1)
