"""tools/visualize.py as a user runs it: which panels, which colours, which images come first."""

import importlib.util
import os
import pickle
import re
import sys

import numpy as np
import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from PIL import Image

from helpers import REPO
from sl_detectron.audit import read_audit
from sl_detectron.audit.files import write_audit
from sl_detectron.audit.run import audit_checkpoint
from sl_detectron.data import register_toy_datasets, toy
from sl_detectron.engine import setup_cfg
from sl_detectron.model_zoo import get_config_file

TOOL = REPO / "tools" / "visualize.py"
CONFIG = "Toy/faster_rcnn_superloss.yaml"
SIDE = 400  # what the toy set's 128 pixels are enlarged to


@pytest.fixture(scope="module")
def opts(tmp_path_factory):
    """Names the toy set as training and test set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "TOY_SPLITS", {"train": 40, "test": 4})
        register_toy_datasets(tmp_path_factory.mktemp("toy") / "digits", prefix="drawn")
        yield ["DATASETS.TRAIN", "('drawn_train',)", "OUTPUT_DIR", "unused"]


@pytest.fixture(scope="module")
def checkpoint(opts, tmp_path_factory):
    """A detector with random weights."""
    cfg = setup_cfg(get_config_file(CONFIG), [*opts, "DATASETS.TEST", "()"])
    folder = tmp_path_factory.mktemp("weights")
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model")
    return folder / "model.pth"


@pytest.fixture
def visualize(monkeypatch, opts):
    spec = importlib.util.spec_from_file_location("visualize", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args, more_opts=(), config=("--config-file", CONFIG)):
        command = [str(TOOL), *config, *map(str, args)]
        monkeypatch.setattr(sys, "argv", [*command, "--opts", *opts, *more_opts])
        return module.cli()

    return run


def panels(path):
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    count = round(picture.shape[1] / SIDE)
    return np.array_split(picture, count, axis=1)


def red_pixels(panel):
    red, green, blue = panel[..., 0], panel[..., 1], panel[..., 2]
    return int(((red > 220) & (green < 90) & (blue < 90)).sum())


def test_wrong_labels_are_red_beside_the_true_ones(visualize, tmp_path, capsys):
    assert visualize("--num", 2, "--first", "wrong", "--output", tmp_path) == 0
    assert f"2 of 40 images of drawn_train drawn: {tmp_path}" in capsys.readouterr().out
    files = sorted(tmp_path.glob("*.png"))
    assert len(files) == 2
    for file in files:
        true, given = panels(file)
        assert red_pixels(true) == 0 < red_pixels(given)


def test_without_noise_there_is_one_panel(visualize, tmp_path):
    noise_off = ["DATASETS.LABEL_NOISE.RATE", "0.0"]
    assert visualize("--num", 1, "--output", tmp_path, more_opts=noise_off) == 0
    (file,) = tmp_path.glob("*.png")
    (given,) = panels(file)
    assert red_pixels(given) == 0


def test_detections_on_a_test_set(visualize, checkpoint, tmp_path):
    data = ["--dataset", "drawn_test", "--checkpoint", checkpoint, "--threshold", 0.0]
    assert visualize(*data, "--num", 1, "--output", tmp_path) == 0
    (file,) = tmp_path.glob("0000_test_0000.png")
    labels, detections = panels(file)
    assert red_pixels(labels) == 0
    assert not np.array_equal(labels[40:], detections[40:])


def test_the_most_doubted_image_comes_first(visualize, opts, checkpoint, tmp_path):
    cfg = setup_cfg(get_config_file(CONFIG), [*opts, "DATASETS.TEST", "()"])
    cfg.defrost()
    write_audit(audit_checkpoint(cfg, checkpoint), tmp_path)
    audit = read_audit(tmp_path / "label_audit.json")
    least = min(audit.annotations, key=lambda a: a.confidence)
    data = ["--audit", tmp_path / "label_audit.json", "--first", "doubted"]
    assert visualize(*data, "--num", 1, "--output", tmp_path / "out") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"0000_{least.image_id}.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "x", "--first", "doubted"], "--from-run or --audit"),
        (["--output", "x", "--num", "0"], "--num must be 1 or above"),
        (["--show", "--num", "1"], "--show needs a screen"),
        (["--output", "x", "--dataset", "drawn_tset"], "did you mean 'drawn_test'"),
        (["--output", "x", "--checkpoint", "none.pth"], "there is no checkpoint none.pth"),
    ],
)
def test_bad_input_gets_one_line(visualize, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    assert visualize(*args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("visualize.py: error: ")
    assert message in error


def test_a_lazy_config_gets_one_line(visualize, tmp_path, capsys):
    """By name, and as what its training leaves behind."""
    lazy = "LazyConfig/toy_faster_rcnn_superloss.py"
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: {_target_: some.Detector}\n")
    for source in (["--config-file", lazy], ["--from-run", run]):
        assert visualize(*source, "--output", tmp_path / "out", config=()) == 2
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert "is a LazyConfig, which is not drawn: give a YAML config" in error


class Shell:
    """Its pickle runs a command when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch code_has_run",)


def test_a_checkpoint_with_code_is_refused(visualize, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": Shell()}))
    assert visualize("--checkpoint", "weights.pkl", "--num", 1, "--output", "out") == 2
    assert re.search(r"weights\.pkl is refused.*system", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pkl"]


def test_says_where_to_draw(visualize, capsys):
    with pytest.raises(SystemExit) as stop:
        visualize("--num", 1)
    assert stop.value.code == 2
    assert "--output DIR, --show" in capsys.readouterr().err
