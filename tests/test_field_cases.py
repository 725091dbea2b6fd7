"""Sets as other people have them: every command takes one in the same way, or refuses it alike."""

import codecs
import gzip
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask

from helpers.field_cases import (
    CLASSES,
    HEIGHT,
    IMAGES,
    OBJECTS,
    TINY,
    WIDTH,
    Commands,
    coco_content,
    for_each,
    pixels,
    voc_object,
    voc_xml,
    write_coco,
    write_voc,
)
from sl_detectron import SuperLossTrainer
from sl_detectron.audit.correct import apply_decisions
from sl_detectron.audit.decisions import Decision, Decisions
from sl_detectron.data.annotation_ids import dataset_source
from sl_detectron.data.class_checks import check_test_classes
from sl_detectron.data.datasets import load_dataset
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.registered_sets import register_coco_datasets, register_custom_datasets
from sl_detectron.data.test_loader import build_test_loader
from sl_detectron.engine import setup
from sl_detectron.engine.setup import setup_cfg
from sl_detectron.evaluation.evaluator_choice import build_evaluator
from sl_detectron.model_zoo import get_config


@pytest.fixture
def commands(tmp_path, monkeypatch, capsys):
    commands = Commands(tmp_path, monkeypatch, capsys)
    yield commands
    commands.forget()


def edit(path, *pairs):
    """Replace texts in every annotation file, or in one file."""
    for file in sorted(path.glob("*.xml")) if path.is_dir() else [path]:
        text = file.read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)


def boxes_of(table):
    return [[a["bbox"] for a in r["annotations"]] for r in table.records()]


EXPECTED = [[box for _, box in OBJECTS[name]] for name in IMAGES]
NUM_OBJECTS = sum(map(len, EXPECTED))


# Forms of VOC sets that are taken: a change, and what is warned of.
def difficult(text):
    return lambda root: edit(root / "Annotations", (">0</difficult>", f">{text}</difficult>"))


def without_size(root):
    edit(root / "Annotations", (f"<width>{WIDTH}</width><height>{HEIGHT}</height>", ""))


def size_of_zero(root):
    size = f"<width>{WIDTH}</width><height>{HEIGHT}</height>"
    edit(root / "Annotations", (size, "<width>0</width><height>0</height>"))


def suffix(new, image_format):
    def change(root):
        for i, name in enumerate(IMAGES):
            (root / "JPEGImages" / f"{name}.jpg").unlink()
            pixels(i).save(root / "JPEGImages" / f"{name}{new}", image_format)

    return change


def image_set(text):
    return lambda root: (root / "ImageSets/Main/train.txt").write_text(text)


def in_b(*pairs):
    return lambda root: edit(root / "Annotations/b.xml", *pairs)


def of_bytes(change):
    path = Path("Annotations/b.xml")
    return lambda root: (root / path).write_bytes(change((root / path).read_text()))


def latin_1(text):
    return text.replace("<size>", "<folder>caf\u00e9</folder><size>").encode("latin-1")


def exif_of_words(root):
    """An orientation that is no number, in the one entry of a TIFF header."""
    entry = struct.pack("<HHI4sI", 0x0112, 2, 2, b"x", 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry
    pixels(1).save(root / "JPEGImages/b.jpg", exif=exif)


def into_devkit(root):
    root.rename("inner")
    root.mkdir()
    Path("inner").rename(root / "VOC2007")


GOOD_VOC = {
    "plain": (lambda root: None, ""),
    "difficult Unspecified": (difficult("Unspecified"), "'Unspecified' is read as 0: 8"),
    "difficult blank": (difficult(" "), "'' is read as 0: 8"),
    "difficult 0.0": (difficult("0.0"), r"'0\.0' is read as 0: 8"),
    "difficult False": (difficult("False"), "'False' is read as 0: 8"),
    "no size": (without_size, "without a <size>.*: 4"),
    "size of 0": (size_of_zero, "without a <size>.*: 4"),
    "upper case": (suffix(".PNG", "PNG"), ""),
    "mixed case": (suffix(".Jpg", "JPEG"), ""),
    "bitmap": (suffix(".bmp", "BMP"), ""),
    "tif": (suffix(".tif", "TIFF"), ""),
    "webp": (suffix(".webp", "WEBP"), ""),
    "names of files": (image_set("a.jpg\nb.jpg\nc.jpg\nd.jpg\n"), ""),
    "two boxes": (
        in_b(("</object>", "<bndbox><xmin>1</xmin></bndbox></object>")),
        "objects with 2 <bndbox>, of which the first is read: 2",
    ),
    "two names": (in_b(("<bndbox>", "<name>disc</name><bndbox>")), "with 2 <name>.*: 2"),
    "two corners": (in_b(("</bndbox>", "<xmax>50</xmax></bndbox>")), "with 2 <xmax>.*: 2"),
    "deleted": (
        in_b(("<bndbox>", "<deleted>1</deleted><bndbox>")),
        "objects that are read though <deleted> is 1: 2",
    ),
    "byte order mark": (of_bytes(lambda text: b"\xef\xbb\xbf" + text.encode()), ""),
    "Latin-1 that is declared": (
        of_bytes(lambda text: latin_1(f"<?xml version='1.0' encoding='ISO-8859-1'?>{text}")),
        "",
    ),
    "CDATA": (in_b((">block<", "><![CDATA[block]]><")), ""),
    "character entity": (in_b((">block<", ">&#98;lock<")), ""),
    "comments": (
        in_b((">block<", ">bl<!-- x -->ock<"), ("<object>", "<!-- <object/> --><object>")),
        "",
    ),
    "EXIF of words": (exif_of_words, ""),
    "column of a class": (image_set("a.jpg 1\nb  1\nc.jpg 0\nd  1\n"), ""),
}


@pytest.mark.parametrize(("change", "warned"), GOOD_VOC.values(), ids=GOOD_VOC)
def test_voc_forms_are_taken_by_every_command(commands, caplog, change, warned):
    change(write_voc(Path("voc")))

    def check(done=(0, "")):
        code, printed = done
        assert code == 0, printed
        text = re.sub(r"\s+", " ", printed + caplog.text)
        assert len(re.findall(warned, text)) >= 1 if warned else "the first" not in text
        caplog.clear()

    table = commands.load().annotations
    check()
    assert boxes_of(table) == EXPECTED
    check(commands.inject())
    assert len(Path("noisy/manifest.jsonl").read_text().splitlines()) == NUM_OBJECTS // 2
    code, printed = commands.run("inject_noise.py", "--restore", "noisy", "--output", "clean")
    assert code == 0, printed
    for name in IMAGES:
        clean = Path(f"clean/Annotations/{name}.xml").read_bytes()
        assert clean == Path(f"voc/Annotations/{name}.xml").read_bytes()
    check(commands.evaluate())
    assert json.loads(Path("scores.json").read_text())["AP50"] == pytest.approx(100)
    check(commands.visualize())
    sources = {"mine": {"format": "voc", "root": "voc", "split": "train"}}
    given, box = OBJECTS["b"][1]
    wrong = Decision("mine", "b", 1, tuple(box), given, "wrong", "disc")
    assert apply_decisions(Decisions(tuple(CLASSES), sources, (wrong,)), "fixed") == {"mine": 1}


# Forms that every command refuses: a change of file "b", and what the message says.
def first_box(*corners):
    """The first object of file "b" with other corners."""
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners))
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
    old = voc_object(*OBJECTS["b"][0]).partition("<bndbox>")[2].partition("</bndbox>")[0]
    return in_b((old, inner))


