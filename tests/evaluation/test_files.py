"""Detections from text and json files, and the report on them."""

import json
import os
import re
import tarfile

import numpy as np
import pytest
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from helpers.devkit import write_devkit
from sl_detectron.evaluation import evaluate_files, write_report
from sl_detectron.evaluation.average_precision import average_precision, best_overlaps
from sl_detectron.evaluation.detections import load_detections
from sl_detectron.evaluation.files import load_ground_truth
from sl_detectron.evaluation.results import check_report_path

IDS = ["000012", "2008_000003", "my image"]
CLASSES = ["cat", "dog"]
IMAGES = {
    "000012": [("cat", (11, 11, 50, 50), 0)],
    "2008_000003": [("dog", (1, 1, 20, 20), 0)],
    "my image": [],
}
ENTRY = {"image_id": "000012", "category_id": 0, "bbox": [10, 10, 40, 40], "score": 0.5}


def write_text(folder, **lines):
    folder.mkdir(exist_ok=True)
    for name, text in lines.items():
        (folder / f"comp4_det_test_{name}.txt").write_text(text)
    return folder


def write_json(tmp_path, entries):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    return path


def test_text_files_are_read_as_they_are(tmp_path):
    folder = write_text(
        tmp_path / "found",
        cat="000012 0.123456 -3.25 1 4 5\n\nmy image 1e-3 1 2 3 4\n",
        dog="2008_000003 0.5 1 2 3 4.5",
    )
    found = load_detections(folder, "test", IDS, CLASSES)
    assert found.images.tolist() == [0, 2, 1]
    assert found.classes.tolist() == [0, 0, 1]
    assert found.scores.tolist() == [0.123456, 1e-3, 0.5]
    assert found.boxes.tolist() == [[-3.25, 1, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4.5]]


def test_class_without_file_has_no_detections(tmp_path, caplog):
    folder = write_text(tmp_path / "found", dog="000012 0.5 1 2 3 4\n")
    assert load_detections(folder, "test", IDS, CLASSES).classes.tolist() == [1]
    assert "comp4_det_test_cat.txt" in caplog.text


def test_json_boxes_become_one_based(tmp_path):
    path = write_json(tmp_path, [ENTRY, {**ENTRY, "bbox": [0.5, 0, 1.26, 3], "score": 0.12345}])
    found = load_detections(path, "test", IDS, CLASSES)
    assert found.boxes.tolist() == [[11, 11, 50, 50], [1.5, 1, 1.76, 3]]
    assert found.scores.tolist() == [0.5, 0.12345]
    rounded = load_detections(path, "test", IDS, CLASSES, rounding=True)
    assert rounded.boxes.tolist() == [[11, 11, 50, 50], [1.5, 1, 1.8, 3]]
    assert rounded.scores.tolist() == [0.5, 0.123]


