"""tools/visualize.py --corrections: what became of labels, by kind, with pictures of some."""

import shutil

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from helpers.grid_cases import run_here
from sl_detectron.audit.few_classes import FewClasses
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.visualization.corrections import Correction, draw_corrections

CLASSES = 3
# Given, true and most probable class: mended, made wrong, still wrong twice, right and left so.
LABELS = [(0, 1, 1), (2, 2, 0), (0, 1, 0), (0, 1, 2), (1, 1, 1), (2, 2, 2)]
GREEN, RED, ORANGE = (50, 205, 50), (255, 0, 0), (255, 165, 0)


def record_of(number, label, with_truth, folder):
    path = folder / f"{number}.png"
    Image.fromarray(np.full((60, 80, 3), 255, np.uint8)).save(path)
    given, true, _ = label
    annotation = {"annotation_id": number, "category_id": given, "bbox": [20, 10, 50, 30]}
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if with_truth and true != given:
        annotation["true_category_id"] = true
    return {"file_name": str(path), "image_id": number, "annotations": [annotation]}


def write_run(run, tmp_path, with_truth=True, few=False, fingerprint=None):
    """A run whose first round left a table of annotations and class targets."""
    records = [record_of(i, label, with_truth, tmp_path) for i, label in enumerate(LABELS)]
    crowd = {**records[0]["annotations"][0], "annotation_id": len(LABELS), "iscrowd": 1}
    records[0]["annotations"].append(crowd)
    table = AnnotationTable.of({"corrected": records})
    table.write(run / "round_1")
    probabilities = torch.full((len(LABELS) + 1, CLASSES), 0.1)
    probabilities[torch.arange(len(LABELS)), [best for *_, best in LABELS]] = 0.8
    labels = torch.tensor(table.labels())
    state = {"probabilities": probabilities, "fingerprint": fingerprint or table.fingerprint}
    if few:
        state["probabilities"] = vars(FewClasses.of(probabilities, labels, num_kept=1))
    torch.save(state, run / "round_1" / "class_targets.pth")


def count(path, colour):
    picture = np.asarray(Image.open(path).convert("RGB"))
    return int((picture == colour).all(axis=-1).sum())


@pytest.mark.parametrize("few", [False, True])
def test_kinds_by_the_truth(tmp_path, few):
    write_run(tmp_path / "run", tmp_path, few=few)
    done = run_here("visualize", "--corrections", tmp_path / "run", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "corrections.png"
    words = "6 labels: 1 wrong labels mended, 1 right labels made wrong, 2 wrong labels still wrong"
    assert done.stdout.strip() == f"{words}: {path}"
    assert 2.5 < count(path, RED) / count(path, GREEN) < 3.5
    assert not count(path, ORANGE)
    first = path.read_bytes()
    again = ("visualize", "--corrections", tmp_path / "run" / "round_1", "--output", tmp_path / "b")
    assert run_here(*again).returncode == 0
    assert (tmp_path / "b" / "corrections.png").read_bytes() == first


def test_without_a_truth_all_that_changed(tmp_path):
    write_run(tmp_path / "run", tmp_path, with_truth=False)
    command = ("visualize", "--corrections", tmp_path / "run", "--output", tmp_path / "out")
    done = run_here(*command)
    assert "6 labels: 3 changed labels: " in done.stdout
    whole = count(tmp_path / "out" / "corrections.png", ORANGE)
    assert run_here(*command, "--num", 1).returncode == 0
    assert 2.5 < whole / count(tmp_path / "out" / "corrections.png", ORANGE) < 3.5


def test_bad_input(tmp_path):
    command = ("visualize", "--corrections", tmp_path, "--output", tmp_path / "out")
    done = run_here(*command)
    assert done.returncode == 2
    assert f"there is no class_targets.pth in {tmp_path} or a round_N" in done.stderr
    write_run(tmp_path, tmp_path, fingerprint=7)
    done = run_here(*command)
    assert done.returncode == 2
    assert "round_1/class_targets.pth does not match the annotations" in done.stderr
    assert run_here(*command, "--num", 0).returncode == 2
    assert run_here(*command[:3], "--show").returncode == 2
    assert run_here(*command, "--first", "wrong").returncode == 2
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_read(tmp_path):
    """Training may have skipped some; others are drawn in their place, and without any it ends."""
    write_run(tmp_path / "run", tmp_path)
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    command = ("visualize", "--corrections", tmp_path / "run", "--output", tmp_path / "out")
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    assert "6 labels: 1 wrong labels mended" in done.stdout
    whole = count(tmp_path / "out" / "corrections.png", RED)
    assert 0.8 < whole / count(tmp_path / "out" / "corrections.png", GREEN) < 1.2
    for number in range(len(LABELS)):
        (tmp_path / f"{number}.png").unlink(missing_ok=True)
    done = run_here(*command[:3], "--output", tmp_path / "none")
    assert done.returncode == 2
    assert "no image of a label can be read. The paths are those of the training" in done.stderr
    assert "BROKEN_IMAGES" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_no_round_is_passed_over(tmp_path):
    write_run(tmp_path / "run", tmp_path)
    shutil.copytree(tmp_path / "run" / "round_1", tmp_path / "run" / "round_old")
    done = run_here("visualize", "--corrections", tmp_path / "run", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "box", [[200, 200, 230, 240], [-90, -90, -60, -60], [30, 30, 30, 30], [-10, 5, 200, 90]]
)
def test_odd_boxes_and_names(tmp_path, box):
    """Outside of the image, of no size, larger than it; a name that is no formula."""
    write_run(tmp_path, tmp_path)
    image = {"file_name": str(tmp_path / "0.png")}
    correction = Correction(image, box, 0, 1, 0.5, None)
    figure = draw_corrections({"changed": [correction]}, ("a$x", "$\\frac$"))
    figure.savefig(tmp_path / "x.png")
    shown = [image.get_array().size for image in figure.axes[0].images]
    is_outside = max(box) < 0 or min(box) > 100
    assert shown == [] if is_outside else shown[0] > 0
