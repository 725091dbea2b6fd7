"""VOC style sets: equal to detectron2's loader where that works, a clear error elsewhere."""

import logging
import os
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

from sl_detectron.data.datasets import check_dataset, load_dataset
from sl_detectron.data.formats.image_set import read_image_set
from sl_detectron.data.formats.voc_set import read_voc_annotations
from sl_detectron.data.formats.voc_xml import parse_voc_xml
from sl_detectron.data.voc import load_voc_dataset, register_voc_dataset, register_voc_datasets

CLASSES = ("cat", "dog", "horse")
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"


def obj(name="cat", box=(11, 21, 50, 60), extra=""):
    corners = "".join(
        f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def write_set(root, xml_of, split="train"):
    """A VOC folder with empty JPEG files: loading looks only whether they are there."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in xml_of))
    for image_id, xml in xml_of.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
        (root / "JPEGImages" / f"{image_id}.jpg").touch()
    return root


def annotation(*objects, size=SIZE):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def names():
    """Data set names that are taken out of detectron2's catalogs afterwards."""
    taken = []
    yield taken
    for name in taken:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize("split", ["trainval", "test"])
def test_equals_detectron2_on_real_data(datasets_root, split):
    root = datasets_root / "VOC2007"
    ours = load_voc_dataset(root, split, CLASS_NAMES)
    difficult = [a.pop("difficult") for record in ours for a in record["annotations"]]
    assert ours == load_voc_instances(str(root), split, CLASS_NAMES)
    assert 0 < sum(difficult) < len(difficult)


def test_boxes_become_zero_based_and_difficult_is_kept(tmp_path):
    xml = annotation(obj(), obj("dog", (1, 1, 100, 80), "<difficult>1</difficult>"))
    (record,) = load_voc_dataset(write_set(tmp_path, {"a": xml}), "train", CLASSES)
    assert (record["image_id"], record["width"], record["height"]) == ("a", 100, 80)
    assert record["file_name"] == str(tmp_path / "JPEGImages" / "a.jpg")
    first, second = record["annotations"]
    assert (first["bbox"], first["category_id"], first["difficult"]) == ([10, 20, 50, 60], 0, 0)
    assert (second["bbox"], second["category_id"], second["difficult"]) == ([0, 0, 100, 80], 1, 1)


def test_one_image_split_loads(tmp_path):
    root = write_set(tmp_path, {"only": annotation(obj())})
    assert [r["image_id"] for r in load_voc_dataset(root, "train", CLASSES)] == ["only"]


def test_image_without_objects_and_blank_lines(tmp_path):
    root = write_set(tmp_path, {"a": annotation()})
    # As written by a Windows editor.
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\n")
    (record,) = load_voc_dataset(root, "train", CLASSES)
    assert record["annotations"] == []


def test_fractional_coordinates_and_absent_flags(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(annotation(obj(box=("1.5", " 2.25 ", "9.75", "8"))))
    assert parse_voc_xml(path).objects == [("cat", (1.5, 2.25, 9.75, 8.0), False)]


def test_a_box_may_be_one_pixel(tmp_path):
    root = write_set(tmp_path, {"a": annotation(obj(box=(5, 9, 5, 9)))})
    (record,) = load_voc_dataset(root, "train", CLASSES)
    assert record["annotations"][0]["bbox"] == [4, 8, 5, 9]


def test_other_classes_are_left_out_on_demand(tmp_path, caplog):
    first = annotation(obj("dog"), obj("cat"), obj("hrose", box=(1, 2, 3, 4)), obj("dog"))
    root = write_set(tmp_path, {"a": first, "b": annotation(obj("dog"))})
    with caplog.at_level(logging.WARNING):
        records = load_voc_dataset(root, "train", ["horse", "cat"], other_classes="ignore")
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[1], []]
    (message,) = caplog.messages
    assert re.search(r"ignored, 'dog' \(3\), 'hrose' \(1\): 4 \(the first: .*a\.xml\)", message)
    with pytest.raises(ValueError, match=r"2 flaws.*'dog' \(3 objects\) is not.*'hrose' is not"):
        load_voc_dataset(root, "train", ["horse", "cat"])
    with pytest.raises(ValueError, match=r"other_classes must be one of .*'skip'"):
        read_voc_annotations(root, "train", ["horse", "cat"], other_classes="skip")


def test_nothing_is_reported_where_every_class_is_listed(tmp_path, caplog):
    root = write_set(tmp_path, {"a": annotation(obj())})
    load_voc_dataset(root, "train", CLASSES, other_classes="ignore")
    assert not caplog.messages


def test_other_image_suffixes_are_found(tmp_path):
    root = write_set(tmp_path, {"a": annotation(obj())})
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / "a.png")
    (record,) = load_voc_dataset(root, "train", CLASSES)
    assert record["file_name"].endswith("a.png")


def test_images_may_be_absent_on_demand(tmp_path):
    root = write_set(tmp_path, {"a": annotation(obj())})
    (root / "JPEGImages" / "a.jpg").unlink()
    assert len(load_voc_dataset(root, "train", CLASSES, require_images=False)) == 1


