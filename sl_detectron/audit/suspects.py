"""One ranked list of what looks wrong in the annotations, of all kinds."""

import os
from collections.abc import Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..data.annotation_ids import AnnotationTable
from ..data.formats.annotations import Record
from .files import read_json, write_list
from .kinds import (
    KINDS,
    ImageAnswers,
    drawn_boxes,
    duplicate_scores,
    expected_misplacement,
    misplaced_box_scores,
    missing_objects,
    no_object_scores,
)
from .records import Box, LabelAudit, Suspect, SuspectList
from .score_annotations import AnnotationScores
from .tracker import AnnotationStatistics

__all__ = [
    "TRACKED_KINDS",
    "find_suspects",
    "image_answers",
    "read_suspects",
    "tracked_suspects",
    "wrong_classes",
    "write_suspects",
]

SUSPECTS_JSON = "suspects.json"
# What the statistics of a training run suffice for.
TRACKED_KINDS = ("wrong_class", "misplaced_box", "no_object")


def find_suspects(
    table: AnnotationTable, scores: AnnotationScores, audit: LabelAudit, kinds: Collection[str]
) -> SuspectList:
    """The ranked list of chosen kinds.

    Args:
        table: the annotations
        scores: of them, with detections
        audit: of them, which ranks wrong classes
        kinds: some of :data:`~sl_detectron.audit.kinds.KINDS`

    Raises:
        ValueError: an unknown kind, or scores of other images
    """
    unknown = sorted({*kinds} - {*KINDS})
    if unknown:
        raise ValueError(f"there is no kind {unknown[0]!r}; the kinds are {KINDS}")
    suspects = [*wrong_classes(audit).suspects] if "wrong_class" in kinds else []
    if {*kinds} - {"wrong_class"}:
        expected = 0.0
        if "misplaced_box" in kinds:  # goes through all images once more
            expected = expected_misplacement(image for *_, image in image_answers(table, scores))
        for record, places, image in image_answers(table, scores):
            misplaced = misplaced_box_scores(image, expected)
            suspects += _of_image(record, places, image, misplaced, audit.classes)
    return _ranked([s for s in suspects if s.kind in kinds], audit)


def tracked_suspects(
    table: AnnotationTable,
    statistics: AnnotationStatistics,
    audit: LabelAudit,
    kinds: Collection[str],
) -> SuspectList:
    """The ranked list of chosen kinds by the statistics of a training run, without a pass.

    The score of ``no_object`` is 1 - the mean probability of an object, that of ``misplaced_box``
    1 - exp(-mean box loss), without a suggestion. Both are means over the whole training run, its
    beginning included: they rank, and their scale is not that of a pass.

    Args:
        table: the annotations
        statistics: of them
        audit: of them, which ranks wrong classes
        kinds: some of :data:`TRACKED_KINDS`

    Raises:
        ValueError: the statistics do not suffice for a kind; the message names the remedy
    """
    scores = {"no_object": 1 - statistics.mean_object}
    scores["misplaced_box"] = 1 - (-statistics.mean_box_loss).exp()
    for kind in kinds:
        if kind not in TRACKED_KINDS:
            raise ValueError(f"a run has no statistics for {kind}: leave out --statistics, so that "
                             "the images are read")  # fmt: skip
        if kind in scores and scores[kind].isnan().all():
            why = "its box loss had no SuperLoss (MODEL.SUPERLOSS.BOX_REG.ENABLED)"
            if kind == "no_object":
                why = "a version that did not track it started the run"
            raise ValueError(
                f"the statistics of the run do not suffice for {kind}: {why}; leave out "
                "--statistics, so that the images are read"
            )
    suspects = [*wrong_classes(audit).suspects] if "wrong_class" in kinds else []
    for a in audit.annotations:
        of: dict[str, Any] = {"annotation_id": a.annotation_id, "index": a.index, "bbox": a.bbox,
                              "label": a.label, "suggested_label": a.label}  # fmt: skip
        for kind in (kind for kind in scores if kind in kinds):
            score = _digits(scores[kind][a.annotation_id])
            suspects.append(Suspect(kind, score, a.dataset, a.image_id, a.file_name, **of))
    return _ranked(suspects, audit)


def _ranked(suspects: list[Suspect], audit: LabelAudit) -> SuspectList:
    # A sort that is stable: the order of the sets among equals.
    ranked = sorted(suspects, key=lambda s: (-s.score, KINDS.index(s.kind)))
    return SuspectList(audit.classes, audit.sources, tuple(ranked), audit.fingerprint)


def wrong_classes(audit: LabelAudit) -> SuspectList:
    """The list of a label audit as one of the kind ``wrong_class``."""
    suspects = (
        Suspect(
            *("wrong_class", a.suspicion, a.dataset, a.image_id, a.file_name),
            *(a.annotation_id, a.index, a.label, a.bbox, a.suggested_label),
        )
        for a in audit.annotations
    )
    return SuspectList(audit.classes, audit.sources, tuple(suspects), audit.fingerprint)


