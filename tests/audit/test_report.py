"""The report as a file, and in a real browser: filters, triage, download, and nothing escapes."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers.audit_cases import CLASSES, EVIL, PROBABILITIES, make_audit
from helpers.browser import (
    cards,
    choose,
    forget,
    load,
    press,
    reopen,
    save,
    text,
)
from sl_detectron.audit import apply_decisions, read_decisions, write_report
from sl_detectron.audit.crops import make_crops
from sl_detectron.audit.records import top_suspects
from sl_detectron.data import load_voc_dataset


@pytest.fixture
def audit(tmp_path):
    # A folder's name is text on the page as well.
    folder = tmp_path / "<b>&'"
    folder.mkdir()
    return make_audit(folder, PROBABILITIES, f"report_{tmp_path.name}")


@pytest.fixture
def page(chromium, audit, tmp_path):
    """The report of the six annotations, opened."""
    chromium.get(write_report(audit, tmp_path / "report").as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "true"
    for file in chromium.downloads.iterdir():
        file.unlink()
    return chromium


EXPECTED = ["dog→cat", f"dog→{EVIL}", "cat→dog", f"{EVIL}→cat", "cat→dog", f"{EVIL}→cat"]


def test_crops_show_the_box(audit):
    annotation = audit.annotations[0]
    ((jpeg, *size, inset, suggested, others),) = make_crops([annotation], 64)
    assert (suggested, others) == (None, [])
    with Image.open(io.BytesIO(base64.b64decode(jpeg))) as image:
        assert image.size == tuple(size)
        assert max(image.size) == 64
    # Box (39, 9, 70, 50) and a quarter of 41 pixels around it, cut off at the right and the top.
    expected = [(39 - 28) / 52, 9 / 60, (80 - 70) / 52, (60 - 50) / 60]
    np.testing.assert_allclose(inset, 1000 * np.array(expected), atol=0.5)
    assert make_crops([dataclasses.replace(annotation, file_name="gone.jpg")], 64) == [None]


def test_one_file_that_asks_for_nothing(audit, tmp_path):
    path = write_report(audit, tmp_path / "report")
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=["']?(?!data:)[\w/.]""", page.split("<script")[0])
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    # No name can end the script element that holds the data, or begin another.
    assert page.count("</script>") == 3
    assert "<img" not in page


def test_a_report_that_fails_leaves_the_older_one(audit, tmp_path, monkeypatch):
    path = write_report(audit, tmp_path / "report")
    before = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sl_detectron.audit.report._page", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(audit, tmp_path / "report")
    monkeypatch.setattr("sl_detectron.audit.report._page", lambda *_: "\ud800 is not UTF-8")
    with pytest.raises(UnicodeEncodeError):
        write_report(audit, tmp_path / "report")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_numbers_out_of_range_are_named(audit, tmp_path):
    with pytest.raises(ValueError, match="number of crops must be at least 0; got -1"):
        write_report(audit, tmp_path / "report", num_crops=-1)
    with pytest.raises(ValueError, match="size of a crop must be at least 1 pixel; got 0"):
        write_report(audit, tmp_path / "report", crop_size=0)
    assert not (tmp_path / "report").exists()


def test_markers_in_names_are_not_filled_in(audit, tmp_path):
    odd = dataclasses.replace(audit, classes=("@CROPS@", *CLASSES[1:]), annotations=())
    page = write_report(odd, tmp_path / "report").read_text(encoding="utf-8")
    assert "@CROPS@" in page


def test_opens_without_request_or_error(page):
    assert cards(page) == EXPECTED
    assert page.execute_script("return window.hacked === undefined")
    assert not page.find_elements("css selector", "img[src=x]")
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    urls = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(url.startswith("data:") for url in urls)


