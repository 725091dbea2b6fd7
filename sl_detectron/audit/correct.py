"""Corrected copies of datasets: what was decided changes, nothing else does.

Each dataset with a correction gets a folder: a VOC devkit folder with links to what does not
change, where the bytes of wrong annotations do, or the COCO json. ``corrections.jsonl`` in it says
what was changed, in the form of a manifest of label noise, in which an added object is "spurious".
With it :func:`~sl_detectron.data.formats.restore.restore_clean` makes the original again. The
originals are only read.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from ..data.formats.annotations import corners, from_corners
from ..data.formats.changes import Change
from ..data.formats.coco_json import CocoFile
from ..data.formats.devkit import FileChanges, copy_devkit
from ..data.formats.edits import apply_edits
from ..data.formats.manifest import write_manifest
from ..data.formats.restore import COPY_FILES, CORRECTION, CORRECTIONS
from ..data.formats.voc_set import read_voc_annotations
from ..data.formats.voc_xml import VOCAnnotation, zero_based
from ..files import new_folder, refuse_to_overwrite, write_json
from .decisions import Decision, Decisions
from .kinds import SAME
from .records import Box

__all__ = ["apply_decisions", "folder_names"]


def apply_decisions(decisions: Decisions, out: str | os.PathLike) -> dict[str, int]:
    """Write a corrected copy of every dataset in which something was found wrong.

    Of several decisions about one annotation, one that takes its box away decides; else it gets
    the class of one and the box of another. Of several missing objects of one class that overlap by
    an IoU of 0.5 and more, as reports of two detectors suggest them, the first is added: no report
    suggests two such boxes. New boxes are clipped to their image, and rounded: to
    whole pixels in VOC's XML, to hundredths in a COCO json. A mask stays as it is.

    Args:
        decisions: those with the verdict "wrong" are carried out
        out: new folder; each dataset goes to the folder in it that :func:`folder_names` says

    Returns:
        {dataset name: number of annotations that are corrected, added or removed}

    Raises:
        FileExistsError: ``out`` exists
        FileNotFoundError: a dataset is not where it was
        ValueError: there is nothing to correct, decisions contradict each other, a dataset is
            neither VOC nor COCO, or its files do not have the annotation that a decision is about,
            or other classes
    """
    out = Path(out)
    by_set: dict[str, list[Decision]] = defaultdict(list)
    for decision in _corrections(decisions.decisions):
        by_set[decision.dataset].append(decision)
    if not by_set:
        raise ValueError("no decision marks an annotation as wrong: there is nothing to correct")
    for name in by_set:
        source = decisions.sources[name]
        if source.get("format") not in _WRITERS:
            raise ValueError(
                f"dataset {name!r} is neither a VOC devkit folder nor a COCO json; "
                "apply the file of decisions to it yourself"
            )
        path = Path(source.get("root") or source.get("json_file") or "")
        if not path.exists():
            raise FileNotFoundError(f"dataset {name!r} is no longer at {path}")
        refuse_to_overwrite(out, path)
    with new_folder(out) as partial:
        folders = folder_names(decisions.sources)
        for name, wrong in by_set.items():
            target = partial / folders[name]
            target.mkdir(parents=True)
            _WRITERS[decisions.sources[name]["format"]](decisions, name, wrong, target)
    return {name: len(wrong) for name, wrong in by_set.items()}


def _corrections(decisions: Iterable[Decision]) -> list[Decision]:
    """One for each annotation and each missing object, as far as they change anything."""
    added, about = [], defaultdict(list)
    for decision in decisions:
        if decision.verdict == "wrong" and decision.index < 0:
            added.append(decision)
        elif decision.verdict == "wrong":
            key = decision.dataset, str(decision.image_id), decision.index
            about[key].append(decision)
    merged = map(_merged, about.values())
    return [*(d for d in merged if d.label != d.given or d.box is not None), *_distinct(added)]


def _distinct(added: Sequence[Decision]) -> list[Decision]:
    """The first decision about each missing object."""
    kept: dict[Any, list[Decision]] = defaultdict(list)
    for decision in added:
        same = kept[decision.dataset, str(decision.image_id), decision.label]
        box = Boxes(torch.tensor([decision.box]))
        others = Boxes(torch.tensor([d.box for d in same]).reshape(-1, 4))
        if not (pairwise_iou(box, others) >= SAME).any():
            same.append(decision)
    return [*chain.from_iterable(kept.values())]


def _merged(decisions: Sequence[Decision]) -> Decision:
    """What several decisions, as of a wrong class and of a misplaced box, make of an annotation."""
    first = decisions[0]
    where = f"image {first.image_id!r} of {first.dataset!r}, annotation {first.index}"
    if len({d.given for d in decisions}) > 1:
        raise ValueError(
            f"{where}: decisions are about {sorted({str(d.given) for d in decisions})}"
        )
    if any(d.label is None for d in decisions):
        return replace(first, label=None, box=None)
    labels = sorted({str(d.label) for d in decisions} - {str(first.given)})
    if len(labels) > 1:
        raise ValueError(f"{where}: one decision makes it {labels[0]!r}, another {labels[1]!r}")
    boxes = [d.box for d in decisions if d.box is not None]
    label = labels[0] if labels else first.given
    return replace(first, label=label, box=boxes[0] if boxes else None)


class _Marked(NamedTuple):
    """What a file has of one image.

    Args:
        path: of the file
        names: of the classes of its annotations
        boxes: of these, in ``mode``
        mode: of boxes in the file
        size: (width, height) in pixels; None if unknown
    """

    path: Path
    names: Sequence[str]
    boxes: Sequence[Sequence[float]]
    mode: BoxMode
    size: tuple[int, int] | None


def _write_voc(decisions: Decisions, name: str, wrong: list[Decision], target: Path) -> None:
    classes = decisions.classes
    source = decisions.sources[name]
    root = Path(source["root"]).resolve()
    try:
        # By another class list the objects of a file would be counted otherwise than training did;
        # what has a flaw was either not there or left out.
        annotations = read_voc_annotations(
            *(root, source["split"], classes, source.get("other_classes", "error")),
            bad_annotations="skip",
        )
    except ValueError as error:
        raise ValueError(f"the decisions do not fit dataset {name!r}: {error}") from error
    changed: dict[str, FileChanges] = {}
    for image_id, group in sorted(_by_image(wrong).items()):
        path = root / "Annotations" / f"{image_id}.xml"
        if image_id not in annotations and group[0].index < 0:
            raise ValueError(f"{path}: image {image_id!r} is not in the set {source['split']!r}")
        annotation = annotations.get(image_id, VOCAnnotation(str(path), None, [], []))
        names = [o.name for o in annotation.objects]
        boxes = [zero_based(o.box) for o in annotation.objects]
        marked = _Marked(path, names, boxes, BoxMode.XYXY_ABS, annotation.size)
        changes = [*_changes(marked, group, classes)]
        changed[f"{image_id}.xml"] = changes, annotation.positions
    # Files of a noisy copy speak of noise that the corrected copy does not have.
    leave_out = (*COPY_FILES, CORRECTIONS, CORRECTION)
    copy_devkit(root, target, changed, classes, name, CORRECTIONS, leave_out=leave_out)
    _describe(target, name, "", [f"Annotations/{file}" for file in changed])


def _write_coco(decisions: Decisions, name: str, wrong: list[Decision], target: Path) -> None:
    source = decisions.sources[name]
    # What was outside of an image whose size only its file says was left out by the training too.
    coco = CocoFile(source["json_file"], source.get("image_root"), bad_annotations="skip")
    classes = coco.class_names
    if set(classes) != set(decisions.classes):
        raise ValueError(f"{coco.path} has the classes {classes}, not {list(decisions.classes)}")
    records = {str(record["image_id"]): record for record in coco.records()}
    changes: list[Change] = []
    for image_id, group in sorted(_by_image(wrong).items()):
        if image_id not in records and group[0].index < 0:
            raise ValueError(f"{coco.path} has no image {image_id!r}")
        record = records.get(image_id, {"annotations": []})
        names = [classes[a["category_id"]] for a in record["annotations"]]
        boxes = [a["bbox"] for a in record["annotations"]]
        size = (record["width"], record["height"]) if "width" in record else None
        marked = _Marked(coco.path, names, boxes, BoxMode.XYWH_ABS, size)
        changes += _changes(marked, group, classes)
    edits = coco.edits(changes)
    (target / coco.path.name).write_bytes(apply_edits(coco.content, chain.from_iterable(edits)))
    write_manifest(target / CORRECTIONS, changes, classes, name, edits)
    _describe(target, name, coco.path.name, [coco.path.name])


_WRITERS = {"voc": _write_voc, "coco": _write_coco}


def _by_image(wrong: Iterable[Decision]) -> dict[str, list[Decision]]:
    """Decisions of each image, in the order of its annotations; missing objects come last."""
    by_image: dict[str, list[Decision]] = defaultdict(list)
    for decision in sorted(wrong, key=lambda d: (d.index < 0, d.index)):
        by_image[str(decision.image_id)].append(decision)
    return by_image


def _describe(target: Path, dataset: str, file: str, changed: Iterable[str]) -> None:
    """Write what a restore asks for; ``file`` as noise.json has it."""
    digests = {name: sha256((target / name).read_bytes()).hexdigest() for name in changed}
    write_json(target / CORRECTION, {"file": file, "dataset": dataset, "sha256": digests}, indent=2)


def _changes(
    image: _Marked, decisions: Sequence[Decision], classes: Sequence[str]
) -> Iterator[Change]:
    """What decisions about one image make of its annotations."""
    num = len(image.names)
    for decision in decisions:
        of = decision.image_id
        if decision.index < 0:
            box = _placed(decision, image)
            new = {"category_id": classes.index(str(decision.label)), "bbox": box}
            yield Change(of, num, "spurious", None, new)
            num += 1
            continue
        _check(decision, image)
        index, given = decision.index, classes.index(str(decision.given))
        old_box = [float(x) for x in image.boxes[index]]
        if decision.label is None:
            old = {"category_id": given, "bbox": old_box}
            yield Change(of, index, "missing", old, None)
        elif decision.label != decision.given:
            yield Change(of, index, "label", given, classes.index(decision.label))
        if decision.label is not None and decision.box is not None:
            yield Change(of, index, "box", old_box, _placed(decision, image))


def _placed(decision: Decision, image: _Marked) -> list[float]:
    """A decided box as it goes into the file."""
    is_voc = image.mode == BoxMode.XYXY_ABS
    x0, y0, x1, y1 = (round(x, None if is_voc else 2) for x in decision.box or ())
    width, height = image.size or (x1, y1)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(
            f"{image.path}: the decided box {list(decision.box or ())} has no area in image "
            f"{decision.image_id!r} of {width} x {height} pixels"
        )
    return [float(round(x, 2)) for x in from_corners((x0, y0, x1, y1), image.mode)]


def _check(decision: Decision, image: _Marked) -> None:
    """Refuse a decision about an annotation that is not among those of its image."""
    has = "there is no such annotation"
    audited: Box | tuple[()] = decision.bbox or ()
    if decision.index < len(image.names):
        name = image.names[decision.index]
        box = corners({"bbox": image.boxes[decision.index], "bbox_mode": image.mode})
        # Boxes of an audit are rounded to hundredths.
        if name == decision.given and all(abs(a - b) < 0.1 for a, b in zip(box, audited)):
            return
        has = f"it is {name!r} at {box}"
    raise ValueError(
        f"{image.path}: annotation {decision.index} of image {decision.image_id!r} was audited as "
        f"{decision.given!r} at {list(audited)}, but {has}; the files changed, or the "
        "wrong labels came from DATASETS.LABEL_NOISE, not from files (sl-inject-noise makes "
        "noisy files)"
    )


def folder_names(datasets: Iterable[str]) -> dict[str, str]:
    """Names of datasets as those of folders, each another also where case does not count.

    Example:
        >>> folder_names(["voc_2007", "a/b", "a_b", "..", ""])
        {'voc_2007': 'voc_2007', 'a/b': 'a_b', 'a_b': 'a_b-2', '..': '_', '': '_-2'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for dataset in datasets:
        # "a/b" must not make two folders, nor ".." leave ours.
        plain = re.sub(r"[^\w.-]|^\.+", "_", dataset) or "_"
        tries = chain([plain], (f"{plain}-{number}" for number in count(2)))
        names[dataset] = next(name for name in tries if name.casefold() not in taken)
        taken.add(names[dataset].casefold())
    return names
