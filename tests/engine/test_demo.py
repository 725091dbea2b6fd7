"""The demo: both methods, every seed, one table and one picture."""

import re

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sl_detectron.data import register_toy_datasets
from sl_detectron.engine.demo import METHODS, run_demo


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
    assert Image.open(tmp_path / "output" / "demo.png").size[0] > 500