BAD_VOC = {
    "wrapper": (
        in_b(("<object>", "<objects><object>"), ("</object>", "</object></objects>")),
        r"b\.xml: objects are read from <annotation><object>, and there are 0; .*4 <object> elsew",
    ),
    "other tags": (in_b(("object>", "item>")), r"b\.xml: objects are read from .*2 <bndbox> else"),
    "fractions": (first_box(0.1, 0.2, 0.5, 0.6), "object 0 .*is given as fractions of the image"),
    "all boxes fractions": (
        lambda root: [
            path.write_text(re.sub(r"(?<=m[ai][nx]>)(\d+)", lambda m: f"{int(m[1]) / 60}", text))
            for path in (root / "Annotations").iterdir()
            for text in [path.read_text()]
        ],
        "all 4 boxes .* lie within its first 2 x 2 pixels; boxes are in pixels",
    ),
    "outside": (first_box(200, 1, 220, 9), "object 0 .*is outside of its image of 96 x 64"),
    "swapped corners": (first_box(40, 1, 5, 9), "object 0 .*needs xmin <= xmax"),
    "misspelt class": (in_b(("block", "blcok")), r"class 'blcok' is not .*nearest are 'block'"),
    "gb2312": (
        lambda root: (root / "Annotations/b.xml").write_bytes(
            b"<?xml version='1.0' encoding='gb2312'?>" + voc_xml("b").encode()
        ),
        r"b\.xml, line 1.*save it as UTF-8, it declares 'gb2312'",
    ),
    "list of a YOLO set": (
        image_set("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n"),
        r"'data/obj_train_data/a\.jpg'.*paths of a YOLO set.*docs/data\.md",
    ),
    "class in capitals": (
        in_b(("block", "Block")),
        "class 'Block' is not in the class list; it looks like one: 'block' and 'Block'",
    ),
    "class in other letters": (
        in_b(("block", "blo\u0441k")),
        r"class 'blo\u0441k' \(written 'blo\\u0441k'\) is not in .*nearest are 'block'",
    ),
    "UTF-8 that it is not": (of_bytes(latin_1), r"b\.xml, line 1.*UTF-8, which it is not"),
    "UTF-16": (of_bytes(lambda text: text.encode("utf-16")), r"b\.xml: .*UTF-16 are not accepted"),
    "no text": (of_bytes(lambda text: b""), r"b\.xml, line 1, column 0: not XML: no element"),
    "a page of the web": (of_bytes(lambda text: b"<html/>"), r"b\.xml: .* none \(<html> with no\)"),
    "two files in one": (of_bytes(lambda text: (text * 2).encode()), r"b\.xml, line 1.*junk after"),
    "namespace": (
        in_b(("<annotation>", "<annotation xmlns='http://x.example'>")),
        r"b\.xml: objects are read from .*there are 0; the file has 4 .*object> elsewhere",
    ),
    "object in an object": (
        in_b(("</object></annotation>", "<object/></object></annotation>")),
        r"b\.xml: objects are read from .*there are 2; the file has 1 <object> elsewhere",
    ),
    "nested name": (in_b((">block<", "><en>block</en><")), r"b\.xml: object 0 has no <name>"),
    "digits with _": (first_box("1_0", 7, 34, 40), "object 0 .*needs numbers; got xmin='1_0'"),
    "decimal comma": (first_box("4,0", 7, 34, 40), "object 0 .*needs numbers; got xmin='4,0'"),
    "no number": (first_box("nan", 7, 34, 40), "object 0 .*needs xmin <= xmax"),
    "suffix in capitals": (
        lambda root: (root / "Annotations/b.xml").rename(root / "Annotations/b.XML"),
        r"'b' of .*has no annotation .*b\.xml; the folder has 'b\.XML'",
    ),
    "ids in capitals": (
        image_set("a\nB\n"),
        r"'B' of .*has no annotation .*B\.xml; the folder has 'b\.xml'",
    ),
    "ids with commas": (image_set("a,\nb,\n"), "image 'a,' of image set .*has no annotation"),
    "control characters": (image_set("a\0\nb\n"), r"image id 'a\\x00' has control characters"),
    "id and file": (image_set("a\nb\na.jpg\n"), "names image 'a' 2 times"),
    "the devkit": (into_devkit, r"voc has 'VOC2007': is it one of them\?"),
    "no image of the class": (image_set("a -1\nb -1\n"), "all 2 images have -1"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_VOC.values(), ids=BAD_VOC)
def test_voc_forms_are_refused_by_every_command(commands, change, message):
    change(write_voc(Path("voc")))
    before = {*Path().iterdir()}
    with pytest.raises((ValueError, OSError), match=message):
        commands.load()
    done = [commands.inject(), commands.visualize()]
    # Other classes are left out of an evaluation.
    done += [] if "class '" in message else [commands.evaluate()]
    for code, printed in done:
        assert code == 2, printed
        assert re.search(message, printed.strip().splitlines()[-1])
    assert {p.name for p in {*Path().iterdir()} - before} <= {"found.json"}


def test_all_flaws_come_at_once_and_can_be_left_out(commands, caplog):
    write_voc(Path("voc"))
    box = "<xmin>50</xmin><ymin>60</ymin><xmax>4</xmax><ymax>9</ymax>"
    bad = f"<object><name>disc</name><bndbox>{box}</bndbox></object>"
    # Before the others, so that positions in the file are not those among the good ones.
    edit(Path("voc/Annotations/b.xml"), ("</size>", "</size>" + bad * 30))
    Path("voc/Annotations/d.xml").write_text("<annotation>")
    code, printed = commands.inject()
    assert code == 2
    listed = re.findall(r"\((\d+)\) voc", printed.replace(str(Path.cwd()) + "/", ""))
    assert listed == [str(i) for i in range(1, 21)]
    assert re.search("has 31 flaws: .*; and 11 more; BAD_ANNOTATIONS skip", printed)
    table = commands.load("DATASETS.BAD_ANNOTATIONS", "skip").annotations
    assert boxes_of(table) == EXPECTED[:3]
    assert re.search("30 boxes left out.*1 image left out", caplog.text, flags=re.DOTALL)
    skip = ("--bad-annotations", "skip", "--dataset-name", "mine")
    code, printed = commands.inject(*skip)
    assert code == 0, printed
    lines = Path("noisy/manifest.jsonl").read_text().splitlines()
    assert {json.loads(line)["annotation"] for line in lines} <= {0, 1}
    assert Path("noisy/Annotations/b.xml").read_text().count(bad) == 30
    assert commands.evaluate(*skip[:2])[0] == 0
    replay = ("DATASETS.LABEL_NOISE.MANIFEST", "noisy/manifest.jsonl")
    noisy = [*commands.load(*replay, "DATASETS.BAD_ANNOTATIONS", "skip").annotations.records()]
    on_disk = commands.load("DATASETS.BAD_ANNOTATIONS", "skip", root="noisy").annotations.records()
    labels = [[[a["category_id"] for a in r["annotations"]] for r in rs] for rs in (noisy, on_disk)]
    assert labels[0] == labels[1]
    given, box = OBJECTS["b"][1]
    sources = {"mine": {"format": "voc", "root": "voc", "split": "train"}}
    wrong = Decision("mine", "b", 1, tuple(box), given, "wrong", "disc")
    apply_decisions(Decisions(tuple(CLASSES), sources, (wrong,)), "fixed")
    names = re.findall("<name>(.*?)<", Path("fixed/mine/Annotations/b.xml").read_text())
    assert names == ["disc"] * 30 + ["block", "disc"]


def test_a_forgotten_class_list_is_an_error(commands):
    write_voc(Path("voc"))
    vocs = "aeroplane,bicycle"
    for code, printed in (
        commands.evaluate("--classes", vocs),
        commands.inject("--classes", vocs),
    ):
        assert code == 2
        message = "no object of the classes 'aeroplane', 'bicycle'; it has 'block' (3), 'disc' (3)"
        assert message in printed


def test_image_sets_are_all_listed(commands):
    root = write_voc(Path("voc"))
    for name in ("disc_train", "block_train", "my_split"):
        (root / f"ImageSets/Main/{name}.txt").write_text("a.jpg 1\nb.jpg -1\n")
    (root / "ImageSets/Main/train.txt").unlink()
    code, printed = commands.train()
    assert code == 2
    assert (
        "the folder has: 'block_train', 'disc_train', 'my_split'; those of one class each"
        in printed
    )


def test_box_of_one_pixel(commands):
    root = write_voc(Path("voc"))
    first_box(7, 9, 7, 9)(root)
    assert boxes_of(commands.load().annotations)[1][0] == [6, 8, 7, 9]
    assert commands.inject()[0] == commands.visualize()[0] == commands.evaluate()[0] == 0


# Forms of COCO sets that are taken: a change of the content, and what is warned of.
def set_all(part, **values):
    return lambda content: for_each(content, part, lambda entry: entry.update(values))


def drop(part, *keys):
    return lambda content: for_each(content, part, lambda e: [e.pop(key) for key in keys])


def convert(part, key, kind):
    return lambda content: for_each(content, part, lambda e: e.update({key: kind(e[key])}))


MASK = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8))
COMPRESSED = mask.encode(MASK)["counts"].decode()