def test_filters(page):
    choose(page, "filter-given", "0")
    assert cards(page) == ["cat→dog", "cat→dog"]
    choose(page, "filter-suggested", "1")
    assert cards(page) == ["cat→dog", "cat→dog"]
    choose(page, "filter-given", "2")
    assert cards(page) == []
    choose(page, "filter-suggested", "0")
    assert cards(page) == [f"{EVIL}→cat"] * 2
    page.find_element("id", "reset").click()
    assert len(cards(page)) == 6
    choose(page, "filter-suspicion", "0.5", "input")
    assert cards(page) == EXPECTED[:2]
    assert text(page, "shown") == "2 shown"
    choose(page, "filter-suspicion", "0.99", "input")
    assert cards(page) == []
    assert page.find_element("id", "empty").is_displayed()
    page.find_element("id", "reset").click()
    choose(page, "filter-image", "/b", "input")
    assert cards(page) == [f"{EVIL}→cat"]
    page.find_element("id", "reset").click()
    page.find_element("css selector", "#confusion [data-pair='1,0']").click()
    assert cards(page) == ["dog→cat"]
    page.find_element("css selector", "#confusion [data-pair='1,0']").click()
    choose(page, "order", "image")
    assert cards(page) == ["cat→dog", "dog→cat", f"{EVIL}→cat", *EXPECTED[1:3], f"{EVIL}→cat"]


def test_histogram_filters(page, audit):
    lowest = min(audit.annotations, key=lambda a: a.confidence)
    place = int(lowest.confidence / np.e * 40)
    page.execute_script(
        "document.querySelector(`.hit[data-bin='${arguments[0]}']`)"
        ".dispatchEvent(new Event('click'))",
        place,
    )
    same = [a for a in audit.annotations if int(a.confidence / np.e * 40) == place]
    assert len(cards(page)) == len(same)


def test_triage_by_keys_download_and_correction(page, audit, tmp_path):
    forget(page)
    press(page, "w")  # the first: dog -> cat, as suggested
    press(page, "u")
    press(page, "r")
    assert text(page, "progress") == "3 decided: 1 wrong, 1 right, 1 unsure"
    press(page, "z")
    assert text(page, "progress") == "2 decided: 1 wrong, 0 right, 1 unsure"
    choose(page, "filter-verdict", "open")
    assert len(cards(page)) == 4
    data = save(page)
    assert [(d["verdict"], d["label"]) for d in data["decisions"]] == [
        ("wrong", "cat"),
        ("unsure", None),
    ]
    decisions = read_decisions(page.downloads / "decisions.json")
    counts = apply_decisions(decisions, tmp_path / "corrected")
    (name,) = counts
    assert counts == {name: 1}
    records = load_voc_dataset(tmp_path / "corrected" / name, "train", CLASSES)
    labels = [CLASSES[a["category_id"]] for a in records[0]["annotations"]]
    assert labels == ["cat", "cat"]


def test_verdict_by_buttons_and_another_label(page):
    forget(page)
    page.find_element("css selector", ".card:nth-of-type(2)").click()
    choose(page, "correction", "0")
    page.find_element("id", "verdict-wrong").click()
    page.find_element("css selector", ".card:nth-of-type(1)").click()
    choose(page, "correction", "")
    page.find_element("id", "verdict-wrong").click()
    data = save(page)
    # The page keeps them: a person may come back another day.
    reopen(page, "2 decided: 2 wrong, 0 right, 0 unsure")
    assert {(d["given"], d["label"]) for d in data["decisions"]} == {("dog", "cat"), ("dog", None)}


def test_saved_decisions_load_again(page, tmp_path):
    forget(page)
    press(page, "w")
    press(page, "r")
    save(page)
    kept = tmp_path / "kept.json"
    (page.downloads / "decisions.json").rename(kept)
    forget(page)
    load(page, kept, "2 decided")
    badges = page.execute_script(
        "return [...document.querySelectorAll('.badge')].map((b) => b.textContent)"
    )
    assert badges == ["wrong", "right"]


