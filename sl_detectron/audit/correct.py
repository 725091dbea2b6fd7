"""Corrected copies of datasets: wrong labels change, nothing else does.

Each dataset with a correction gets a folder: a VOC devkit folder with links to what does not
change, where the bytes of wrong labels do, or the COCO json. ``corrections.jsonl`` in it says what
was changed, in the form of a manifest of label noise. The originals are only read.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path

from ..data.formats.annotations import corners
from ..data.formats.changes import Change
from ..data.formats.coco_json import CocoFile
from ..data.formats.devkit import FileChanges, copy_devkit
from ..data.formats.manifest import write_manifest
from ..data.formats.restore import COPY_FILES
from ..data.formats.voc_set import read_voc_annotations
from ..data.formats.voc_xml import VOCAnnotation, zero_based
from ..files import new_folder, refuse_to_overwrite
from .decisions import Decision, Decisions

__all__ = ["CORRECTIONS", "apply_decisions", "folder_names"]

CORRECTIONS = "corrections.jsonl"


def apply_decisions(decisions: Decisions, out: str | os.PathLike) -> dict[str, int]:
    """Write a corrected copy of every dataset in which something was found wrong.

    Args:
        decisions: those with the verdict "wrong" are carried out
        out: new folder; each dataset goes to the folder in it that :func:`folder_names` says

    Returns:
        {dataset name: number of corrections}

    Raises:
        FileExistsError: ``out`` exists
        FileNotFoundError: a dataset is not where it was
        ValueError: there is nothing to correct, a dataset is neither VOC nor COCO, or its files
            do not have the label that a decision is about, or other classes
    """
    out = Path(out)
    by_set: dict[str, list[Decision]] = defaultdict(list)
    for decision in decisions.decisions:
        if decision.verdict == "wrong" and decision.label != decision.given:
            by_set[decision.dataset].append(decision)
    if not by_set:
        raise ValueError("no decision says that a label is wrong: there is nothing to correct")
    for name in by_set:
        source = decisions.sources[name]
        if source.get("format") not in _WRITERS:
            raise ValueError(
                f"dataset {name!r} is neither a VOC devkit folder nor a COCO json; "
                "correct it yourself from the file of decisions"
            )
        path = Path(source.get("root") or source.get("json_file") or "")
        if not path.exists():
            raise FileNotFoundError(f"dataset {name!r} is not at {path} any more")
        refuse_to_overwrite(out, path)
    with new_folder(out) as partial:
        folders = folder_names(decisions.sources)
        for name, wrong in by_set.items():
            target = partial / folders[name]
            target.mkdir(parents=True)
            _WRITERS[decisions.sources[name]["format"]](decisions, name, wrong, target)
    return {name: len(wrong) for name, wrong in by_set.items()}


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
    by_image: dict[str, list[Decision]] = defaultdict(list)
    for decision in wrong:
        by_image[str(decision.image_id)].append(decision)
    changed = {}
    for image_id, group in sorted(by_image.items()):
        path = root / "Annotations" / f"{image_id}.xml"
        annotation = annotations.get(image_id, VOCAnnotation(str(path), None, [], []))
        changed[f"{image_id}.xml"] = _file_changes(annotation, group, classes)
    # Files of a noisy copy speak of noise that the corrected copy does not have.
    leave_out = (*COPY_FILES, CORRECTIONS)
    copy_devkit(root, target, changed, classes, name, CORRECTIONS, leave_out=leave_out)


def _file_changes(
    annotation: VOCAnnotation, wrong: list[Decision], classes: Sequence[str]
) -> FileChanges:
    objects = [(obj.name, zero_based(obj.box)) for obj in annotation.objects]
    changes = []
    for decision in sorted(wrong, key=lambda d: d.index):
        _check(decision, objects, Path(annotation.path))
        changes.append(_change(decision, decision.index, objects[decision.index][1], classes))
    return changes, annotation.positions


def _write_coco(decisions: Decisions, name: str, wrong: list[Decision], target: Path) -> None:
    source = decisions.sources[name]
    # What was outside of an image whose size only its file says was left out by the training too.
    coco = CocoFile(source["json_file"], source.get("image_root"), bad_annotations="skip")
    classes = coco.class_names
    if set(classes) != set(decisions.classes):
        raise ValueError(f"{coco.path} has the classes {classes}, not {list(decisions.classes)}")
    records = {str(record["image_id"]): record["annotations"] for record in coco.records()}
    changes = []
    for decision in sorted(wrong, key=lambda d: (str(d.image_id), d.index)):
        annotations = records.get(str(decision.image_id), [])
        _check(decision, [(classes[a["category_id"]], corners(a)) for a in annotations], coco.path)
        box = annotations[decision.index]["bbox"]
        changes.append(_change(decision, decision.index, box, classes))
    (target / coco.path.name).write_bytes(coco.with_changes(changes))
    write_manifest(target / CORRECTIONS, changes, classes, name)


_WRITERS = {"voc": _write_voc, "coco": _write_coco}


def _check(decision: Decision, found: Sequence[tuple[str, list[float]]], path: Path) -> None:
    """Refuse a decision about an annotation that is not among those of its image."""
    has = "there is no such annotation"
    if decision.index < len(found):
        name, box = found[decision.index]
        # Boxes of an audit are rounded to hundredths.
        if name == decision.given and all(abs(a - b) < 0.1 for a, b in zip(box, decision.bbox)):
            return
        has = f"it is {name!r} at {box}"
    raise ValueError(
        f"{path}: annotation {decision.index} of image {decision.image_id!r} was audited as "
        f"{decision.given!r} at {list(decision.bbox)}, but {has}; the files changed, or the "
        "training had DATASETS.LABEL_NOISE, which is in no file (sl-inject-noise writes it "
        "to disk)"
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


def _change(decision: Decision, index: int, box: Sequence[float], classes: Sequence[str]) -> Change:
    given = classes.index(decision.given)
    if decision.label is None:
        old = {"category_id": given, "bbox": [float(x) for x in box]}
        return Change(decision.image_id, index, "missing", old, None)
    return Change(decision.image_id, index, "label", given, classes.index(decision.label))