BAD_XML = {
    "cut off": ("<annotation>\n<object>", r"line 2, column \d+: not XML"),
    "empty file": ("", "not XML"),
    "unknown encoding": ("<?xml version='1.0' encoding='klingon'?><annotation/>", "not XML"),
    "entities": (
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation>&z;</annotation>',
        "entity",
    ),
    "external entity": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        "entity",
    ),
    "UTF-16": (annotation(obj()).encode("utf-16"), "UTF-16"),
    "near class": (annotation(obj("hors")), "'hors' is not in the class list; nearest are 'horse'"),
    "far class": (annotation(obj("zebu")), "'zebu' is not in .* the list is 'cat', 'dog', 'horse'"),
    "no name": (annotation(obj("")), r"object 0 has no <name>"),
    "no bndbox": (annotation(obj(), "<object><name>cat</name></object>"), "object 1 .* <bndbox>"),
    "no xmin": (annotation(obj().replace("xmin", "xmini")), "xmin=None"),
    "text in a box": (annotation(obj(box=(1, 2, "three", 4))), "xmax='three'"),
    "xmax < xmin": (annotation(obj(box=(5, 1, 4, 9))), "needs xmin <= xmax .* xmin=5"),
    "ymax < ymin": (annotation(obj(box=(1, 9, 5, 3))), "ymin <= ymax.* ymin=9"),
    "nan": (annotation(obj(box=("nan", 1, 5, 3))), "xmin=nan"),
    "inf": (annotation(obj(box=(1, 1, "inf", 3))), "xmax=inf"),
    "outside": (annotation(obj(box=(101, 1, 120, 9))), r"0 \('cat'\): its box is outside .* 100 x"),
    "fractions": (annotation(obj(box=(0.1, 0.2, 0.5, 1))), "fractions of the image"),
    "wrapper": (f"<annotation><objects>{obj()}</objects></annotation>", "read from <annotation>"),
    "other root": ("<images></images>", "read from <annotation><object>.* has none"),
    "renamed": (annotation(obj().replace("object", "obj")), "1 <bndbox> elsewhere"),
    "no size": (annotation(obj(), size=""), "no <size>.* cannot be read"),
    "size 0": (annotation(obj(), size=SIZE.replace("100", "0")), "no <size>"),
    "size text": (annotation(obj(), size=SIZE.replace("80", "x")), "no <size>"),
}


@pytest.mark.parametrize(("xml", "message"), BAD_XML.values(), ids=BAD_XML)
def test_bad_annotation_is_named(tmp_path, xml, message):
    root = write_set(tmp_path, {"good": annotation(obj()), "bad": ""})
    file = root / "Annotations" / "bad.xml"
    file.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_voc_dataset(root, "train", CLASSES)
    assert str(file) in str(caught.value)


