"""The report of all kinds in a real browser: filter, boxes, keys, decisions, and how fast it is."""

import dataclasses
import json
import time

import pytest

from helpers.audit_cases import CLASSES, EVIL, PROBABILITIES, make_audit
from helpers.browser import (
    cards,
    choose,
    forget,
    load,
    press,
    save,
    text,
)
from sl_detectron.audit import apply_decisions, read_decisions, write_report
from sl_detectron.audit.crops import make_crops
from sl_detectron.audit.kinds import KINDS
from sl_detectron.audit.records import Suspect, SuspectList
from sl_detectron.audit.suspects import wrong_classes
from sl_detectron.data import load_voc_dataset

MOVED = (6.0, 8.0, 33.0, 41.0)
ADDED = (62.0, 5.0, 78.0, 25.0)


@pytest.fixture
def audit(tmp_path):
    return make_audit(tmp_path, PROBABILITIES, f"kinds_{tmp_path.name}")


def suspects_of(audit) -> SuspectList:
    """Two of each kind but the duplicate, the first of which is right."""
    of = {(a.image_id, a.index): a for a in audit.annotations}

    def suspect(kind, score, image, index, **more):
        a = of[image, max(index, 0)]
        row = Suspect(kind, score, a.dataset, a.image_id, a.file_name, **more)
        if index < 0:
            return row
        suggested = more.get("suggested_label", a.label)
        annotated = {"annotation_id": a.annotation_id, "index": index, "label": a.label}
        return dataclasses.replace(row, bbox=a.bbox, suggested_label=suggested, **annotated)

    missing = {"suggested_label": "dog"}
    wrong = wrong_classes(audit).suspects[:2]
    rows = [
        suspect("missing_object", 0.99, "b", -1, suggested_bbox=ADDED, **missing),
        suspect("misplaced_box", 0.98, "a", 0, suggested_bbox=MOVED),
        suspect("no_object", 0.97, "c", 0),
        suspect("duplicate", 0.96, "c", 2, suggested_bbox=of["c", 1].bbox),
        *wrong,
        suspect("missing_object", 0.3, "b", -1, suggested_bbox=(0.0, 0.0, 9.0, 9.0), **missing),
        suspect("misplaced_box", 0.2, "a", 1, suggested_bbox=(39.0, 9.0, 70.0, 51.0)),
        suspect("no_object", 0.1, "c", 1),
    ]
    return SuspectList(audit.classes, audit.sources, tuple(rows), audit.fingerprint)


@pytest.fixture
def page(chromium, audit, tmp_path):
    chromium.get(write_report(audit, tmp_path / "report", suspects=suspects_of(audit)).as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "true"
    for file in chromium.downloads.iterdir():
        file.unlink()
    forget(chromium)
    return chromium


EXPECTED = [
    "no box→dog",
    "cat→other box",
    "dog→remove",
    f"{EVIL}→remove",
    "dog→cat",
    f"dog→{EVIL}",
    "no box→dog",
    "dog→other box",
    "cat→remove",
]


def boxes(page, selector) -> list[str]:
    """Classes of the boxes in a crop, and whether their line is dashed."""
    return page.execute_script(
        "return [...document.querySelectorAll(`${arguments[0]} .box`)]"
        ".map((b) => `${b.className} ${getComputedStyle(b).borderTopStyle}`)",
        selector,
    )


def colour(page, selector, key) -> str:
    return page.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, key
    )


def test_one_list_of_all_kinds(page):
    assert cards(page) == EXPECTED
    assert [e for e in page.get_log("browser") if e["level"] == "SEVERE"] == []
    kinds = [o.get_attribute("value") for o in page.find_elements("css selector", "#filter-kind *")]
    assert kinds == ["", *KINDS]
    colours = set()
    for place, kind in enumerate(
        ["missing_object", "misplaced_box", "no_object", "duplicate", "wrong_class"]
    ):
        card = f"#card-{place}"
        assert page.find_element("css selector", f"{card} .chip").text == kind.replace("_", " ")
        colours.add(colour(page, f"{card} .chip", "backgroundColor"))
        own = ".box.dashed" if kind == "missing_object" else ".box.given"
        assert colour(page, f"{card} {own}", "borderTopColor") in colours
    assert len(colours) == 5
    tiles = text(page, "tiles")
    assert "1\nmissing object, suspicion above 0.5" in tiles


def test_the_kind_filters(page):
    for kind, places in (("missing_object", (0, 6)), ("duplicate", (3,)), ("wrong_class", (4, 5))):
        choose(page, "filter-kind", kind)
        assert cards(page) == [EXPECTED[i] for i in places]
    choose(page, "filter-verdict", "open")
    choose(page, "filter-kind", "")
    press(page, "a")
    assert cards(page) == EXPECTED[1:]
    page.find_element("id", "reset").click()
    assert cards(page) == EXPECTED
    # A class filter is of what is annotated.
    choose(page, "filter-given", "0")
    assert cards(page) == ["cat→other box", "cat→remove"]
    page.find_element("id", "reset").click()
    # The matrix counts wrong classes only.
    page.find_element("css selector", "#confusion [data-pair='1,0']").click()
    assert cards(page) == ["dog→cat"]
    page.find_element("id", "reset").click()


def test_suggested_boxes_are_dashed(page):
    # The missing object in its surroundings, with the annotation beside it.
    assert boxes(page, "#card-0") == ["box other solid", "box dashed dashed"]
    assert boxes(page, "#card-1") == ["box dashed dashed", "box given solid"]
    assert boxes(page, "#card-2") == ["box given solid"]
    assert boxes(page, "#card-3") == ["box dashed dashed", "box given solid"]
    press(page, "x")
    assert boxes(page, "#view") == boxes(page, "#card-0")


