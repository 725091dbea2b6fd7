"""The demo: both methods, every seed, one table and one picture."""

import json
import re

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sl_detectron.commands.demo import METHODS, _table, run_demo
from sl_detectron.data import register_toy_datasets


def test_table_and_picture(tmp_path, monkeypatch):
    # The runs are processes of their own and find the set by the environment, as a user's do.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    registered = {}
    for split in ("train", "test"):
        name = f"toy_digits_{split}"
        registered[name] = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    register_toy_datasets(tmp_path / "toy_digits")
    try:
        opts = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"]
        table = run_demo(tmp_path / "output", [0, 1], opts)
    finally:
        for name, (loader, metadata) in registered.items():
            DatasetCatalog[name], MetadataCatalog[name] = loader, metadata
    rows = {line.split()[0]: line for line in table.splitlines()}
    for method in METHODS:
        assert len(re.findall(r"[\d.]+ ± [\d.]+", rows[method])) == 3
        for seed in (0, 1):
            run = tmp_path / "output" / f"{method.lower()}_seed{seed}"
            assert (run / "model_final.pth").is_file()
            # One result: the log of a run holds that run alone.
            assert (run / "log.txt").read_text().count("AP,AP50,AP75") == 1
    runs = json.loads((tmp_path / "output" / "demo.json").read_text())
    assert [(r["method"], r["seed"]) for r in runs] == [(m, s) for s in (0, 1) for m in METHODS]
    assert all({"AP", "AP50", "AP75"} <= r["metrics"].keys() for r in runs)
    assert len(re.findall(r"[+-][\d.]+ ± [\d.]+", rows["difference,"])) == 3
    assert Image.open(tmp_path / "output" / "demo.png").size[0] > 500


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