GOOD_COCO = {
    "plain": (lambda content: content, ""),
    "image ids 1.0": (convert("annotations", "image_id", float), ""),
    "image ids in words": (convert("annotations", "image_id", str), ""),
    "ids of images in words": (convert("images", "id", str), ""),
    "category ids in words": (convert("annotations", "category_id", str), ""),
    "iscrowd null": (set_all("annotations", iscrowd=None), "iscrowd of None is read as 0: 8"),
    "no iscrowd, no area": (drop("annotations", "iscrowd", "area"), ""),
    "area null": (set_all("annotations", area=None), ""),
    "no size": (drop("images", "height", "width"), "without height and width.*: 4"),
    "size null": (set_all("images", height=None), "without height and width.*: 4"),
    "segmentation null": (set_all("annotations", segmentation=None), ""),
    "ignore null": (set_all("annotations", ignore=None), ""),
    **{
        f"RLE {name}": (set_all("annotations", segmentation=rle), warned and f"no RLE .*: {warned}")
        for name, rle, warned in (
            ("of words", {"counts": [-5, "x"], "size": ["a"]}, 8),
            ("below 0", {"counts": [-5, 6149], "size": [HEIGHT, WIDTH]}, 8),
            ("of another size", {"counts": [10, 20, 70], "size": [10, 10]}, 8),
            ("turned", {"counts": [10, 20, 6114], "size": [WIDTH, HEIGHT]}, 8),
            ("too short", {"counts": [10, 20], "size": [HEIGHT, WIDTH]}, 8),
            ("too long", {"counts": "PPYo12", "size": [HEIGHT, WIDTH]}, 8),
            ("of other letters", {"counts": "\u00e9", "size": [HEIGHT, WIDTH]}, 8),
            ("of null", {"counts": None, "size": None}, 8),
            ("sound", {"counts": [10, 20, 6114], "size": [HEIGHT, WIDTH]}, ""),
            ("compressed", {"counts": COMPRESSED, "size": [HEIGHT, WIDTH]}, ""),
        )
    },
    "flat segmentation": (set_all("annotations", segmentation=[1, 2, 3]), "neither polygons.*: 8"),
}


