"""The command line: the table, the report and one-line errors."""

import json
import os

import pytest

from helpers import REPO, load_tool
from helpers.forked import Program

TOOL = REPO / "tools" / "evaluate_voc.py"
CAT = (
    "<object><name>cat</name><bndbox><xmin>11</xmin><ymin>11</ymin>"
    "<xmax>50</xmax><ymax>50</ymax></bndbox></object>"
)
SIZE = "<size><width>60</width><height>60</height><depth>3</depth></size>"
XML = f"<annotation>{SIZE}{CAT}</annotation>"


evaluate_voc = load_tool("evaluate_voc")


@pytest.fixture
def arguments(tmp_path):
    """One cat, found by the first of two text detections."""
    for folder in ("Annotations", "ImageSets/Main", "found"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    (tmp_path / "Annotations" / "a.xml").write_text(XML)
    lines = "a 0.9 11 11 50 50\na 0.8 1 1 9 9\n"
    (tmp_path / "found" / "comp4_det_test_cat.txt").write_text(lines)
    return {
        "--voc-root": str(tmp_path),
        "--detections": str(tmp_path / "found"),
        "--classes": "cat,dog",
        "--metric": "area",
    }


def run(arguments, *flags):
    return evaluate_voc.main([*(x for pair in arguments.items() for x in pair), *flags])


def test_the_command_itself(arguments, tmp_path):
    arguments["--output"] = str(tmp_path / "out" / "scores.json")
    program = Program(TOOL, [x for pair in arguments.items() for x in pair], {**os.environ})
    out, err = program.communicate()
    assert program.returncode == 0, err
    names = ["scores.json", "scores_ap_by_iou.png", "scores_precision_recall.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    report = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [report[k] for k in ("AP", "AP50", "AP75")] == [100, 100, 100]
    assert set(report["per_class"]) == {"cat", "dog"}
    rows = [line.split() for line in out.splitlines()]
    assert ["cat", "1", "2", "100.00", "100.00", "100.00", "100.00"] in rows
    assert ["dog", "0", "0", "-", "-", "-", "-"] in rows


def test_absent_classes_and_json_only(arguments, tmp_path, capsys):
    arguments["--output"] = str(tmp_path / "out" / "scores.json")
    assert run(arguments, "--absent-classes", "zero", "--no-pictures") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["scores.json"]
    assert ["mean", "1", "2", "50.00", "50.00", "50.00", "-"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_class_list_may_be_a_subset(arguments, tmp_path, caplog):
    cow = CAT.replace("cat", "cow")
    (tmp_path / "Annotations" / "a.xml").write_text(XML.replace(CAT, CAT + cow))
    assert run(arguments) == 0
    assert "are ignored, 'cow' (1)" in caplog.text


def test_spaces_around_class_names_are_ignored(arguments, capsys):
    run(arguments)
    table = capsys.readouterr().out
    assert run({**arguments, "--classes": " cat, dog "}) == 0
    assert capsys.readouterr().out == table


def test_json_detections_equal_text(arguments, tmp_path, capsys):
    run(arguments)
    table = capsys.readouterr().out
    boxes = [[10, 10, 40, 40], [0, 0, 9, 9]]
    entries = [
        {"image_id": "a", "category_id": 0, "bbox": box, "score": score}
        for box, score in zip(boxes, (0.9, 0.8))
    ]
    (tmp_path / "found.json").write_text(json.dumps(entries))
    arguments["--detections"] = str(tmp_path / "found.json")
    assert run(arguments, "--rounding") == 0
    assert capsys.readouterr().out == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--split": "val"}, "no image set"),
        ({"--voc-root": "/nowhere"}, "no VOC folder /nowhere"),
        ({"--detections": "/nowhere"}, "/nowhere"),
        ({"--classes": "cat,cat"}, "different names"),
        ({"--classes": "cat, cat"}, "different names"),
        ({"--classes": "cat,"}, "different names"),
        ({"--classes": ""}, "different names"),
        # Neither the set nor the detections are looked at before the path of the report.
        ({"--voc-root": "/nowhere", "--output": "out.txt"}, "name it out.txt.json"),
        ({"--voc-root": "/nowhere", "--output": "."}, ". is a folder"),
    ],
)
def test_errors_are_one_line(arguments, change, message, capsys):
    assert run({**arguments, **change}) == 2
    error = capsys.readouterr().err
    assert ": error: " in error
    assert message in error
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(arguments):
    with pytest.raises(FileNotFoundError):
        run({**arguments, "--split": "val"}, "--debug")