def image_answers(
    table: AnnotationTable, scores: AnnotationScores
) -> Iterator[tuple[Record, list[int], ImageAnswers]]:
    """Per image its record, the positions of the G annotations that were scored, and the answers.

    Raises:
        ValueError: there are not detections of each image
    """
    if len(scores.detections) != len(table.images):
        raise ValueError(
            f"the detections cover {len(scores.detections)} images, the table has "
            f"{len(table.images)}: they come from different passes"
        )
    background, refined = _by_annotation(scores, table.num_annotations)
    for record, found in zip(table.records(), scores.detections):
        entries = [*enumerate(record["annotations"])]
        counted = [(i, a) for i, a in entries if "iscrowd" not in a]
        # What no anchor was matched to, and what is in a broken image, has no answer.
        places = [i for i, a in counted if not background[a["annotation_id"]].isnan()]
        kept = [record["annotations"][i] for i in places]
        ids = torch.tensor([a["annotation_id"] for a in kept], dtype=torch.int64)
        unscored = [a for i, a in entries if i not in places]
        yield (
            record,
            places,
            ImageAnswers(
                _boxes_of(kept),
                torch.tensor([a["category_id"] for a in kept], dtype=torch.int64),
                background[ids],
                refined[ids],
                *_found(found),
                crowds=_boxes_of(unscored),
            ),
        )


def _found(found: Instances) -> tuple[Tensor, Tensor, Tensor]:
    return found.pred_boxes.tensor.float(), found.scores.float(), found.pred_classes


def _boxes_of(annotations: list[Record]) -> Tensor:
    boxes: list[Any] = [a["bbox"] for a in annotations]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _by_annotation(scores: AnnotationScores, num: int) -> tuple[Tensor, Tensor]:
    """(A,) least background and (A, 4) mean box by foreground, of the samples; nan for none."""
    ids, weights = scores.ids, (1 - scores.background).clamp_min(1e-6).double()
    background = torch.full((num,), torch.inf)
    background = background.scatter_reduce(0, ids, scores.background, "amin")
    boxes = torch.zeros(num, 4, dtype=torch.float64)
    boxes.index_add_(0, ids, weights[:, None] * scores.boxes)
    total = torch.zeros(num, dtype=torch.float64).index_add_(0, ids, weights)
    background[background.isinf()] = torch.nan
    return background, (boxes / total[:, None]).float()


def _of_image(
    record: Record,
    places: list[int],
    image: ImageAnswers,
    misplaced: Tensor,
    classes: tuple[str, ...],
) -> Iterator[Suspect]:
    where = {key: record[key] for key in ("dataset", "image_id", "file_name")}
    drawn, _ = drawn_boxes(image)
    repeats, better = duplicate_scores(image)
    background = no_object_scores(image)
    for row, index in enumerate(places):
        a = record["annotations"][index]
        label = classes[a["category_id"]]
        of: dict[str, Any] = {"annotation_id": a["annotation_id"], "index": index, "label": label}
        of |= {"bbox": _rounded(a["bbox"]), "suggested_label": label, **where}
        box = _rounded(drawn[row].tolist())
        yield Suspect("misplaced_box", _digits(misplaced[row]), suggested_bbox=box, **of)
        yield Suspect("no_object", _digits(background[row]), **of)
        other = places[int(better[row])] if better[row] >= 0 else None
        repeated = None if other is None else _rounded(record["annotations"][other]["bbox"])
        yield Suspect("duplicate", _digits(repeats[row]), suggested_bbox=repeated, **of)
    for position, score in zip(*missing_objects(image)):
        box = _rounded(image.found[position].tolist())
        label = classes[int(image.found_classes[position])]
        suggestion: dict[str, Any] = {"suggested_label": label, "suggested_bbox": box}
        yield Suspect("missing_object", _digits(score), **suggestion, **where)


def _digits(score: Tensor) -> float:
    """Six significant digits, as the scores of wrong classes have."""
    return float(f"{float(score):.6g}")


def _rounded(box: Any) -> Box:
    x0, y0, x1, y1 = (round(float(x), 2) for x in box)
    return x0, y0, x1, y1


def write_suspects(suspects: SuspectList, folder: str | os.PathLike) -> None:
    """Write ``suspects.json`` and ``suspects.csv`` into a folder, in the place of older ones."""
    head = {
        "score": "in [0, 1]; higher is more suspect; comparable within a kind",
        "classes": suspects.classes,
        "sources": suspects.sources,
        "fingerprint": suspects.fingerprint,
    }
    names = [f.name for f in fields(Suspect)]
    rows = ({name: getattr(s, name) for name in names} for s in suspects.suspects)
    columns = [name for name in names if "bbox" not in name]
    boxes = {"bbox": "", "suggested_bbox": "suggested_"}
    write_list(Path(folder, SUSPECTS_JSON), head, "suspects", rows, columns, boxes)


def read_suspects(path: str | os.PathLike) -> SuspectList:
    """Read what :func:`write_suspects` wrote.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is no list of suspects
    """

    def parse(data: dict[str, Any]) -> SuspectList:
        rows = []
        for row in data["suspects"]:
            boxes = {key: row[key] and _rounded(row[key]) for key in ("bbox", "suggested_bbox")}
            rows.append(Suspect(**{**row, **boxes}))
        numbers = int(data["fingerprint"])
        return SuspectList(tuple(data["classes"]), data["sources"], tuple(rows), numbers)

    return read_json(path, "list of suspects", "sl-audit --kinds makes one", parse)
