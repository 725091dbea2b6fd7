"""The demo: both methods, every seed, one table, one picture and one page, opened in a browser."""

import json
import re
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from helpers.browser import start
from helpers.forked import ForPools
from sl_detectron.audit import read_audit
from sl_detectron.commands.demo import METHODS, REPORT, _table, run_demo
from sl_detectron.commands.demo_report import NUM_SUSPECTS, _suspects
from sl_detectron.data import register_toy_datasets
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.engine import setup_cfg
from sl_detectron.label_noise import noisy_dataset_dicts


@pytest.fixture(scope="module")
def demo(toy_root, tmp_path_factory):
    """The output folder and the table of two seeds."""
    folder = tmp_path_factory.mktemp("demo")
    registered = {}
    for split in ("train", "test"):
        name = f"toy_digits_{split}"
        registered[name] = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    register_toy_datasets(toy_root)
    try:
        with pytest.MonkeyPatch.context() as patch:
            forked = SimpleNamespace(get_context=lambda _: ForPools())
            patch.setattr("sl_detectron.commands.demo.multiprocessing", forked)
            # The runs are processes of their own and find the set by the environment.
            patch.setenv("DETECTRON2_DATASETS", str(toy_root.parent))
            opts = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
            yield folder / "output", run_demo(folder / "output", [0, 1], opts, report=True)
    finally:
        for name, (loader, metadata) in registered.items():
            DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    yield from start(tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads"))


def test_table_and_picture(demo):
    output, table = demo
    rows = {line.split()[0]: line for line in table.splitlines()}
    for method in METHODS:
        assert len(re.findall(r"[\d.]+ ± [\d.]+", rows[method])) == 3
        for seed in (0, 1):
            run = output / f"{method.lower()}_seed{seed}"
            assert (run / "model_final.pth").is_file()
            # One result: the log of a run holds that run alone.
            assert (run / "log.txt").read_text().count("AP,AP50,AP75") == 1
    runs = json.loads((output / "demo.json").read_text())
    assert [(r["method"], r["seed"]) for r in runs] == [(m, s) for s in (0, 1) for m in METHODS]
    assert all({"AP", "AP50", "AP75"} <= r["metrics"].keys() for r in runs)
    assert len(re.findall(r"[+-][\d.]+ ± [\d.]+", rows["difference,"])) == 3
    assert Image.open(output / "demo.png").size[0] > 500


def test_report_opens_in_a_browser_without_network(demo, chromium):
    output, _ = demo
    chromium.get((output / REPORT).as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "true"
    titles = [h.text for h in chromium.find_elements("tag name", "h2")]
    assert len(titles) == 4
    sizes = chromium.execute_script("return [...document.images].map(i => i.naturalWidth)")
    num_suspects = len(chromium.find_elements("css selector", ".cards > div"))
    assert num_suspects > 5
    assert len(sizes) == 3 + num_suspects  # AP, pictures, curves, crops
    assert min(sizes) > 10
    (table,) = chromium.find_elements("tag name", "table")
    assert len(table.find_elements("css selector", "tbody tr")) == 4  # two methods, two seeds
    assert [e for e in chromium.get_log("browser") if e["level"] == "SEVERE"] == []
    requests = [e for e in chromium.get_log("performance") if "requestWillBeSent" in e["message"]]
    assert not [e for e in requests if re.search(r'"url":"https?:', e["message"])]


def test_report_shows_the_truth_beside_the_most_suspect_labels(demo):
    output, _ = demo
    page = (output / REPORT).read_text()
    changes = toy_changes(output / "superloss_seed0")
    audit = read_audit(output / "superloss_seed0" / "label_audit.json")
    cards = page.split('<div class="cards">')[1].split("</section>")[0].split("<div>")[1:]
    # Two steps see few annotations.
    assert len(cards) == min(NUM_SUSPECTS, len(audit.annotations))
    for card, annotation in zip(cards, audit.annotations):
        assert f"{annotation.label} → {annotation.suggested_label}" in card
        truth = changes.get((annotation.image_id, annotation.index))
        assert (f"wrong: {truth}<" if truth else ">right<") in card
    num_wrong = sum("wrong:" in card for card in cards)
    assert 0 < num_wrong < len(cards)
    assert f"{num_wrong} of these {len(cards)} labels are wrong" in page


def toy_changes(run):
    """{(image id, index): true class} of the wrong labels, drawn once more."""
    cfg = setup_cfg(str(run / "config.yaml"), [])
    (records,) = noisy_dataset_dicts(cfg).values()
    return {
        (record["image_id"], index): TOY_CLASS_NAMES[annotation["true_category_id"]]
        for record in records
        for index, annotation in enumerate(record["annotations"])
        if "true_category_id" in annotation
    }


def test_a_run_without_an_audit_has_a_page_that_says_so(tmp_path):
    assert "did not track annotations" in _suspects(tmp_path / "label_audit.json", {})


def test_the_difference_is_paired_by_seed():
    """+1, +2 and +3: mean 2, standard error 1 / sqrt(3), however much the seeds differ."""
    baseline = {0: 10.0, 1: 40.0, 2: 70.0}
    results = {
        ("baseline", s): dict.fromkeys(("AP", "AP50", "AP75"), v) for s, v in baseline.items()
    }
    for seed, value in baseline.items():
        results["SuperLoss", seed] = dict.fromkeys(("AP", "AP50", "AP75"), value + seed + 1)
    assert _table(results, [0, 1, 2]).count("+2.0 ± 0.6") == 3
    assert "difference" not in _table(results, [0])
