"""Every bad input: exit code 2, one line that names the culprit, nothing run, nothing left."""

import logging
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from helpers import REPO
from helpers.forked import Program
from helpers.hostile import BY_JSON, CASES, INJECT, Case, make_world, obj, xml

# A few of them as a user runs them; the others in this process, which saves 5 s each.
IN_PROCESSES = ("config code", "xml billion laughs", "checkpoint code", "json not json")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    folder.mkdir()
    make_world(folder)
    return folder


@pytest.fixture
def files(world, tmp_path, monkeypatch):
    folder = tmp_path / "w"
    shutil.copytree(world, folder)
    decisions = folder / "decisions.json"
    decisions.write_text(decisions.read_text().replace(str(world), str(folder)))
    monkeypatch.chdir(folder)
    yield folder
    for name in [n for n in DatasetCatalog if n.startswith("hostile_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # The loggers would go on writing to the captured output of this test, which is closed.
    setup_logger.cache_clear()
    for logger in map(logging.getLogger, ("detectron2", "fvcore", "sl_detectron")):
        logger.handlers.clear()


def set_name(case: Case) -> str:
    return f"hostile_{CASES.index(case)}"


def arguments(case: Case, folder: Path) -> list[str]:
    fill = {"{w}": str(folder), "{name}": set_name(case), "{{": "{", "}}": "}"}
    args = case.args
    for mark, value in fill.items():
        args = [a.replace(mark, value) for a in args]
    return args


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def assert_refused(case: Case, folder: Path, before: dict, code: int, out: str, err: str) -> None:
    assert code == 2, out + err
    assert "Traceback" not in err + out
    errors = [line for line in err.splitlines() if re.match(r"\S+\.py: error: ", line)]
    assert len(errors) == 1, err
    assert err.strip().splitlines()[-1] == errors[0], err
    assert re.search(case.culprit, errors[0]), errors[0]
    assert "SECRET" not in out + err
    after = snapshot(folder)
    assert {k: after.get(k) for k in before} == before
    left = {re.sub(r"^out/(events\.).*", r"out/\1", k) for k in after.keys() - before.keys()}
    assert left <= (
        {"out"} | {f"out/{name}" for name in case.may_leave} if case.may_leave else set()
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.tool[:-3]}: {c.name}")
def test_is_refused(case, files, capsys, monkeypatch):
    case.change(files)
    before = snapshot(files)
    tool = str(REPO / "tools" / case.tool)
    monkeypatch.setattr(sys, "argv", [tool, *arguments(case, files)])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(tool, run_name="__main__")
    printed = capsys.readouterr()
    assert_refused(case, files, before, done.value.code, printed.out, printed.err)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in IN_PROCESSES], ids=lambda c: f"{c.tool[:-3]}: {c.name}"
)
def test_is_refused_in_a_process_of_its_own(case, files):
    case.change(files)
    before = snapshot(files)
    path = REPO / "tools" / case.tool
    program = Program(path, arguments(case, files), {**os.environ}, folder=files)
    printed = program.communicate()
    assert_refused(case, files, before, program.returncode, *printed)


def test_there_are_at_least_200_of_them():
    assert len({(c.tool, c.name) for c in CASES}) == len(CASES) >= 200


def test_class_names_lead_nowhere(files, capsys, monkeypatch):
    """Markup and path separators in class names: pictures and copies are where they should be."""
    classes = ["<script>alert(1)</script>", "../../up", "/etc/passwd"]
    escaped = ["&lt;script&gt;alert(1)&lt;/script&gt;", *classes[1:]]
    for image, name in zip("abc", escaped):
        (files / f"voc/Annotations/{image}.xml").write_text(xml(obj(name)))
    before = snapshot(files.parent)
    calls = {"inject_noise.py": INJECT, "evaluate_voc.py": BY_JSON}
    for tool, args in calls.items():
        args = [a.replace("{w}", str(files)) for a in args]
        args[args.index("--classes") + 1] = ",".join(classes)
        monkeypatch.setattr(sys, "argv", [tool, *args])
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(REPO / "tools" / tool), run_name="__main__")
        assert done.value.code == 0, capsys.readouterr()
    after = snapshot(files.parent)
    assert {k: after[k] for k in before} == before
    names = {Path(k).relative_to("w").parts[0] for k in after.keys() - before.keys()}
    assert names == {"out", "out.json", "out_precision_recall.png", "out_ap_by_iou.png"}
    copied = {p.name for p in (files / "out").iterdir()}
    assert copied == {"Annotations", "ImageSets", "JPEGImages", "confusion.png", "manifest.jsonl",
                      "noise.json"}  # fmt: skip
