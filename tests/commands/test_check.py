"""The report on a dataset: counts, flaws, notes and images that two sets share."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from helpers.field_cases import CLASSES, Commands, coco_content, pixels, write_coco, write_voc
from sl_detectron.model_zoo import get_config_file


@pytest.fixture
def commands(tmp_path, monkeypatch, capsys):
    commands = Commands(tmp_path, monkeypatch, capsys)
    yield commands
    commands.forget()


def check(commands, *args):
    code, printed = commands.run("check_dataset.py", *args, "--output", "report.json")
    return code, printed, json.loads(Path("report.json").read_text())


def test_a_sound_voc_set(commands):
    write_voc(Path("voc"))
    code, printed, (report,) = check(commands, "--voc-root", "voc", "--split", "train")
    assert code == 0
    assert report["classes"] == {"block": [3, 3], "disc": [3, 3], "wedge": [2, 2]}
    assert report["counts"]["annotations"] == 8
    assert report["sizes"]["image width"] == [96, 96, 96]
    assert "0 flaws" in printed


def test_what_is_wrong_is_counted_and_named(commands):
    root = write_voc(Path("voc"))
    xml = (root / "Annotations/a.xml").read_text()
    first = xml.index("<object>")
    last = xml.index("</object>") + len("</object>")
    twin, outside = xml[first:last], xml[first:last].replace(">34<", ">98<")
    (root / "Annotations/a.xml").write_text(xml.replace("<object>", twin + "<object>", 1))
    (root / "Annotations/b.xml").write_text(xml[:last] + outside + "</annotation>")
    (root / "Annotations/c.xml").write_text(xml[:first] + "</annotation>")
    shutil.copy(root / "JPEGImages/a.jpg", root / "JPEGImages/b.jpg")
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels(2).save(root / "JPEGImages/c.jpg", exif=exif)
    path = root / "JPEGImages/d.jpg"
    path.write_bytes(path.read_bytes()[:1200])
    code, printed, (report,) = check(commands, "--voc-root", "voc", "--split", "train")
    assert code == 2
    assert report["counts"] == {
        "images": 4,
        "images without objects": 1,
        "annotations": 7,
        "crowds": 0,
        "difficult objects": 0,
        "boxes partly outside of their image": 1,
        "copies of another annotation": 1,
        "boxes with two classes": 0,
        "images turned by their EXIF orientation": 1,
        "copies of another image": 1,
    }
    (flaw,) = report["flaws"]
    assert "image 'd'" in flaw
    assert "truncated" in flaw
    assert "\n1 flaw:\n" in printed
    last_line = printed.strip().splitlines()[-1]
    assert last_line == "check_dataset.py: error: flaws found: 1; they are listed above"
    given = ("--voc-root", "voc", "--split", "train", "--no-decode")
    assert check(commands, *given)[0] == 0


def test_sets_of_a_config(commands):
    content = coco_content()
    content["annotations"][0]["iscrowd"] = None
    content["annotations"][1]["category_id"] = 9
    write_coco(Path(), content)
    write_voc(Path("voc"))
    voc = {"NAME": "val", "ROOT": "voc", "SPLIT": "train", "CLASSES": CLASSES}
    opts = commands.opts(coco=True)
    opts += ["DATASETS.CUSTOM_VOC", str([voc]), "DATASETS.TEST", "('val',)"]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", "4"]
    toy = get_config_file("Toy/faster_rcnn_superloss.yaml")
    code, printed, reports = check(commands, "--config-file", toy, "--opts", *opts)
    assert code == 2
    assert [r["name"] for r in reports] == ["mine", "val"]
    mine, val = reports
    assert "no category 9" in mine["flaws"][0]
    assert "NUM_CLASSES is 4, but dataset 'mine' has 3" in mine["flaws"][1]
    assert "NUM_CLASSES is 4, but dataset 'val' has 3" in val["flaws"][0]
    assert "iscrowd of None is read as 0: 1" in mine["notes"][0]
    assert "note: 4 images are in mine and val" in printed


TWICE = {"NAME": "turned", "ROOT": "voc", "SPLIT": "train", "CLASSES": CLASSES[::-1]}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["DATASETS.TRAIN", "('mine', 'turned')"],
            "'mine' and 'turned' have different class lists",
        ),
        (["DATASETS.TEST", "('turned',)"], "number their classes in different orders"),
        (["DATASETS.TEST", "('mine',)", "TEST.EVALUATOR", "COCO"], "TEST.EVALUATOR must be one of"),
        (["DATASETS.BAD_ANNOTATIONS", "ignore"], "DATASETS.BAD_ANNOTATIONS must be one of"),
        (["DATALOADER.BROKEN_IMAGES", "ignore"], "DATALOADER.BROKEN_IMAGES must be one of"),
        (["DATASETS.LABEL_NOISE.MISSING.RATE", "1.0"], "no image left to train on"),
        (["MODEL.SUPERLOSS.CORRECTION.FROM_FEATURES", "True"], "needs a pretrained backbone"),
        (["MODEL.METHOD.NAME", "Mixup"], "MODEL.METHOD.NAME must be"),
        (["DATASETS.LABEL_NOISE.MANIFEST", "set.json"], "set.json, line 1: a change needs"),
    ],
)
def test_what_is_wrong_with_the_config_is_a_flaw_too(commands, opts, message):
    write_voc(Path("voc"))
    write_coco(Path())
    voc = {**TWICE, "NAME": "mine", "CLASSES": CLASSES}
    given = [*commands.opts(), "DATASETS.CUSTOM_VOC", str([voc, TWICE]), *opts]
    config = ("--config-file", get_config_file("Toy/faster_rcnn_superloss.yaml"), "--opts")
    code, printed = commands.run("check_dataset.py", *config, *given)
    assert code == 2
    listed = printed.partition("1 of the config:\n")[2].splitlines()[0]
    assert message in listed
    code, printed = commands.train(*given)
    assert code == 2
    assert message in printed.strip().splitlines()[-1]


def without_annotations(content):
    content["annotations"] = []


def of_other_images(content):
    for annotation in content["annotations"]:
        annotation["image_id"] += 100


def of_crowds(content):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "flaw"),
    [(without_annotations, "no object in 4 images"), (of_other_images, "no object in 4 images"),
     (of_crowds, "its annotations are all crowds in 4 images")],
)  # fmt: skip
def test_a_set_that_no_training_takes_fails(commands, change, flaw):
    content = coco_content()
    change(content)
    write_coco(Path(), content)
    code, _, (report,) = check(commands, "--coco-json", "set.json", "--images", "images")
    assert code == 2
    assert report["flaws"] == [f"{flaw}: there is nothing to train on"]
    with pytest.raises(ValueError, match=r"crowds|annotation"):
        commands.load(coco=True)


def test_a_file_of_a_test_server_fails_as_a_training_set_only(commands):
    content = coco_content()
    del content["annotations"]
    write_coco(Path(), content)
    given = ("--coco-json", "set.json", "--images", "images")
    code, printed, (report,) = check(commands, *given)
    assert code == 0, printed
    assert any("as of a test server" in note for note in report["notes"])
    config = ("--config-file", get_config_file("Toy/faster_rcnn_superloss.yaml"), "--opts")
    opts = commands.opts(coco=True)
    code, printed, (report,) = check(commands, *config, *opts)
    assert code == 2
    assert report["flaws"] == ["dataset 'mine' of DATASETS.TRAIN has no annotations"]
    opts += ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('mine',)"]
    assert check(commands, *config, *opts)[0] == 0


def test_difficult_objects_alone_are_a_flaw_of_a_test_set(commands):
    write_voc(Path("voc"), "<difficult>1</difficult>")
    config = ("--config-file", get_config_file("Toy/faster_rcnn_superloss.yaml"), "--opts")
    assert check(commands, *config, *commands.opts())[0] == 0
    code, printed, _ = check(commands, *config, *commands.opts(), "DATASETS.TEST", "('mine',)")
    assert code == 2
    assert "of DATASETS.TEST has objects that are difficult or crowds only" in printed


def test_what_a_training_leaves_out_is_no_flaw(commands):
    root = write_voc(Path("voc"))
    path = root / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<xmin>4<", "<xmin>77<", 1))
    path = root / "JPEGImages/d.jpg"
    path.write_bytes(path.read_bytes()[:1200])
    given = ("--voc-root", "voc", "--split", "train")
    config = ("--config-file", get_config_file("Toy/faster_rcnn_superloss.yaml"), "--opts")
    config += tuple(commands.opts())
    keys = ("DATASETS.BAD_ANNOTATIONS", "skip", "DATALOADER.BROKEN_IMAGES", "skip")
    commands.load(*keys)
    for args, left_out in (
        (given, 0),
        (config, 0),
        ((*given, "--bad-annotations", "skip"), 1),
        ((*given, "--broken-images", "skip"), 1),
        ((*config, *keys[:2]), 1),
        ((*config, *keys), 2),
        ((*given, "--bad-annotations", "skip", "--broken-images", "skip"), 2),
    ):
        code, printed, (report,) = check(commands, *args)
        assert (code == 0, len(report["left_out"]), len(report["flaws"])) == (
            left_out == 2,
            left_out,
            2 - left_out,
        ), printed
        assert (f"\n{left_out} left out:\n  (1)" in printed) == (left_out > 0)
    box, image = report["left_out"]
    assert "b.xml: object 0 ('block') needs xmin <= xmax" in box
    assert "image 'd', voc/JPEGImages/d.jpg: image file is truncated" in image


def test_a_set_of_which_nothing_is_left_fails(commands):
    root = write_voc(Path("voc"))
    skip = ("--bad-annotations", "skip", "--broken-images", "skip")
    for path in (root / "JPEGImages").iterdir():
        path.write_bytes(b"x")
    code, _, (report,) = check(commands, "--voc-root", "voc", "--split", "train", *skip)
    assert (code, report["flaws"]) == (2, ["none of the 4 images can be read"])
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = [100, 1, 5, 5]
    write_coco(Path(), content)
    code, _, (report,) = check(commands, "--coco-json", "set.json", "--images", "images", *skip)
    assert code == 2
    assert report["flaws"] == ["no object in 4 images: there is nothing to train on"]
    assert len(report["left_out"]) == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--coco-json", "set.json", "--images", "images", "--classes", "a"), "need --voc-root"),
        (("--voc-root", "voc", "--images", "images"), "--images needs --coco-json"),
        (("--config-file", "Toy/retinanet.yaml", "--bad-annotations", "skip"), "after --opts"),
        (
            ("--config-file", "Toy/retinanet.yaml", "--opts", "DATASETS.TRAIN", "()",
             "DATASETS.TEST", "()"),
            "Toy/retinanet.yaml names no dataset in DATASETS.TRAIN or DATASETS.TEST",
        ),
        (("--voc-root", "voc", "--split", "train", "--output", "images"), "images is a folder"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(commands, args, message):
    write_voc(Path("voc"))
    write_coco(Path())
    before = {*Path().rglob("*")}
    code, printed = commands.run("check_dataset.py", *args)
    assert code == 2
    assert message in printed.strip().splitlines()[-1]
    assert {*Path().rglob("*")} == before


def test_flaws_are_listed_where_there_is_no_object(commands):
    root = write_voc(Path("voc"))
    for path in sorted((root / "Annotations").iterdir())[:3]:
        path.write_text(path.read_text().replace("bndbox>", "box>"))
    (root / "Annotations/d.xml").write_text("<annotation/>")
    code, printed = commands.run("check_dataset.py", "--voc-root", "voc", "--split", "train")
    assert code == 2
    assert "voc/Annotations/a.xml: object 0 ('disc') has no <bndbox>" in printed
    assert "(7) image set 'train' of voc has no object in its 4 files; <annotation><obj" in printed