def test_decisions_on_what_a_shorter_report_leaves_out_are_kept(page, audit, tmp_path):
    """A person judges the whole list, later a short one, and saves: nothing may be lost."""
    forget(page)
    for key in "wrurw":
        press(page, key)
    whole = save(page)["decisions"]
    assert len(whole) == 5
    kept = tmp_path / "kept.json"
    (page.downloads / "decisions.json").rename(kept)
    for short in (top_suspects(audit, 2), top_suspects(audit, classes=["dog"])):
        page.get(write_report(short, tmp_path / "short").as_uri())
        # The same annotations: the browser knows what was decided about them.
        said = "2 decided: 1 wrong, 1 right, 0 unsure; 3 on annotations that are not in this report"
        reopen(page, said)
        press(page, "u")
        changed = {**whole[0], "verdict": "unsure", "label": None}
        assert sorted(map(str, save(page)["decisions"])) == sorted(map(str, [changed, *whole[1:]]))
        assert len(read_decisions(page.downloads / "decisions.json").decisions) == 5
        (page.downloads / "decisions.json").unlink()
        forget(page)
        assert load(page, kept, "2 decided") == said
    page.get(write_report(audit, tmp_path / "report").as_uri())
    reopen(page, "5 decided: 2 wrong, 2 right, 1 unsure")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [*CLASSES, "horse"]}, "this audit has no class horse"),
        ({"classes": [CLASSES[0], CLASSES[2]]}, "it has no class dog"),
        ({"classes": None}, "it is not a file of decisions"),
        ({"version": 2}, "it is not a file of decisions"),
    ],
)
def test_a_file_of_other_classes_is_not_loaded(page, tmp_path, change, message):
    forget(page)
    press(page, "w")
    data = save(page)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**data, **change}))
    forget(page)
    assert load(page, other, "other.json") == f"other.json is not loaded: {message}"
    # The order of names says nothing.
    other.write_text(json.dumps({**data, "classes": data["classes"][::-1]}))
    assert load(page, other, "1 decided").endswith("unsure")


def test_entries_of_other_data_are_left_out(page, tmp_path):
    forget(page)
    press(page, "w")
    data = save(page)
    entry = data["decisions"][0]
    wrong = {"dataset": "other"}, {"given": "cat"}, {"label": "horse"}, {"verdict": "?"}
    entries = [{**entry, **change} for change in wrong]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**data, "decisions": [*entries, None]}))
    forget(page)
    said = load(page, other, "nothing decided yet;")
    assert said == "nothing decided yet; 5 of other annotations left out"


def test_numbers_that_are_not_finite_show_as_a_dash(chromium, audit, tmp_path):
    nan = float("nan")
    odd = dataclasses.replace(
        audit.annotations[0], mean_loss=nan, confidence=nan, expected_correctness=nan
    )
    report = write_report(dataclasses.replace(audit, annotations=(odd,)), tmp_path / "report")
    chromium.get(report.as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "true"
    assert "σ –" in text(chromium, "card-0")
    assert "– %" in text(chromium, "facts")


def test_only_cards_in_view_exist(chromium, tmp_path):
    audit = make_audit(tmp_path, PROBABILITIES, f"many_{tmp_path.name}")
    many = tuple(
        dataclasses.replace(a, index=a.index + 10 * i, annotation_id=a.annotation_id + 6 * i)
        for i in range(300)
        for a in audit.annotations
    )
    report = write_report(dataclasses.replace(audit, annotations=many), tmp_path / "report")
    chromium.get(report.as_uri())
    assert text(chromium, "shown") == "1,800 shown"
    assert len(cards(chromium)) < 100
    from selenium.webdriver.common.keys import Keys

    press(chromium, Keys.END)
    assert "annotation_id" not in text(chromium, "facts")
    assert f"(id {many[-1].annotation_id})" in text(chromium, "facts")
    assert chromium.find_elements("css selector", f"#card-{len(many) - 1}")
