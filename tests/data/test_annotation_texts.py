"""The text of a table is that of annotations taken one by one, which fingerprints depend on."""

import json

import numpy as np
import pytest
from detectron2.structures import BoxMode

from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.data.annotation_texts import annotation_texts


def one_by_one(annotation):
    """The JSON and the part of a fingerprint, by Python's own rounding."""
    x, y, a, b = map(float, annotation["bbox"])
    if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
        a, b = x + a, y + b
    box = [round(v, 2) + 0.0 for v in (x, y, a, b)]
    kept = (annotation["annotation_id"], annotation["category_id"], box)
    shown = dict(zip(("annotation_id", "bbox", "category_id"), (kept[0], box, kept[1])))
    if "true_category_id" in annotation:
        shown["true_category_id"] = annotation["true_category_id"]
    if annotation.get("iscrowd"):
        return json.dumps({**shown, "iscrowd": 1}), ""
    return json.dumps(shown), repr(kept)


def made(boxes):
    return [
        {
            "annotation_id": i,
            "bbox": box,
            "bbox_mode": (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)[i % 2],
            "category_id": i % 7,
            **({"iscrowd": 1} if i % 5 == 0 else {"iscrowd": 0}),
            **({"true_category_id": 3} if i % 3 == 0 else {}),
        }
        for i, box in enumerate(boxes)
    ]


def halves():
    """Numbers whose third decimal is a 5, which are rounded by what they are in binary."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 10**6, (4000, 4)) / 1000 + 0.0005).round(4).tolist()


@pytest.mark.parametrize(
    "boxes",
    [
        np.random.default_rng(0).uniform(-5, 700, (2000, 4)).tolist(),
        np.random.default_rng(0).uniform(0, 700, (2000, 4)).round(3).tolist(),
        np.random.default_rng(1).integers(0, 140_000, (4000, 4)).__truediv__(200).tolist(),
        halves(),
        [[-0.001, -0.0, 0.005, 2.675], [1, 2, 3, 4], [1e-9, 1e12, 3e15, 0.1]],
        [[float("nan"), 1.0, float("inf"), 2.0], [1.005, 1.0, 2.0, 3.0]],
    ],
)
def test_texts_are_those_of_one_annotation_at_a_time(boxes):
    annotations = made(boxes)
    records = [{"annotations": annotations[i : i + 3]} for i in range(0, len(annotations), 3)]
    texts = [text for of in annotation_texts("a", [*records, {}]) for text in of]
    assert texts == [one_by_one(a) for a in annotations]


def test_an_image_with_another_box_mode_is_read_for_itself():
    annotations = [*made([[1.0, 2.0, 3.0, 4.5]] * 2)]
    annotations[1]["bbox_mode"] = BoxMode.XYWH_REL
    with pytest.raises(ValueError, match="dataset 'a', image 7: an annotation cannot be read"):
        [*annotation_texts("a", [{"image_id": 7, "annotations": annotations}])]


def test_a_file_whose_ids_are_beyond_its_number_is_refused(tmp_path):
    record = {"image_id": 1, "annotations": made([[1, 2, 3, 4]] * 3)}
    table = AnnotationTable.of({"a": [record]})
    table.write(tmp_path)
    assert AnnotationTable.read(tmp_path).labels() == table.labels() == [0, 1, 2]
    path = tmp_path / "annotations.jsonl"
    path.write_text(path.read_text().replace('"num_annotations": 3', '"num_annotations": 2'))
    with pytest.raises(ValueError, match="it has 2 annotations and ids 0 to 2"):
        AnnotationTable.read(tmp_path)
