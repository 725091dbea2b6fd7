"""Every annotation can be followed from its record to the tensors that a model gets."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode, Instances
from PIL import Image

from sl_detectron.data import AnnotationIdMapper
from sl_detectron.data.annotation_ids import AnnotationTable, number_annotations
from sl_detectron.label_noise import SymmetricNoise, inject


def make_record(path, image_id=0, num_annotations=6, size=100):
    """An image with boxes of side 10 along its diagonal; the third one is a crowd."""
    Image.new("RGB", (size, size)).save(path / f"{image_id}.png")
    annotations = [
        {
            "bbox": [15.0 * i, 15.0 * i, 15.0 * i + 10, 15.0 * i + 10],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": (i * 2) % 5,
            "iscrowd": int(i == 2),
        }
        for i in range(num_annotations)
    ]
    file_name = str(path / f"{image_id}.png")
    sizes = {"height": size, "width": size}
    return {"file_name": file_name, "image_id": image_id, **sizes, "annotations": annotations}


def dataset_mapper(*augmentations):
    return DatasetMapper(True, augmentations=list(augmentations), image_format="BGR")


def test_ids_run_through_all_sets_and_nothing_is_changed(tmp_path):
    records = [make_record(tmp_path, i, i + 1) for i in range(3)]
    before = [dict(r) for r in records]
    sets = number_annotations({"a": records[:2], "b": [*records[2:], {"image_id": 9}]})
    ids = [a["annotation_id"] for rs in sets.values() for r in rs for a in r.get("annotations", ())]
    assert ids == list(range(6))
    assert records == before
    assert not any("annotation_id" in a for r in records for a in r["annotations"])


@pytest.mark.parametrize(
    "augmentations",
    [
        (),
        (T.RandomFlip(prob=1.0),),
        # Leaves the boxes in a corner and drops those outside of it.
        (T.CropTransform(40, 40, 50, 50),),
        (T.ResizeShortestEdge(37), T.RandomFlip(prob=1.0, horizontal=False, vertical=True)),
    ],
    ids=["none", "flip", "crop", "resize_flip"],
)
def test_classes_and_boxes_are_the_mappers_own(tmp_path, augmentations):
    """Ids are right where boxes vanish, and nothing else differs from the mapper alone."""
    (record,) = number_annotations({"a": [make_record(tmp_path)]})["a"]
    mapper = dataset_mapper(*augmentations)
    stock = mapper(record)["instances"]
    ours = AnnotationIdMapper(mapper)(record)["instances"]
    assert torch.equal(ours.gt_classes, stock.gt_classes)
    assert torch.equal(ours.gt_boxes.tensor, stock.gt_boxes.tensor)
    by_id = {a["annotation_id"]: a for a in record["annotations"]}
    assert [by_id[i]["category_id"] for i in ours.gt_annotation_ids.tolist()] == (
        stock.gt_classes.tolist()
    )
    assert 2 not in ours.gt_annotation_ids  # the crowd
    assert 0 < len(ours) < 6


def test_ids_after_noise(tmp_path):
    noisy, _ = inject([make_record(tmp_path)], [SymmetricNoise(rate=1.0)], 5, "a")
    (record,) = number_annotations({"a": noisy})["a"]
    instances = AnnotationIdMapper(dataset_mapper())(record)["instances"]
    assert instances.gt_classes.tolist() == [
        record["annotations"][i]["category_id"] for i in instances.gt_annotation_ids.tolist()
    ]


def test_image_without_boxes_left(tmp_path):
    (record,) = number_annotations({"a": [make_record(tmp_path, num_annotations=1)]})["a"]
    crop = dataset_mapper(T.CropTransform(50, 50, 40, 40))
    instances = AnnotationIdMapper(crop)(record)["instances"]
    assert len(instances) == len(instances.gt_annotation_ids) == 0
    assert instances.gt_annotation_ids.dtype == torch.int64


def test_records_without_ids_pass(tmp_path):
    record = make_record(tmp_path)
    assert not AnnotationIdMapper(dataset_mapper())(record)["instances"].has("gt_annotation_ids")


def test_a_mapper_may_keep_what_it_returned(tmp_path):
    """A cache in memory: the second epoch is the first."""
    (record,) = number_annotations({"a": [make_record(tmp_path)]})["a"]
    cache = {}

    def cached(record):
        if not cache:
            cache[0] = dataset_mapper()(record)
        return cache[0]

    mapper = AnnotationIdMapper(cached)
    first, second = (mapper(record)["instances"] for _ in range(2))
    assert torch.equal(first.gt_classes, second.gt_classes)
    assert torch.equal(first.gt_annotation_ids, second.gt_annotation_ids)


def class_agnostic(record):
    return {"instances": Instances((9, 9), gt_classes=torch.zeros(2, dtype=torch.int64))}


def remapped(record):
    classes = [(a["category_id"] + 1) % 3 for a in record["annotations"]]
    return {"instances": Instances((9, 9), gt_classes=torch.tensor(classes))}


def without_instances(record):
    return {"classes": [a["category_id"] for a in record["annotations"]]}


@pytest.mark.parametrize("mapper", [class_agnostic, remapped, without_instances])
def test_a_mapper_with_classes_of_its_own_is_named(mapper):
    annotations = [{"category_id": c, "annotation_id": 3 + c} for c in (0, 1)]
    with pytest.raises(ValueError, match=rf"image 7: .*{mapper.__name__}.*category_id"):
        AnnotationIdMapper(mapper)({"image_id": 7, "annotations": annotations})


def test_the_table_keeps_what_training_saw(tmp_path):
    box = {"bbox": np.array([1, 2.004, 7, 7]), "bbox_mode": BoxMode.XYWH_ABS}
    annotations = [
        {**box, "category_id": np.int64(3), "true_category_id": 1, "mask": [1, 2]},
        {**box, "category_id": 0, "iscrowd": 1},
        {"bbox": (1, 2, 8, 9), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2, "iscrowd": 0},
        {"bbox": [5, 5, 4, 2, 90], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 2},
    ]
    record = {"image_id": np.int64(7), "file_name": "7.jpg", "height": 90, "width": 100}
    sets = {"a": [{**record, "annotations": annotations}, {"image_id": 8}], "b": []}
    table = AnnotationTable.of(number_annotations(sets))
    corners = [1.0, 2.0, 8.0, 9.0]
    kept = [
        {"annotation_id": 0, "bbox": corners, "category_id": 3, "true_category_id": 1},
        {"annotation_id": 1, "bbox": corners, "category_id": 0, "iscrowd": 1},
        {"annotation_id": 2, "bbox": corners, "category_id": 2},
        {"annotation_id": 3, "bbox": [4.0, 3.0, 6.0, 7.0], "category_id": 2},
    ]
    assert [*table.records()] == [{"dataset": "a", **record, "annotations": kept}]
    assert table.true_classes() == {0: 1, 1: 0, 2: 2, 3: 2}
    assert table.num_annotations == 4
    table.write(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["annotations.jsonl"]
    assert AnnotationTable.read(tmp_path / "run") == table


def fingerprint_of(sets):
    return AnnotationTable.of(sets).fingerprint


def test_fingerprint_tells_other_annotations_of_the_same_size(tmp_path):
    records = [make_record(tmp_path, i, 3) for i in range(2)]
    numbered = number_annotations({"a": records})
    fingerprint = fingerprint_of(numbered)
    assert 0 < fingerprint < 2**48
    assert fingerprint_of(number_annotations({"a": records})) == fingerprint
    assert fingerprint_of({"b": numbered["a"]}) != fingerprint
    assert fingerprint_of({"a": numbered["a"][::-1]}) != fingerprint

    def changed(position=1, **values):
        annotations = list(numbered["a"][0]["annotations"])
        annotations[position] = {**annotations[position], **values}
        record = {**numbered["a"][0], "annotations": annotations}
        return fingerprint_of({"a": [record, numbered["a"][1]]})

    assert changed(category_id=4) != fingerprint
    assert changed(annotation_id=99) != fingerprint
    assert changed(bbox=[15.0, 15.0, 25.0, 25.5]) != fingerprint
    # Not the type of the numbers, nor less than machines may differ by, nor a crowd's class.
    assert changed(bbox=(15, 15, 25, 25.0001)) == fingerprint
    assert changed(position=2, category_id=3) == fingerprint


def test_fingerprint_does_not_depend_on_images_without_objects(tmp_path):
    record = make_record(tmp_path)
    empty = {"image_id": 9}
    fingerprints = {
        fingerprint_of(number_annotations({"a": records}))
        for records in ([record], [record, empty], [empty, record])
    }
    assert len(fingerprints) == 1


def test_an_annotation_that_the_table_cannot_read_is_named():
    record = {"image_id": "a7", "annotations": [{"annotation_id": 0, "category_id": 1}]}
    with pytest.raises(ValueError, match=r"dataset 'pets', image 'a7': .*bbox_mode"):
        AnnotationTable.of({"pets": [record]})
