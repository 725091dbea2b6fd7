"""Records that the tests of label noise share."""

import copy
import json
import random

from detectron2.structures import BoxMode

NUM_CLASSES = 20
# Of the files that tests write; no name is safe in XML and JSON alike.
CLASSES = ["cat", "dog", "R&D", "zürich"]
# Everything that a rewrite through a parser would lose.
XML = b"""<?xml version='1.0'  encoding="utf-8"?>\r
<annotation verified = "no" >
  <size><width>100</width><height >80</height></size>
  <!-- two <object> here -->
  <object><part><name>head</name><bndbox><xmin>5</xmin></bndbox></part>
    <name> R&amp;D\t</name><bndbox><xmax>40</xmax><xmin>1.5000000001</xmin>
    <ymin>2</ymin><ymax> 30 </ymax></bndbox></object><object>
    <name><![CDATA[cat]]></name><difficult>1</difficult>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>99</xmax><ymax>80</ymax></bndbox>
  </object>

</annotation>   """


def make_records(num_images=200, num_annotations=5, num_classes=NUM_CLASSES, **extra):
    rng = random.Random(0)
    records = []
    for i in range(num_images):
        annotations = []
        for _ in range(num_annotations):
            x, y = rng.uniform(0, 300), rng.uniform(0, 200)
            box = [x, y, x + rng.uniform(2, 200), y + rng.uniform(2, 200)]
            annotations.append(
                {
                    "category_id": rng.randrange(num_classes),
                    "bbox": box,
                    "bbox_mode": BoxMode.XYXY_ABS,
                    **copy.deepcopy(extra),
                }
            )
        records.append(
            {"image_id": f"{i:06}", "height": 400, "width": 500, "annotations": annotations}
        )
    return records


def labels(records):
    return {r["image_id"]: [a["category_id"] for a in r["annotations"]] for r in records}


def coco_json(indent, num_annotations=60):
    """A COCO json of ``CLASSES``, with keys and texts that are easily taken for others."""
    rng = random.Random(0)
    images = [{"id": 7 * i, "file_name": f"{i}.jpg", "height": 80, "width": 100} for i in range(9)]
    categories = [{"id": i, "name": n} for i, n in zip((11, 3, 8, 90), CLASSES)]
    annotations = []
    for i in range(num_annotations):
        x, y, w, h = (round(rng.uniform(2, 40), 2) for _ in range(4))
        annotation = {
            "id": 1000 - i,
            "bbox": [x, y, w, h],
            "category_id": rng.choice(categories)["id"],
            "note": 'a "bbox": [1, 2] and ] } , in a string é',
            "image_id": rng.choice(images[1:])["id"],
            "iscrowd": int(i % 11 == 0),
            "segmentation": [[x, y, x + w, y, x, y + h]] if i % 7 else [[1, 2]],
        }
        annotations.append(annotation)
    info = {"annotations": [{"bbox": 0}]}
    parts = {"info": info, "annotations": annotations, "images": images, "categories": categories}
    return json.dumps(parts, indent=indent, ensure_ascii=False).encode()


def content(records):
    return [
        [(a["category_id"], [float(x) for x in a["bbox"]]) for a in record["annotations"]]
        for record in records
    ]
