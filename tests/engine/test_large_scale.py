"""The configs of large datasets on made ones with as many classes."""

import json
from collections import Counter

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from sl_detectron.audit.compact_tracker import CompactTracker
from sl_detectron.audit.run import audit_checkpoint, audit_run
from sl_detectron.config import without_federated_loss
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.data.registered_sets import register_custom_datasets
from sl_detectron.engine.trainer import SuperLossTrainer, build_predictor
from sl_detectron.label_noise.federated import set_image_counts
from sl_detectron.model_zoo import get_config

SIZE, NUM_IMAGES = 64, 30


def write_set(folder, num_classes):
    """A COCO json in which each class has an annotation, in images of noise."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    per_image = -(-num_classes // NUM_IMAGES)
    for i in range(NUM_IMAGES):
        pixels = rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "height": SIZE, "width": SIZE})
        for _ in range(per_image):
            x, y, w, h = (*rng.integers(0, 30, 2).tolist(), *rng.integers(8, 32, 2).tolist())
            new = {"id": len(annotations) + 1, "image_id": i + 1, "bbox": [x, y, w, h]}
            new |= {"category_id": len(annotations) % num_classes + 1, "iscrowd": 0, "area": w * h}
            annotations.append(new)
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(data))
    return {"JSON_FILE": str(folder / "set.json"), "IMAGE_ROOT": str(folder)}


def small(config, folder, name, num_classes):
    """The config with a small detector, on a made set of that number of classes."""
    cfg = get_config(config)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == num_classes
    cfg.DATASETS.CUSTOM_COCO = [{"NAME": name, **write_set(folder, num_classes)}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.DATASETS.LABEL_NOISE.TYPE, cfg.DATASETS.LABEL_NOISE.RATE = "symmetric", 0.3
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 32
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (SIZE,), SIZE
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 4, ()
    cfg.SOLVER.BASE_LR = 0.001
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(folder / "out")
    register_custom_datasets(cfg.DATASETS)
    return cfg


@pytest.mark.parametrize(
    ("config", "num_classes"),
    [
        ("LargeScale/lvis_faster_rcnn_R_50_FPN_superloss.yaml", 1203),
        ("LargeScale/objects365_faster_rcnn_R_50_FPN_superloss.yaml", 365),
    ],
)
def test_trains_audits_and_predicts(tmp_path, config, num_classes):
    name = f"made_{num_classes}"
    cfg = small(config, tmp_path, name, num_classes)
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert isinstance(trainer.annotation_tracker, CompactTracker)
    table = AnnotationTable.read(cfg.OUTPUT_DIR)
    audit = audit_run(cfg.OUTPUT_DIR)
    assert len(audit.classes) == num_classes
    assert 0 < len(audit.annotations) <= table.num_annotations
    if "lvis" in config:
        of_images = Counter(
            c for r in table.records() for c in {a["category_id"] for a in r["annotations"]}
        )
        counts = MetadataCatalog.get(name).class_image_count
        assert [c["image_count"] for c in counts] == [max(of_images[i], 1) for i in range(1203)]
        assert {*of_images.values()} != {1}
    # Neither asks for the counts of a training set, which is not read for them.
    vars(MetadataCatalog.get(name)).pop("class_image_count", None)
    weights = f"{cfg.OUTPUT_DIR}/model_final.pth"
    by_pass = audit_checkpoint(trainer.cfg, weights, table)
    assert len(by_pass.annotations) == table.num_annotations
    instances = build_predictor(trainer.cfg, weights, 0.0)(np.zeros((SIZE, SIZE, 3), np.uint8))
    assert "instances" in instances


def test_counts_follow_the_labels_and_leave_given_ones():
    MetadataCatalog.get("counted_given").class_image_count = [{"id": 0, "image_count": 7}] * 3
    records = [{"annotations": [{"category_id": c} for c in of]} for of in ([0, 0, 2], [2], [])]
    for of_set, wanted in ((records, [1, 1, 2]), (records[1:], [1, 1, 1])):
        set_image_counts({"counted": of_set}, 3)
        entries = MetadataCatalog.get("counted").class_image_count
        assert [entry["image_count"] for entry in entries] == wanted
    set_image_counts({"counted_given": records}, 3)
    assert MetadataCatalog.get("counted_given").class_image_count[0]["image_count"] == 7


def test_a_config_for_inference_has_no_federated_loss():
    cfg = get_config("LargeScale/lvis_faster_rcnn_R_50_FPN_superloss.yaml")
    cfg.freeze()
    assert not without_federated_loss(cfg).MODEL.ROI_BOX_HEAD.USE_FED_LOSS
    assert cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS
    plain = get_config("LargeScale/objects365_faster_rcnn_R_50_FPN_superloss.yaml")
    assert without_federated_loss(plain) is plain