def test_what_is_odd_in_all_detections_is_told(tmp_path, caplog):
    sizes = [(60, 60), None, (10, 10)]
    path = write_json(tmp_path, [{**ENTRY, "category_id": 1.0, "bbox": [10, 10, 53, 40]}])
    found = load_detections(path, "test", IDS, CLASSES, sizes=sizes)
    assert found.classes.tolist() == [1]
    assert "no detection has the category_id 0, 'cat'; it is the 0-based index" in caplog.text
    counted = "detections that reach out of their image by more than 2 pixels: 1 (the first: image "
    assert counted + "'000012', [10.0, 10.0, 53.0, 40.0])" in caplog.text
    caplog.clear()
    entries = [ENTRY, {**ENTRY, "bbox": [5, 5, 0, 0]}, {**ENTRY, "bbox": [1, 2, 3, 4]}, ENTRY]
    load_detections(write_json(tmp_path, entries), "test", IDS, CLASSES, sizes=sizes)
    assert "all 4 detections have the score 0.5, so that none is first" in caplog.text
    assert "each a false positive: 1 (the first: image '000012', [10.0, 10.0, 40" in caplog.text
    assert "detections without area: 1 (the first: image '000012', [5.0, 5.0, 0.0" in caplog.text
    caplog.clear()
    for box in ([10, 10, 52, 40], [-2, 0, 4, 4]):
        load_detections(
            write_json(tmp_path, [{**ENTRY, "bbox": box}]), "test", IDS, CLASSES, sizes=sizes
        )
    assert not caplog.text
    load_detections(write_json(tmp_path, []), "test", IDS, CLASSES)
    assert "no detection in the files, so that every AP is 0" in caplog.text


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 0.4], [0, 0, 1, 0.5], [0.2, 0.2, 0.9, 1.01]])
def test_detections_in_fractions_of_the_image(tmp_path, caplog, box):
    fractions = {**ENTRY, "bbox": box}
    path = write_json(tmp_path, [fractions] * 3)
    with pytest.raises(ValueError, match=r"all 3 detections are given as fractions of the image"):
        load_detections(path, "test", IDS, CLASSES)
    numbers = " ".join(map(str, box))
    folder = write_text(tmp_path / "found", cat=f"000012 0.9 {numbers}\n", dog="")
    with pytest.raises(ValueError, match=r"found: all 1 detections are given as fractions"):
        load_detections(folder, "test", IDS, CLASSES)
    assert not caplog.text
    load_detections(write_json(tmp_path, [ENTRY, fractions]), "test", IDS, CLASSES)
    told = "detections given as fractions of the image, not in pixels: 1 (the first: image '000012'"
    assert (told in caplog.text) == (max(box) <= 1)
    # A pixel and its neighbours are no fractions.
    load_detections(write_json(tmp_path, [{**ENTRY, "bbox": [0, 0, 1, 1]}]), "test", IDS, CLASSES)


@pytest.mark.parametrize("corners", ["30 30 20 40", "11 50 50 11", "40 40 10 20"])
def test_text_boxes_of_another_form_are_refused(tmp_path, corners):
    folder = write_text(tmp_path / "found", cat=f"000012 0.9 1 2 3 4\n000012 0.5 {corners}\n")
    with pytest.raises(ValueError, match=r"cat\.txt, line 2: .*with xmin <= xmax and ymin <= ymax"):
        load_detections(folder, "test", IDS, CLASSES)
    # A box without area, as a detector may give it.
    load_detections(write_text(folder, cat="000012 0.9 21 21 20 19.9\n"), "test", IDS, CLASSES)


def test_numbers_that_fit_two_images_are_none(tmp_path):
    path = write_json(tmp_path, [{**ENTRY, "image_id": 7}])
    assert load_detections(path, "test", ["a", "07"], CLASSES).images.tolist() == [1]
    with pytest.raises(ValueError, match="image 7 is not in the image set"):
        load_detections(path, "test", ["7", "07"], CLASSES)


