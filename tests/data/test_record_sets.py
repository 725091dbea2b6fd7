"""Sets that are lists of records, as tutorials register them: the checks that files get."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from helpers.field_cases import CLASSES, HEIGHT, IMAGES, OBJECTS, TINY, WIDTH, pixels
from sl_detectron.data.class_checks import check_classes
from sl_detectron.data.datasets import load_dataset
from sl_detectron.engine.setup import check_test_sets
from sl_detectron.label_noise import build_noisy_train_loader
from sl_detectron.model_zoo import get_config

NAME = "list_of_records"


@pytest.fixture
def register(tmp_path):
    """Register the small set as records, after a change of each annotation."""

    def call(change=lambda annotation, i: None, records=None):
        made = [] if records is None else records
        for i, name in enumerate(IMAGES if records is None else ()):
            pixels(i).save(tmp_path / f"{name}.jpg")
            record = {"file_name": str(tmp_path / f"{name}.jpg"), "image_id": name}
            record |= {"height": HEIGHT, "width": WIDTH, "annotations": []}
            for class_name, box in OBJECTS[name]:
                annotation = {"category_id": CLASSES.index(class_name), "bbox": box}
                annotation["bbox_mode"] = BoxMode.XYXY_ABS
                change(annotation, len(made) * 2 + len(record["annotations"]))
                record["annotations"].append(annotation)
            made.append(record)
        DatasetCatalog.register(NAME, lambda: made)
        MetadataCatalog.get(NAME).thing_classes = CLASSES
        return made

    yield call
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def config(*opts):
    cfg = get_config("Toy/faster_rcnn_superloss.yaml")
    cfg.merge_from_list([*TINY, "MODEL.ROI_HEADS.NUM_CLASSES", len(CLASSES), *opts])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
    return cfg


def test_good_records_are_as_given(register):
    assert register() == load_dataset(NAME)


def fractions(annotation, i):
    x0, y0, x1, y1 = annotation["bbox"]
    annotation["bbox"] = [x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT]


BAD = {
    "fractions": (fractions, "has 8 flaws: .*image 'a', annotation 0: its box is given as fract"),
    "outside": (
        lambda a, i: a.update(bbox=[200, 200, 300, 300]),
        "annotation 0: its box is outside of its image of 96 x 64 pixels; got XYXY_ABS",
    ),
    "one outside": (
        lambda a, i: i == 3 and a.update(bbox=[200, 200, 300, 300]),
        "image 'b', annotation 1: its box is outside",
    ),
    "corners swapped": (lambda a, i: i == 3 and a["bbox"].reverse(), "negative width or height"),
    "three numbers": (lambda a, i: i == 3 and a.update(bbox=[1, 2, 3]), "a bbox of four numbers"),
    "nan": (lambda a, i: i == 3 and a.update(bbox=[1, 2, np.nan, 4]), "a bbox of four numbers"),
    "text": (lambda a, i: i == 3 and a.update(bbox=["1", "2", "33", "44"]), "bbox of four numbers"),
    "no mode": (lambda a, i: i == 3 and a.pop("bbox_mode"), "needs a bbox_mode, as .*; got None"),
    "a mode's name": (lambda a, i: i == 3 and a.update(bbox_mode="XYXY_ABS"), "needs a bbox_mode"),
    "no box": (lambda a, i: i == 3 and a.pop("bbox"), "a bbox of four numbers; got None"),
    "below one pixel": (lambda a, i: a.update(bbox=[4, 4, 4.5, 5]), "all 8 boxes have less than"),
    "a word": (lambda a, i: i == 3 and a.update(category_id="disc"), "'disc' is not a class id"),
    "no class": (lambda a, i: i == 3 and a.pop("category_id"), "None is not a class id"),
    "classes from 1": (
        lambda a, i: a.update(category_id=a["category_id"] + 1),
        r"category_id 3 is outside 0\.\.2",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_flaws_stop_training_and_test(register, change, message):
    # Boxes as lists of their own: the shared ones are not to be changed.
    register(lambda a, i: (a.update(bbox=list(a["bbox"])), change(a, i)))
    with pytest.raises(ValueError, match=message):
        build_noisy_train_loader(config())
    with pytest.raises(ValueError, match=message):
        check_test_sets(config())


def test_flawed_boxes_are_left_out_on_demand(register, caplog):
    register(lambda a, i: i == 3 and a.update(bbox=[200, 200, 300, 300]))
    loader = build_noisy_train_loader(config("DATASETS.BAD_ANNOTATIONS", "skip"))
    assert loader.annotations.num_annotations == 7
    assert "1 box left out" in caplog.text
    check_test_sets(config("DATASETS.BAD_ANNOTATIONS", "skip"))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, float, np.float32])
def test_class_ids_count_by_value(register, kind):
    register(lambda a, i: a.update(category_id=kind(a["category_id"])))
    records = load_dataset(NAME)
    check_classes(NAME, records, 3, "K")
    ids = [a["category_id"] for r in records for a in r["annotations"]]
    assert ids == [CLASSES.index(c) for name in IMAGES for c, _ in OBJECTS[name]]
    assert {type(i) for i in ids} == {int}
    next(iter(build_noisy_train_loader(config())))


def test_a_class_id_with_a_fraction_is_none(register):
    register(lambda a, i: a.update(category_id=0.5))
    with pytest.raises(ValueError, match=r"category_id 0\.5 is not a class id"):
        build_noisy_train_loader(config())


def test_an_empty_list_is_no_test_set(register):
    register(records=[])
    with pytest.raises(ValueError, match=r"DATASETS\.TEST has no object in its 0 images"):
        check_test_sets(config())


def test_crowds_alone_are_no_test_set(register):
    register(lambda a, i: a.update(iscrowd=1))
    with pytest.raises(ValueError, match="8 objects, and all are difficult or crowds"):
        check_test_sets(config())


FIELDS = {
    "id of none": ({"image_id": None}, "image None: image_id must be a number or a name; got None"),
    "id of a list": ({"image_id": [1]}, "image_id must be a number or a name"),
    "width in words": ({"width": "wide"}, "width must be a whole number of pixels; got 'wide'"),
    "width of nan": ({"width": np.nan}, "width must be a whole number of pixels; got nan"),
    "annotation of none": ({"annotations": [None]}, "image 'a', annotation 0 is None, not a dict"),
}


@pytest.mark.parametrize(("fields", "message"), FIELDS.values(), ids=FIELDS)
def test_fields_of_a_record_are_checked(register, fields, message):
    records = register()
    records[0].update(fields)
    with pytest.raises(ValueError, match=message):
        load_dataset(NAME)
    assert len(load_dataset(NAME, "skip")) == len(IMAGES) - ("annotations" not in fields)


def test_fields_of_other_types_are_read_by_value(register, caplog):
    records = register()
    records[0].update(width=str(WIDTH), height=np.int64(HEIGHT))
    for crowd, annotation in zip(("0", None), records[0]["annotations"]):
        annotation["iscrowd"] = crowd
    first = load_dataset(NAME)[0]
    assert (first["width"], first["height"]) == (WIDTH, HEIGHT)
    assert [a["iscrowd"] for a in first["annotations"]] == [0, 0]
    for given in ("'0'", "None"):
        assert f"iscrowd of {given} is read as 0: 1" in caplog.text


def test_ids_of_numpy_are_numbers_of_python(register):
    """COCO's metrics write them as json."""
    for i, record in enumerate(register()):
        record["image_id"] = np.int64(i)
    ids = [record["image_id"] for record in load_dataset(NAME)]
    assert ids == [0, 1, 2, 3]
    assert {type(i) for i in ids} == {int}


def test_a_test_set_has_each_image_id_once(register):
    for record in register():
        record["image_id"] = 7
    with pytest.raises(ValueError, match=f"'{NAME}': 4 records have the image_id 7; COCO's"):
        check_test_sets(config())
    next(iter(build_noisy_train_loader(config())))


def test_a_tuple_of_records_is_a_set(register):
    records = register()
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: tuple(records))
    assert load_dataset(NAME) == records


def test_a_record_without_a_file_is_named(register):
    del register()[2]["file_name"]
    with pytest.raises(ValueError, match="image 'c', None: it has no file_name"):
        for _ in zip(range(4), build_noisy_train_loader(config())):
            pass


@pytest.mark.parametrize(
    ("loaded", "message"),
    [(None, "is a NoneType"), ({"a": 1}, "is a dict"), (["a"], "record 0 is 'a', not a dict")],
)
def test_what_is_no_list_of_records_is_refused(loaded, message):
    DatasetCatalog.register(NAME, lambda: loaded)
    try:
        with pytest.raises(ValueError, match=f"dataset '{NAME}'.* {message}"):
            load_dataset(NAME)
    finally:
        DatasetCatalog.remove(NAME)