def test_a_missing_object_is_shown_with_what_is_around(audit):
    first, moved, *_ = suspects_of(audit).suspects
    annotated = {first.file_name: [a.bbox for a in audit.annotations]}
    (_, width, height, given, suggested, _), near = (
        make_crops([first], 90, annotated=annotated)[0],
        make_crops([moved], 90, annotated=annotated)[0],
    )
    # 20 pixels around a box of 16 x 20, cut off by the image: x from 42 to 80, y from 0 to 45.
    assert (width, height) == (76, 90)
    assert given is None
    assert suggested == [round(1000 * x) for x in (20 / 38, 5 / 45, 2 / 38, 20 / 45)]
    assert near[3] is not None
    assert near[5] == []


def test_keys_and_undo(page):
    press(page, "a")
    press(page, "r")
    press(page, "u")
    press(page, "a")
    assert text(page, "progress") == "4 decided: 2 wrong, 1 right, 1 unsure"
    data = save(page)
    entries = [(d["kind"], d["verdict"], d["label"], d["box"]) for d in data["decisions"]]
    assert entries == [
        ("missing_object", "wrong", "dog", [*ADDED]),
        ("misplaced_box", "right", None, None),
        ("no_object", "unsure", None, None),
        ("duplicate", "wrong", None, None),
    ]
    (page.downloads / "decisions.json").unlink()
    for _ in range(3):
        press(page, "z")
    assert text(page, "progress") == "1 decided: 1 wrong, 0 right, 0 unsure"
    press(page, "z")
    assert text(page, "progress") == "nothing decided yet"


def test_another_class_by_keys(page):
    from selenium.webdriver.common.keys import Keys

    press(page, "c")
    press(page, "cat")
    # Nothing is decided before Enter, and Escape leaves all as it was.
    assert text(page, "progress") == "nothing decided yet"
    press(page, Keys.ESCAPE)
    assert page.find_element("id", "correction").get_attribute("value") == "1"
    press(page, "c")
    press(page, "cat")
    press(page, Keys.ENTER)
    assert text(page, "progress") == "1 decided: 1 wrong, 0 right, 0 unsure"
    # The next one is the misplaced box: moved, and of another class.
    press(page, "c")
    press(page, "dog")
    press(page, Keys.ENTER)
    added, moved = save(page)["decisions"]
    assert (added["kind"], added["label"], added["box"]) == ("missing_object", "cat", [*ADDED])
    assert (moved["given"], moved["label"], moved["box"]) == ("cat", "dog", [*MOVED])
    # A missing object cannot be removed.
    press(page, Keys.HOME)
    assert page.execute_script("return document.getElementById('correction').options[0].disabled")
    press(page, Keys.ARROW_RIGHT)
    enabled = "return !document.getElementById('correction').options[0].disabled"
    assert page.execute_script(enabled)


def test_decisions_of_every_kind_go_into_the_files(page, tmp_path):
    for _ in range(5):
        page.find_element("id", "accept").click()
    save(page)
    decisions = read_decisions(page.downloads / "decisions.json")
    (counts,) = apply_decisions(decisions, tmp_path / "out").items()
    assert counts[1] == 5
    records = load_voc_dataset(tmp_path / "out" / counts[0], "train", CLASSES)
    objects = {
        r["image_id"]: [(CLASSES[a["category_id"]], tuple(a["bbox"])) for a in r["annotations"]]
        for r in records
    }
    assert objects == {
        "a": [("cat", MOVED), ("cat", (39, 9, 70, 50))],
        "b": [(EVIL, (9, 9, 60, 50)), ("dog", ADDED)],
        "c": [("cat", (19, 19, 79, 59))],
    }


def test_decisions_come_back_by_kind_and_box(page, tmp_path):
    for key in "arwu":
        press(page, key)
    whole = save(page)
    kept = tmp_path / "kept.json"
    # One of a missing object that this report does not have, and one that is none.
    other = {**whole["decisions"][0], "box": [1, 2, 3, 4]}
    broken = {**whole["decisions"][0], "box": None}
    kept.write_text(json.dumps({**whole, "decisions": [*whole["decisions"], other, broken]}))
    (page.downloads / "decisions.json").unlink()
    forget(page)
    said = load(page, kept, "4 decided")
    assert said.endswith("1 on annotations that are not in this report; 1 of other annotations "
                         "left out")  # fmt: skip
    assert save(page)["decisions"] == [*whole["decisions"], other]


@pytest.mark.slow
def test_ten_thousand_of_mixed_kinds_open_as_fast_as_their_text(chromium, audit, tmp_path):
    """Cards are made as they are scrolled to: ten times the rows take at most ten times as long."""
    rows = suspects_of(audit).suspects
    many = tuple(
        dataclasses.replace(row, suggested_bbox=row.suggested_bbox, image_id=f"{row.image_id}{i}")
        for i in range(1112)
        for row in rows
    )[:10_000]
    reports = {}
    for num in (1_000, 10_000):
        listed = SuspectList(audit.classes, audit.sources, many[:num], 1)
        reports[num] = write_report(audit, tmp_path / str(num), suspects=listed)
    times = {num: [] for num in reports}
    for num in [*reports] * 3:
        began = time.perf_counter()
        chromium.get(reports[num].as_uri())
        assert text(chromium, "shown") == f"{num:,} shown"
        times[num].append(time.perf_counter() - began)
    few, all_of_them = (min(times[num]) for num in reports)
    print(f"opened in {few:.2f} and {all_of_them:.2f} s")
    assert all_of_them < 10 * few
    assert len(cards(chromium)) < 100