def test_missing_files_are_named(tmp_path):
    root = tmp_path / "set"
    with pytest.raises(FileNotFoundError, match=re.escape(f"no VOC folder {root}")):
        load_voc_dataset(root, "train", CLASSES)
    write_set(root, {"a": annotation(obj()), "b": annotation(obj())})
    with pytest.raises(
        FileNotFoundError, match=r"no image set .*val\.txt; the folder has: 'train'"
    ):
        load_voc_dataset(root, "val", CLASSES)
    (root / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 'b' has an annotation but no .*b\.jpg"):
        load_voc_dataset(root, "train", CLASSES)
    (root / "Annotations" / "b.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 'b' of image set 'train' .*b\.xml"):
        load_voc_dataset(root, "train", CLASSES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no image id"),
        ("\n \n", "holds no image id"),
        ("a\nb\na\n", "names image 'a' 2 times"),
        ("../a\n", "leads out"),
        ("x/../../a\n", "leads out"),
        ("/etc/a\n", "leads out"),
        ("./a\n", "write image id './a' as 'a'"),
        ("x//a\n", "write image id 'x//a' as 'x/a'"),
        ("x/./a\n", "write image id 'x/./a' as 'x/a'"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_image_set_is_named(tmp_path, text, message):
    root = write_set(tmp_path, {"a": annotation(obj())})
    file = root / "ImageSets" / "Main" / "train.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_image_set(root, "train")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("classes", [[], ["cat", "cat"], "cat", ["cat", ""]])
def test_class_names_must_differ(tmp_path, classes):
    root = write_set(tmp_path, {"a": annotation(obj())})
    with pytest.raises(ValueError, match="different names"):
        load_voc_dataset(root, "train", classes)


def test_registered_set_loads_with_metadata(tmp_path, names):
    names.append("voc_test_mine")
    root = write_set(tmp_path, {"a": annotation(obj())})
    register_voc_dataset("voc_test_mine", root, "train", CLASSES, year=2007)
    assert DatasetCatalog.get("voc_test_mine") == load_voc_dataset(root, "train", CLASSES)
    metadata = MetadataCatalog.get("voc_test_mine")
    assert metadata.thing_classes == list(CLASSES)
    assert (metadata.dirname, metadata.split, metadata.year) == (str(root), "train", 2007)
    assert metadata.evaluator_type == "pascal_voc"


def test_config_entries_register_once(tmp_path, names):
    names.append("voc_test_entry")
    root = write_set(tmp_path, {"a": annotation(obj())})
    entry = {"NAME": "voc_test_entry", "ROOT": str(root), "SPLIT": "train", "CLASSES": [*CLASSES]}
    register_voc_datasets([entry, dict(entry)])
    register_voc_datasets([entry])
    assert len(DatasetCatalog.get("voc_test_entry")) == 1
    changes = ({"SPLIT": "val"}, {"ROOT": "elsewhere"}, {"CLASSES": ["cat"]})
    for change in (*changes, {"YEAR": 2007}, {"OTHER_CLASSES": "ignore"}):
        with pytest.raises(ValueError, match=r"CUSTOM_VOC\[1\]: .*'voc_test_entry' is taken"):
            register_voc_datasets([entry, {**entry, **change}])


@pytest.mark.parametrize(("value", "folder"), [("/data/sets", "/data/sets"), (None, "datasets")])
def test_a_root_below_detectron2s_datasets(value, folder, names, monkeypatch):
    names.append("voc_test_below")
    if value is None:
        monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    else:
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
    root = "$DETECTRON2_DATASETS/boards"
    register_voc_datasets([{"NAME": "voc_test_below", "ROOT": root, "SPLIT": "train"}])
    assert MetadataCatalog.get("voc_test_below").dirname == f"{folder}/boards"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SPLITT": "x"}, r"CUSTOM_VOC\[0\] needs the keys NAME, ROOT, SPLIT and may have CLASSES"),
        ({"NAME": 3}, r"CUSTOM_VOC\[0\]\.NAME must be a string; got 3"),
        ({"ROOT": ""}, r"CUSTOM_VOC\[0\]\.ROOT must be a string"),
        ({"CLASSES": "cat"}, r"CUSTOM_VOC\[0\]\.CLASSES must be a list of names"),
        ({"YEAR": "2007"}, r"CUSTOM_VOC\[0\]\.YEAR must be a year, e\.g\. 2007; got '2007'"),
        ({"OTHER_CLASSES": "skip"}, r"CUSTOM_VOC\[0\]: other_classes must be one of .*'skip'"),
        ({"CLASSES": ["a", "a"]}, r"CUSTOM_VOC\[0\]: class names must be a list of different"),
    ],
)
def test_bad_config_entry_is_named(change, message):
    entry = {"NAME": "voc_test_bad", "ROOT": "r", "SPLIT": "train", "CLASSES": ["cat"], **change}
    with pytest.raises(ValueError, match=message):
        register_voc_datasets([entry])
    assert "voc_test_bad" not in DatasetCatalog


def test_config_entry_may_choose_year_and_subset(tmp_path, names):
    names += ["voc_test_plain", "voc_test_subset"]
    root = write_set(tmp_path, {"a": annotation(obj("dog"), obj())})
    entry = {"NAME": "voc_test_plain", "ROOT": str(root), "SPLIT": "train", "CLASSES": ["cat"]}
    subset = {**entry, "NAME": "voc_test_subset", "YEAR": 2007, "OTHER_CLASSES": "ignore"}
    register_voc_datasets([entry, subset, dict(subset)])
    assert [MetadataCatalog.get(name).year for name in names] == [2012, 2007]
    with pytest.raises(ValueError, match="'dog' is not in the class list"):
        load_dataset("voc_test_plain")
    (record,) = load_dataset("voc_test_subset")
    assert [a["category_id"] for a in record["annotations"]] == [0]


def test_name_of_a_builtin_set_is_taken():
    with pytest.raises(ValueError, match="'voc_2007_test' is taken"):
        register_voc_dataset("voc_2007_test", "elsewhere", "test")


def test_sets_of_detectron2_get_the_checks(tmp_path, names):
    names.append("voc_test_stock")
    root = write_set(tmp_path, {"only": annotation(obj())})
    register_pascal_voc("voc_test_stock", str(root), "train", 2012, CLASSES)
    # detectron2's own loader stops at a one-image split.
    assert load_dataset("voc_test_stock") == load_voc_dataset(root, "train", CLASSES)
    assert check_dataset("voc_test_stock") == load_dataset("voc_test_stock")
    os.remove(root / "JPEGImages" / "only.jpg")
    with pytest.raises(FileNotFoundError, match=r"only\.jpg"):
        check_dataset("voc_test_stock")


def test_check_reads_voc_sets_only(names):
    names += ["voc_test_other", "voc_test_broken"]
    loaded = []
    DatasetCatalog.register("voc_test_other", lambda: loaded.append(1) or [])
    assert check_dataset("voc_test_other") is None
    assert not loaded
    with pytest.raises(ValueError, match="'voc_test_othr' is not registered; did you mean"):
        check_dataset("voc_test_othr")