@pytest.mark.parametrize(("change", "warned"), GOOD_COCO.values(), ids=GOOD_COCO)
def test_coco_forms_are_taken_by_every_command(commands, caplog, change, warned):
    path = write_coco(Path(), change(coco_content()))

    def check(done=(0, "")):
        code, printed = done
        assert code == 0, printed
        text = re.sub(r"\s+", " ", printed + caplog.text)
        assert re.search(warned, text) if warned else "the first" not in text
        caplog.clear()

    assert boxes_of(commands.load(coco=True).annotations) == EXPECTED
    check()
    check(commands.inject(coco=True))
    lines = [json.loads(line) for line in Path("noisy/manifest.jsonl").read_text().splitlines()]
    assert len(lines) == NUM_OBJECTS // 2
    assert {line["image_id"] for line in lines} <= {1, 2, 3, 4}
    code, printed = commands.run("inject_noise.py", "--restore", "noisy", "--output", "clean")
    assert code == 0, printed
    assert Path("clean/set.json").read_bytes() == path.read_bytes()
    check(commands.visualize(coco=True))
    sources = {"mine": {"format": "coco", "json_file": "set.json"}}
    given, box = OBJECTS["b"][1]
    wrong = Decision("mine", 2, 1, tuple(box), given, "wrong", "disc")
    assert apply_decisions(Decisions(tuple(CLASSES), sources, (wrong,)), "fixed") == {"mine": 1}
    register_coco_instances("scored", {}, "set.json", "images")
    load_dataset("scored")
    scores = perfect_scores("scored")
    assert scores["AP"] == pytest.approx(100)