def test_json_ids_may_be_the_numbers_in_the_names(tmp_path):
    entries = [{**ENTRY, "image_id": i} for i in (2008000003, 12, "my image")]
    found = load_detections(write_json(tmp_path, entries), "test", IDS, CLASSES)
    assert found.images.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000012 0.5 1 2 3", "needs 'image_id score xmin ymin xmax ymax'"),
        ("0.5 1 2 3 4", "needs 'image_id score"),
        ("000012 0.5 1 2 three 4", "needs 'image_id score"),
        ("000012 nan 1 2 3 4", "needs 'image_id score"),
        ("000012 0.5 1 2 inf 4", "needs 'image_id score"),
        ("000013 0.5 1 2 3 4", "image '000013' is not in the image set"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    folder = write_text(tmp_path / "found", cat=f"000012 0.5 1 2 3 4\n{line}\n", dog="")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_detections(folder, "test", IDS, CLASSES)
    assert f"{folder / 'comp4_det_test_cat.txt'}, line 2" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "13"}, "image '13' is not in the image set"),
        ({"image_id": ["000012"]}, "needs image_id, category_id"),
        ({"category_id": 2}, r"category_id 2 is not in 0\.\.1"),
        ({"category_id": -1}, r"category_id -1 is not in 0\.\.1"),
        ({"category_id": "cat"}, "category_id must be the index of a class"),
        ({"bbox": [1, 2, 3]}, r"needs image_id, category_id, bbox \[x, y, width, height\]"),
        ({"bbox": None}, "needs image_id"),
        ({"bbox": "1234"}, "needs image_id"),
        ({"category_id": True}, "category_id must be the index of a class"),
        ({"score": "high"}, "needs image_id"),
        ({"score": float("nan")}, "must be finite"),
        ({"bbox": [1, 2, 3, float("inf")]}, "must be finite"),
        ({"bbox": [5, 2, -3, 4]}, r"must not be negative; got .*\[5, 2, -3, 4\]"),
        ({"bbox": [5, 2, 3, -0.5]}, "must not be negative"),
    ],
)
def test_bad_json_entry_is_named(tmp_path, change, message):
    path = write_json(tmp_path, [ENTRY, {**ENTRY, **change}])
    with pytest.raises(ValueError, match=message) as caught:
        load_detections(path, "test", IDS, CLASSES)
    assert f"{path}[1]" in str(caught.value)


