"""Records that the tests of label noise share."""

import copy
import random

from detectron2.structures import BoxMode

NUM_CLASSES = 20


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