def perfect_scores(name):
    """COCO's metrics of detections that are the annotations."""
    evaluator = build_evaluator(name, output_dir="scores")
    evaluator.reset()
    for i, image in enumerate(IMAGES, start=1):
        boxes = torch.tensor([box for _, box in OBJECTS[image]], dtype=torch.float32)
        classes = torch.tensor([CLASSES.index(c) for c, _ in OBJECTS[image]])
        found = {"pred_boxes": Boxes(boxes), "scores": torch.ones(2), "pred_classes": classes}
        instances = Instances((HEIGHT, WIDTH), **found)
        evaluator.process([{"image_id": i}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def of_second(**values):
    """A change of one annotation."""
    return lambda content: content["annotations"][1].update(values) or content


def boxes_of_all(box):
    return lambda content: drop("annotations", "area")(set_all("annotations", bbox=box)(content))


BAD_COCO = {
    "annotations elsewhere": (
        lambda content: {**content, "annotations": {"list": content["annotations"]}},
        "annotations is a dict, not a list",
    ),
    "annotations renamed": (
        lambda content: {{"annotations": "annotation"}.get(k, k): v for k, v in content.items()},
        r"KeyError\('annotations'\); it has \['images', 'annotation', 'categories'\]",
    ),
    "box of three": (
        of_second(bbox=[1, 2, 3]),
        r"annotations\[1\] of .* needs a bbox of four",
    ),
    "box of null": (
        of_second(bbox=None),
        r"annotations\[1\].*needs a bbox of four numbers",
    ),
    "box below 0": (
        of_second(bbox=[9, 9, -4, 5]),
        r"annotations\[1\].*\[x, y, width, height\]",
    ),
    "fractions": (
        of_second(bbox=[0.5, 0.1, 0.2, 0.2]),
        r"annotations\[1\].*fractions of the image",
    ),
    "outside": (
        of_second(bbox=[100, 1, 9, 9]),
        r"annotations\[1\].*outside of its image of 96 x 64",
    ),
    "category without letters": (
        lambda content: content["categories"][1].update(name=" ") or content,
        r"categories\[1\] needs an id and a name",
    ),
    "category of no letter": (
        lambda content: content["categories"][1].update(name="\ud800") or content,
        r"categories\[1\] needs an id and a name",
    ),
    "image of no letter": (
        lambda content: content["images"][1].update(file_name="\udc80.jpg") or content,
        r"images\[1\] needs an id and a file_name",
    ),
    "box of 10^400": (of_second(bbox=[10**400, 1, 5, 5]), "needs a bbox of four numbers"),
    "box of words": (of_second(bbox=["1", "2", "3", "4"]), "needs a bbox of four numbers"),
    "box of names": (of_second(bbox={"x": 1, "y": 2, "w": 3, "h": 4}), "a bbox of four numbers"),
    "box of nan": (of_second(bbox=[float("nan"), 1, 5, 5]), "a bbox of four numbers"),
    "box at 1e308": (of_second(bbox=[1e308, 1, 1e308, 5]), "outside of its image"),
    "annotation ids of halves": (of_second(id=1.5), r"needs an integer id; got 1\.5"),
    "category of null": (of_second(category_id=None), "there is no category None"),
    "category in words": (of_second(category_id="disc"), "there is no category 'disc'"),
    "ids with zeros": (
        lambda content: for_each(content, "images", lambda e: e.update(id=f"00{e['id']}")),
        "no annotation|have 0 annotations",
    ),
    "unknown category": (
        of_second(category_id=7),
        r"no category 7; categories have the ids",
    ),
    "id twice": (of_second(id=1), "2 annotations have the id 1"),
    "image twice": (
        lambda content: {**content, "images": [*content["images"], content["images"][0]]},
        r"images\[4\]: two images have the id 1",
    ),
    "ignore": (of_second(ignore=1), "ignore is not supported"),
    "file name": (set_all("images", file_name=None), "needs an id and a file_name"),
    **{
        f"all boxes {name}": (
            boxes_of_all(box),
            r"all 8 boxes have less than one pixel .*fractions",
        )
        for name, box in (
            ("below one pixel", [10.2, 10.3, 0.2, 0.3]),
            ("fractions just over 1", [0.1, 0.1, 1.01, 0.5]),
            ("of the whole image in fractions", [0, 0, 1, 1]),
            ("all but outside", [95.9, 10, 40, 10]),
        )
    },
    "all crowds": (
        set_all("annotations", iscrowd=1),
        r"all 8 annotations are crowds \(iscrowd 1\)",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_COCO.values(), ids=BAD_COCO)
def test_coco_forms_are_refused_by_every_command(commands, change, message):
    write_coco(Path(), change(coco_content()))
    before = {*Path().iterdir()}
    with pytest.raises((ValueError, OSError), match=message):
        commands.load(coco=True)
    for code, printed in (commands.inject(coco=True), commands.visualize(coco=True)):
        assert code == 2, printed
        assert re.search(message, printed.strip().splitlines()[-1])
    assert {*Path().iterdir()} == before


def text_of(content):
    return json.dumps(content)


BAD_JSON = {
    "comments": (
        lambda c: f"// mine\n{text_of(c)}",
        r"set\.json is not a COCO json: JSONDecodeError",
    ),
    "a comma too many": (lambda c: text_of(c)[:-1] + ",}", "JSONDecodeError"),
    "lines": (
        lambda c: "\n".join(map(json.dumps, c["annotations"])),
        "JSONDecodeError.*Extra data",
    ),
    "nothing": (lambda c: "", "JSONDecodeError"),
    "null": (lambda c: "null", "it holds a NoneType"),
    "deep": (lambda c: "[" * 100_000, "RecursionError"),
    "packed": (lambda c: gzip.compress(text_of(c).encode()), "it is not UTF-8"),
    "UTF-16": (lambda c: text_of(c).encode("utf-16"), "it is not UTF-8, save it as UTF-8"),
    "results": (lambda c: text_of(c["annotations"]), "it holds a list"),
    "wrapped": (lambda c: text_of({"coco": c}), r"KeyError\('categories'\); it has \['coco'\]"),
    "annotations twice": (
        lambda c: text_of(c)[:-1] + ', "annotations": []}',
        r"set\.json is not .*an object has the key 'annotations' 2 times",
    ),
    "a box twice": (
        lambda c: text_of(c).replace('"bbox":', '"bbox": [1, 1, 5, 5], "bbox":', 1),
        r"set\.json is not .*an object has the key 'bbox' 2 times",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_other_files_are_refused_by_every_command(commands, write, message):
    path = write_coco(Path())
    text = write(coco_content())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        commands.load(coco=True)
    check = ("check_dataset.py", "--coco-json", "set.json", "--images", "images")
    for code, printed in (
        commands.inject(coco=True), commands.visualize(coco=True), commands.run(*check)
    ):  # fmt: skip
        assert code == 2, printed
        assert re.search(message, printed.strip().splitlines()[-1])


@pytest.mark.parametrize("has_annotations", [True, False])
def test_a_byte_order_mark_is_no_part_of_a_json(commands, has_annotations):
    content = coco_content()
    write_coco(Path(), content)
    if has_annotations:
        Path("set.json").write_bytes(codecs.BOM_UTF8 + Path("set.json").read_bytes())
        assert boxes_of(commands.load(coco=True).annotations) == EXPECTED
        assert commands.inject(coco=True)[0] == 0
    del content["annotations"]
    write_coco(Path(), content if not has_annotations else coco_content(), "val")
    Path("val.json").write_bytes(codecs.BOM_UTF8 + Path("val.json").read_bytes())
    commands.forget()
    register_coco_instances("scored", {}, "val.json", "images")
    assert [len(r["annotations"]) for r in load_dataset("scored")] == [2 * has_annotations] * 4
    if has_annotations:
        assert perfect_scores("scored")["AP"] == pytest.approx(100)
    else:
        assert not build_evaluator("scored", output_dir="scores")._do_evaluation


def of_one_file(content):
    """Two images of one file, which hold an object each."""
    content["images"].append({**content["images"][0], "id": 9})
    content["annotations"][1]["image_id"] = 9


def alike_categories(content):
    content["categories"][1]["name"] = "Disc "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_one_file, "images that share a file with another, so that each has a part of the "
         r"objects: 2 \(the first: set\.json: 'a\.jpg'\)"),
        (alike_categories, r"in case or spaces only: 1 \(the first: 'disc' and 'Disc '\)"),
    ],
)  # fmt: skip
def test_what_is_odd_in_a_json_is_counted(commands, caplog, change, message):
    content = coco_content()
    change(content)
    write_coco(Path(), content)
    num_classes = ("MODEL.ROI_HEADS.NUM_CLASSES", str(len(content["categories"])))
    commands.load(*num_classes, coco=True)
    assert re.search(message, caplog.text)
    for code, printed in (commands.inject(coco=True), commands.visualize(*num_classes, coco=True)):
        assert code == 0, printed
    assert len(re.findall(message, caplog.text)) == 3
    check = ("check_dataset.py", "--coco-json", "set.json", "--images", "images")
    code, printed = commands.run(*check)
    assert code == 0
    assert re.search(f"note: .*{message}", printed)


def test_coco_flaws_are_left_out_on_demand(commands, caplog):
    content = coco_content()
    content["annotations"].insert(0, {"id": 99, "image_id": 1, "category_id": 7, "bbox": [1, 2]})
    write_coco(Path(), content)
    table = commands.load("DATASETS.BAD_ANNOTATIONS", "skip", coco=True).annotations
    assert boxes_of(table) == EXPECTED
    assert "1 box left out" in caplog.text
    assert commands.inject("--bad-annotations", "skip", coco=True)[0] == 0
    noisy = json.loads(Path("noisy/set.json").read_text())["annotations"]
    assert noisy[0] == content["annotations"][0]
    assert len(noisy) == len(content["annotations"])


def test_noise_in_memory_is_not_put_on_a_noisy_copy(commands):
    write_voc(Path("voc"))
    write_coco(Path())
    for coco in (False, True):
        out = f"noisy_{coco}"
        assert commands.inject("--dataset-name", "mine", coco=coco, out=out)[0] == 0
        entry = {"NAME": "mine", "JSON_FILE": f"{out}/set.json", "IMAGE_ROOT": "images"}
        copy = ["DATASETS.CUSTOM_COCO", str([entry])] if coco else []
        rate = ("DATASETS.LABEL_NOISE.RATE", "0.5")
        with pytest.raises(ValueError, match=f"'mine' is already a noisy copy .{out}/noise"):
            commands.load(*copy, *rate, coco=coco, root=out)
        commands.load(*copy, coco=coco, root=out)
        commands.load(*rate, coco=coco)


def test_a_manifest_without_changes_is_told(commands, caplog):
    write_voc(Path("voc"))
    Path("manifest.jsonl").write_text("")
    commands.load("DATASETS.LABEL_NOISE.MANIFEST", "manifest.jsonl")
    assert "manifest.jsonl records no change: the labels stay those of the files" in caplog.text


def test_options_of_noise_that_do_not_fit_are_refused(commands):
    write_voc(Path("voc"))
    write_coco(Path())
    for args, coco, message in (
        (("--images", "nowhere"), True, "--images nowhere is not a folder"),
        (("--images", "images"), False, "--images needs --coco-json"),
        (("--split", "val"), True, "--classes and --split need --voc-root"),
    ):
        code, printed = commands.inject(*args, coco=coco)
        assert code == 2
        assert message in printed.strip().splitlines()[-1]
        assert not Path("noisy").exists()
    commands.inject()
    restore = ("--restore", "noisy", "--output", "clean")
    for args in (("--rate", "0.5"), ("--box-jitter", "0.1"), ("--bad-annotations", "skip")):
        code, printed = commands.run("inject_noise.py", *restore, *args)
        assert code == 2
        assert f"{args[0]} makes a noisy copy" in printed.strip().splitlines()[-1]
        assert not Path("clean").exists()
    check = ("--voc-root", "voc", "--opts", "DATASETS.BAD_ANNOTATIONS", "skip")
    code, printed = commands.run("check_dataset.py", *check)
    assert (code, "--opts needs --config-file" in printed) == (2, True)


@pytest.mark.parametrize("where", ["images", ".", "elsewhere"])
def test_noise_reads_sizes_that_the_json_lacks(commands, caplog, where):
    """A box that training finds outside of its image, as only the image file can say."""
    content = drop("images", "height", "width")(coco_content())
    write_coco(Path(), of_second(bbox=[100, 1, 9, 9])(content))
    for path in Path("images").iterdir() if where == "." else ():
        path.rename(path.name)
    if where == "elsewhere":
        Path("images").rename(where)
    outside = r"annotations\[1\] of image 1: its box is outside of its image of 96 x 64"
    jitter = ("--box-jitter", "0.5")
    if where == "elsewhere":
        code, printed = commands.inject(coco=True)
        assert code == 0
        assert re.search(
            r"without height and width, and not beside .*--images.*: 4 \(the", caplog.text
        )
        Path("noisy").rename("unseen")
        jitter += ("--images", where)
    code, printed = commands.inject(*jitter, coco=True)
    assert code == 2
    assert re.search(outside, printed.strip().splitlines()[-1])
    code, printed = commands.inject(*jitter, "--bad-annotations", "skip", coco=True)
    assert code == 0, printed
    assert "1 box left out" in caplog.text
    boxes = [a["bbox"] for a in json.loads(Path("noisy/set.json").read_text())["annotations"]]
    assert boxes[1] == [100, 1, 9, 9]
    assert boxes != [a["bbox"] for a in content["annotations"]]


def test_corrections_read_sizes_that_the_json_lacks(commands):
    """An annotation keeps its number where one before it was left out for the image's size."""
    content = drop("images", "height", "width")(coco_content())
    content["annotations"][2]["bbox"] = [100, 1, 9, 9]
    write_coco(Path(), content)
    Path("images").rename("elsewhere")
    register_coco_instances("sizeless", {}, "set.json", "elsewhere")
    given, box = OBJECTS["b"][1]
    wrong = Decision("sizeless", 2, 0, tuple(box), given, "wrong", "disc")
    decisions = Decisions(tuple(CLASSES), {"sizeless": dataset_source("sizeless")}, (wrong,))
    apply_decisions(decisions, "fixed")
    fixed = json.loads(Path("fixed/sizeless/set.json").read_text())["annotations"]
    assert fixed[3] == {**content["annotations"][3], "category_id": 1}
    assert fixed[:3] + fixed[4:] == content["annotations"][:3] + content["annotations"][4:]


def test_annotations_of_no_image_are_counted(commands, caplog):
    content = coco_content()
    content["annotations"][0]["image_id"] = 77
    write_coco(Path(), content)
    assert boxes_of(commands.load(coco=True).annotations)[0] == EXPECTED[0][1:]
    assert "annotations whose image is not in the file (it has 1, 2, 3, ...): 1 (" in caplog.text


@pytest.mark.parametrize("box", [[10.2, 10.3, 0.2, 0.3], [95.9, 10, 40, 10], [0.1, 0.1, 1.1, 0.5]])
def test_a_box_below_one_pixel_is_counted(commands, caplog, box):
    write_coco(Path(), of_second(bbox=box, area=None)(coco_content()))
    commands.load(coco=True)
    assert "boxes with less than one pixel in their image: 1 (" in caplog.text
    caplog.clear()
    code, printed = commands.inject(coco=True)
    assert code == 0
    assert "boxes with less than one pixel in their image: 1 (" in printed + caplog.text


def test_long_ids_and_empty_lists_in_messages(commands, caplog):
    content = coco_content()
    content["annotations"][0]["image_id"] = 10**400
    content["annotations"][2]["image_id"] = "1" * 5000
    content["annotations"][1]["category_id"] = "x" * 5000
    write_coco(Path(), content)
    code, printed = commands.inject(coco=True)
    assert code == 2
    assert "no category 'xxx" in printed
    assert len(printed) < 1000
    write_coco(Path(), {**coco_content(), "images": []})
    CocoFile("set.json")
    assert "annotations whose image is not in the file (it has no image): 8 (the" in caplog.text
    assert "no annotation of an image in the file, so the set has none\n" in caplog.text
    assert "(the first: )" not in caplog.text


def test_a_plain_file_is_read_as_it_is(tmp_path):
    path = write_coco(tmp_path)
    assert CocoFile(path).is_plain()
    content = coco_content()
    del content["annotations"][0]["area"]
    assert not CocoFile(write_coco(tmp_path, content)).is_plain()


# Images.
def turned(root):
    """Stored pixels of 96 x 64, turned upright by their EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels(1).save(root / "JPEGImages/b.jpg", exif=exif)


def deep(mode):
    def change(root):
        (root / "JPEGImages/b.jpg").unlink()
        suffix = ".png" if mode == "I;16" else ".tif"
        Image.new(mode, (WIDTH, HEIGHT)).save(root / f"JPEGImages/b{suffix}")

    return change


def cut(root):
    path = root / "JPEGImages/b.jpg"
    path.write_bytes(path.read_bytes()[:1200])


BAD_IMAGES = {
    "EXIF": (turned, "EXIF orientation 6 turns it from 96 x 64 to 64 x 96.*exiftool"),
    "16 bits": (deep("I;16"), "16-bit.*all white or all black; convert it to 8 bits"),
    "float": (deep("F"), "its pixels are float"),
    "truncated": (cut, "truncated"),
    "not there": (lambda root: (root / "JPEGImages/b.jpg").write_bytes(b"x"), "cannot identify"),
    "another size": (
        lambda root: pixels(1).crop((0, 0, 50, 40)).save(root / "JPEGImages/b.jpg"),
        "it has 50 x 40 pixels, but its annotation has 96 x 64",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_fail_alike_wherever_they_are_read(commands, caplog, change, message):
    change(write_voc(Path("voc")))
    message = rf"image 'b', voc/JPEGImages/b\.\w+: .*{message}.*BROKEN_IMAGES skip"
    with pytest.raises(ValueError, match=message):
        commands.load()
    code, printed = commands.visualize()
    assert code == 2
    assert re.search(message, printed.strip().splitlines()[-1])
    skip = ("DATALOADER.BROKEN_IMAGES", "skip")
    commands.load(*skip)
    assert "Skipped image 'b'" in caplog.text
    code, printed = commands.visualize(*skip)
    assert code == 0
    assert "3 of 4 images of mine drawn" in printed


@pytest.mark.parametrize("coco", [False, True])
def test_missing_images_stop_before_any_work(commands, caplog, coco):
    """In both formats, as flaws of the set: with skip they are left out, from tests too."""
    root = Path("images") if coco else Path("voc/JPEGImages")
    write_coco(Path()) if coco else write_voc(Path("voc"))
    (root / "b.jpg").unlink()
    message = r"image ('b'|2) has .*no .*b\.jpg.*; BAD_ANNOTATIONS skip"
    for broken in ("error", "skip"):
        with pytest.raises(FileNotFoundError, match=message):
            commands.load("DATALOADER.BROKEN_IMAGES", broken, coco=coco)
    commands.forget()
    with pytest.raises(FileNotFoundError, match=message):
        setup_cfg("", [*commands.opts(coco), "DATASETS.TEST", "('mine',)"], eval_only=True)
    for code, printed in (commands.train(coco=coco), commands.visualize(coco=coco)):
        assert code == 2, printed
        assert re.search(message, printed.strip().splitlines()[-1])
    assert not Path("output").exists()
    loader = commands.load("DATASETS.BAD_ANNOTATIONS", "skip", coco=coco)
    assert boxes_of(loader.annotations) == [EXPECTED[i] for i in (0, 2, 3)]
    assert "1 image left out" in caplog.text
    if coco:
        Path("scores").mkdir()
        commands.forget()
        register_coco_instances("scored", {}, "set.json", "images")
        api = build_evaluator("scored", output_dir="scores", bad_annotations="skip")._coco_api
        assert sorted(api.imgs) == [1, 3, 4]
        assert len(api.anns) == NUM_OBJECTS - 2


def with_masks(content, but=()):
    def add(annotation):
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]

    for_each(content, "annotations", add)
    for i in but:
        content["annotations"][i]["segmentation"] = []
    return content


def test_masks_are_there_where_they_are_trained_on(commands):
    """Else detectron2 ends in a KeyError, at the first step or at any."""
    write_voc(Path("voc"))
    masks = ("MODEL.MASK_ON", "True")
    message = "MASK_ON is True, but {} of 8 objects of dataset 'mine' have no segmentation .*image"
    with pytest.raises(ValueError, match=message.format(8)):
        commands.load(*masks)
    commands.load(*masks, "MODEL.META_ARCHITECTURE", "SuperLossRetinaNet",
                  "MODEL.RETINANET.NUM_CLASSES", "3")  # fmt: skip
    write_coco(Path(), with_masks(coco_content(), but=[3]))
    for test in ("()", "('mine',)"):
        with pytest.raises(ValueError, match=message.format(1)):
            commands.load(*masks, "DATASETS.TEST", test, coco=True)
    content = with_masks(coco_content(), but=[3])
    content["annotations"][3]["iscrowd"] = 1
    write_coco(Path(), content)
    commands.load(*masks, coco=True)
    with pytest.raises(ValueError, match=message.format(1)):
        commands.load(*masks, "DATASETS.TEST", "('mine',)", coco=True)
    write_coco(Path(), with_masks(coco_content()))
    commands.load(*masks, "DATASETS.TEST", "('mine',)", coco=True)
    drop("annotations", "segmentation")(content)
    write_coco(Path(), content)
    with pytest.raises(ValueError, match="MASK_ON is True, but 8 of 8 objects"):
        snippet(*masks)


def test_turned_images_are_counted(commands, caplog):
    write_voc(Path("voc"))
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in "bd":
        pixels(1).save(f"voc/JPEGImages/{name}.jpg", exif=exif)
    counted = "dataset 'mine': images that their EXIF orientation turns, so boxes must be those of "
    counted += "the turned image: 2 (the first: voc/JPEGImages/b.jpg, orientation 3)"
    commands.load()
    assert caplog.text.count("EXIF orientation") == caplog.text.count(counted) == 1
    caplog.clear()
    assert commands.visualize()[0] == 0
    assert caplog.text.count("EXIF orientation") == caplog.text.count(counted) == 1
    caplog.clear()
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list(commands.opts())
    commands.forget()
    register_custom_datasets(cfg.DATASETS)
    assert len([*build_test_loader(cfg, "mine")]) == len(IMAGES)
    assert caplog.text.count("EXIF orientation") == caplog.text.count(counted) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_test_loader_names_a_broken_image(commands, workers):
    cut(write_voc(Path("voc")))
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list([*commands.opts(), "DATALOADER.NUM_WORKERS", workers])
    register_custom_datasets(cfg.DATASETS)
    with pytest.raises(
        ValueError, match=r"image 'b', voc/JPEGImages/b\.jpg: .*truncated"
    ) as caught:
        list(build_test_loader(cfg, "mine"))
    assert "\n" not in str(caught.value)
    cfg.DATALOADER.BROKEN_IMAGES = "skip"
    assert [batch[0]["image_id"] for batch in build_test_loader(cfg, "mine")] == ["a", "c", "d"]


def test_a_failed_evaluation_leaves_a_checkpoint(commands):
    cut(write_voc(Path("voc")))
    (Path("voc/ImageSets/Main/train.txt")).write_text("a\nc\n")
    (Path("voc/ImageSets/Main/val.txt")).write_text("b\nd\n")
    voc = {"NAME": "mine", "ROOT": "voc", "SPLIT": "train", "CLASSES": CLASSES}
    sets = str([voc, {**voc, "NAME": "val", "SPLIT": "val"}])
    opts = ["DATASETS.CUSTOM_VOC", sets, "DATASETS.TEST", "('val',)", "TEST.EVAL_PERIOD", "2"]
    code, printed = commands.train(*opts)
    assert code == 2
    error = printed.strip().splitlines()[-1]
    assert re.search(r"error: image 'b', voc/JPEGImages/b\.jpg: .*truncated", error)
    assert Path("output/last_checkpoint").read_text() == "model_0000001.pth"
    code, printed = commands.train(*opts, "DATALOADER.BROKEN_IMAGES", "skip")
    assert code == 0, printed
    assert "1 of 2 images of val have no prediction" in Path("output/log.txt").read_text()


def test_what_an_error_leaves_before_and_after_the_check(commands):
    """docs/reliability.md: nothing of the check at the start, log and config of what is built."""
    write_voc(Path("voc"))
    code, printed = commands.train("MODEL.ROI_HEADS.NUM_CLASSES", "2")
    assert code == 2, printed
    assert not Path("output").exists()
    code, printed = commands.train("DATASETS.LABEL_NOISE.MISSING.RATE", "1.0")
    assert (code, "no image left to train on" in printed) == (2, True), printed
    assert {p.name for p in Path("output").iterdir()} == {"config.yaml", "log.txt"}


# The trainer that a program of its own starts.
def snippet(*opts, test="set.json"):
    """The README's Python snippet on a COCO set."""
    register_coco_instances("mine_train", {}, "set.json", "images")
    register_coco_instances("mine_val", {}, test, "images")
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list([*TINY, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "OUTPUT_DIR", "output", *opts])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine_train",), ("mine_val",)
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.train()


def test_coco_runs_of_a_program_are_audited_by_command(commands):
    write_coco(Path())
    no_area = drop("annotations", "area", "iscrowd")(coco_content())
    write_coco(Path(), no_area, "val")
    snippet("TEST.EVAL_PERIOD", 2, test="val.json")
    given = ("--from-run", "output")
    code, printed = commands.run("audit_labels.py", *given, "--output", "audit")
    assert code == 0, printed
    assert "8 annotations ranked" in printed
    code, printed = commands.run("visualize.py", *given, "--num", "2", "--output", "pictures")
    assert code == 0, printed
    assert "2 of 4 images of mine_train drawn" in printed


def test_more_categories_than_classes_are_refused(commands):
    content = coco_content()
    content["categories"].insert(0, {"id": 0, "name": "shapes"})
    write_coco(Path(), content)
    message = "NUM_CLASSES is 3, but dataset 'mine_.*' has 4 classes .* 'shapes' without any annot"
    with pytest.raises(ValueError, match=message):
        snippet()
    assert not Path("output").exists()


def test_what_a_custom_loader_may_leave_out_is_told(commands, monkeypatch):
    """It trains, as it may merge classes or put noise in by itself."""
    content = coco_content()
    content["categories"].append({"id": 7, "name": "ring"})
    write_coco(Path(), content)
    register_coco_instances("mine_train", {}, "set.json", "images")
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list([*TINY, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "OUTPUT_DIR", "output"])
    cfg.DATASETS.LABEL_NOISE.RATE = 0.5
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine_train",), ()
    told = []
    monkeypatch.setattr(setup.logger, "warning", lambda text, *args: told.append(text % args))
    stock = staticmethod(build_detection_train_loader)
    monkeypatch.setattr(SuperLossTrainer, "build_train_loader", stock)
    SuperLossTrainer(cfg)
    assert len(told) == 2
    assert re.search("may train classes as background: .*NUM_CLASSES is 3, but .* has 4", told[0])
    assert re.search(r"LABEL_NOISE is set, .* there is none", told[1])


def test_classes_in_another_order_are_refused(commands):
    write_coco(Path())
    content = coco_content()
    for i, category in enumerate(content["categories"]):
        category["id"] = 3 - i
    write_coco(Path(), content, "val")
    with pytest.raises(ValueError, match="'mine_val' number their classes in different orders"):
        snippet(test="val.json")


@pytest.mark.parametrize(
    ("names", "moved"),
    [(["cat", "block", "wedge"], False), (["cat", "dog", "bird"], False),
     (["block", "disc", "bird"], True), (["cat", "dog", "disc"], True)],
)  # fmt: skip
def test_other_class_names_of_a_test_set_are_told(commands, caplog, names, moved):
    write_coco(Path())
    content = coco_content()
    for category, name in zip(content["categories"], names):
        category["name"] = name
    write_coco(Path(), content, "val")
    register_coco_instances("mine_train", {}, "set.json", "images")
    register_coco_instances("mine_val", {}, "val.json", "images")
    for name in ("mine_train", "mine_val"):
        load_dataset(name)
    if moved:
        with pytest.raises(ValueError, match="number their classes in different orders"):
            check_test_classes(["mine_train"], ["mine_val"])
    else:
        check_test_classes(["mine_train"], ["mine_val"])
        assert "'mine_train' and 'mine_val' have different names for" in caplog.text
        assert "0 is 'disc' and 'cat'" in caplog.text


def test_difficult_objects_alone_cannot_be_scored(commands):
    difficult("1")(write_voc(Path("voc")))
    code, printed = commands.evaluate()
    assert code == 2
    assert "8 objects, and all are difficult" in printed
    assert not Path("scores.json").exists()
    with pytest.raises(ValueError, match="8 objects, and all are difficult"):
        commands.load("DATASETS.TEST", "('mine',)")


def test_a_file_of_a_test_server_is_detected_on(commands):
    content = coco_content()
    write_coco(Path(), content)
    del content["annotations"]
    write_coco(Path(), content, "val")
    entry = {"NAME": "val", "JSON_FILE": "val.json", "IMAGE_ROOT": "images"}
    sets = [{"NAME": "mine", "JSON_FILE": "set.json", "IMAGE_ROOT": "images"}, entry]
    opts = ["DATASETS.CUSTOM_COCO", str(sets), "DATASETS.TEST", "('val',)"]
    opts += ["OUTPUT_DIR", str(Path("run").absolute())]
    code, printed = commands.train(*opts, "SOLVER.MAX_ITER", "1", coco=True)
    assert code == 0, printed
    Path("run/inference/coco_instances_results.json").unlink()
    given = ("--eval-only", "--config-file", "run/config.yaml")
    weights = ("MODEL.WEIGHTS", "run/model_final.pth")
    code, printed = commands.run("train_net.py", *given, *weights)
    assert code == 0, printed
    assert isinstance(
        json.loads(Path("run/inference/coco_instances_results.json").read_text()), list
    )
    assert "'val' of DATASETS.TEST has no annotations" in Path("run/log.txt").read_text()


def test_a_test_set_without_objects_is_refused(commands):
    write_coco(Path())
    write_coco(Path(), {**coco_content(), "annotations": []}, "val")
    with pytest.raises(ValueError, match=r"'mine_val' of DATASETS\.TEST has no object in its 4"):
        snippet(test="val.json")


def test_images_of_another_folder_are_missed_at_the_start(commands):
    write_coco(Path())
    Path("images").rename("pictures")
    with pytest.raises(FileNotFoundError, match=r"none of its 4 images is there.*images/a\.jpg"):
        commands.load(coco=True)


def test_a_device_that_is_not_there(commands):
    write_coco(Path())
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is 'cuda' but torch sees no GPU here"):
        snippet("MODEL.DEVICE", "cuda")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, r"CUSTOM_COCO\[0\] needs the keys NAME, JSON_FILE, IMAGE_ROOT"),
        ({"NAME": "mine", "JSON_FILE": 3, "IMAGE_ROOT": "x"}, r"\[0\]\.JSON_FILE must be a string"),
        (
            {"NAME": "coco_2017_val", "JSON_FILE": "a.json", "IMAGE_ROOT": "x"},
            "'coco_2017_val' is taken by another set",
        ),
    ],
)
def test_bad_entries_of_custom_coco_are_named(entry, message):
    with pytest.raises(ValueError, match=message):
        register_coco_datasets([entry])