def test_entry_without_a_key_is_named(tmp_path):
    for entry in (3, None, [], {k: v for k, v in ENTRY.items() if k != "score"}):
        with pytest.raises(ValueError, match=r"json\[0\]: needs image_id"):
            load_detections(write_json(tmp_path, [entry]), "test", IDS, CLASSES)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_detections(tmp_path / "nowhere", "test", IDS, CLASSES)
    folder = write_text(tmp_path / "found", cow="")
    with pytest.raises(FileNotFoundError, match=r"holds no comp4_det_test_cat\.txt .*_cow\.txt"):
        load_detections(folder, "test", IDS, CLASSES)
    with pytest.raises(ValueError, match="must hold a list of detections; got a dict"):
        load_detections(write_json(tmp_path, {}), "test", IDS, CLASSES)
    latin = tmp_path / "found" / "comp4_det_test_cat.txt"
    latin.write_bytes("Z\u00fcrich 0.5 1 2 3 4\n".encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(f"{latin} is not UTF-8 text")):
        load_detections(folder, "test", IDS, CLASSES)
    (tmp_path / "results.json").write_bytes(b'["Z\xfcrich"]')
    with pytest.raises(ValueError, match=r"results\.json is not json"):
        load_detections(tmp_path / "results.json", "test", IDS, CLASSES)
    (tmp_path / "results.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"results\.json is not json"):
        load_detections(tmp_path / "results.json", "test", IDS, CLASSES)


def test_report_holds_json_and_pictures(tmp_path):
    root = write_devkit(tmp_path / "set", IMAGES)
    folder = write_text(tmp_path / "found", cat="000012 0.5 11 11 50 50\n", dog="")
    result = evaluate_files(root, "test", folder, "area", class_names=[*CLASSES, "$cow$"])
    output = tmp_path / "new" / "out.json"
    written = write_report(result, output)
    assert sorted(p.name for p in output.parent.iterdir()) == sorted(p.name for p in written)
    assert [p.read_bytes()[:4] for p in written[1:]] == [b"\x89PNG"] * 2
    report = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert (report["AP"], report["AP50"], report["AP75"]) == (50, 50, 50)
    cat, dog, cow = (report["per_class"][name] for name in (*CLASSES, "$cow$"))
    assert (cat["AP"], cat["AP50"], cat["recall50"], cat["AP_by_iou"]["95"]) == (100,) * 4
    assert (dog["AP"], dog["num_objects"], dog["num_detections"]) == (0, 1, 0)
    assert (cow["AP"], cow["AP_by_iou"]["50"], cow["num_objects"]) == (None, None, 0)


def test_report_path_is_checked(tmp_path):
    (tmp_path / "dir.json").mkdir()
    (tmp_path / "file").touch()
    check_report_path(tmp_path / "new" / "out.json")
    for name, message in (
        ("dir.json", "is a folder; name a file in it"),
        ("out.txt", r"name it .*out\.txt\.json"),
        ("out", r"name it .*out\.json"),
        ("file/out.json", "file is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            check_report_path(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["dir.json", "file"]


def test_failed_report_leaves_the_old_one_alone(tmp_path, monkeypatch):
    root = write_devkit(tmp_path / "set", IMAGES)
    folder = write_text(tmp_path / "found", cat="", dog="")
    result = evaluate_files(root, "test", folder, "07", class_names=CLASSES)
    output = tmp_path / "out" / "out.json"
    output.parent.mkdir()
    output.write_text("old")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(result, output)
    assert output.read_text() == "old"
    assert os.listdir(output.parent) == ["out.json"]


def test_known_ap_of_real_detections(datasets_root, tmp_path):
    archive = datasets_root / "voc07_reference.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "voc07_reference"
    known = json.loads((root / "reference_ap.json").read_text())
    for metric, key in (("07", "voc07_11pt"), ("area", "area")):
        result = evaluate_files(root / "VOC2007", "test", root / "detections", metric)
        ap50 = {name: row["AP50"] / 100 for name, row in result.per_class().items()}
        for name, (low, high) in bounds_of_ties(root, metric).items():
            # The known values were made by an unstable sort, of which ties may come out in any way.
            assert low - 1e-9 <= known[key][name] <= high + 1e-9, name
            assert low - 1e-9 <= ap50[name] <= high + 1e-9, name
            assert high - low < 1e-4, name


def bounds_of_ties(root, metric):
    """{class: least and largest AP50 of any order of detections that have equal scores}."""
    image_ids, truth = load_ground_truth(root / "VOC2007", "test", CLASS_NAMES)
    found = load_detections(root / "detections", "test", image_ids, CLASS_NAMES)
    overlaps, objects = best_overlaps(found, truth)
    bounds = {}
    for class_id, name in enumerate(CLASS_NAMES):
        num_objects = int(((truth.classes == class_id) & ~truth.difficult).sum())
        mine = np.flatnonzero(found.classes == class_id)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        hits, counts, claimed = [], [], set()
        for i in mine:
            counts_at_all = overlaps[i] <= 0.5 or not truth.difficult[objects[i]]
            is_hit = counts_at_all and overlaps[i] > 0.5 and objects[i] not in claimed
            claimed |= {objects[i]} if is_hit else set()
            hits.append(is_hit)
            counts.append(counts_at_all)
        # How many of a group of equal scores hit does not depend on their order.
        aps = []
        for first in (False, True):
            order = np.lexsort((np.array(hits) != first, -found.scores[mine]))
            hit, counted = np.array(hits)[order], np.array(counts)[order]
            true, all_ = np.cumsum(hit)[hit], np.cumsum(counted)[hit]
            aps.append(average_precision(true / num_objects, true / all_, metric))
        bounds[name] = aps
    return bounds


def test_equal_scores_count_in_the_order_of_the_file(tmp_path):
    """Also where numpy's default sort, by blocks of what a processor can do at once, would not."""
    box, far = "11 11 50 50", "90 90 99 99"
    for place in (0, 1, 40, 299):
        lines = ["000012 0.500 " + (box if i == place else far) for i in range(300)]
        folder = write_text(tmp_path / str(place), cat="\n".join(lines), dog="")
        root = write_devkit(tmp_path / f"set{place}", IMAGES)
        result = evaluate_files(root, "test", folder, "area", class_names=CLASSES)
        expected = 100 / (place + 1)
        assert result.per_class()["cat"]["AP50"] == pytest.approx(expected, abs=1e-9)
