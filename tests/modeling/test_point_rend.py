"""A project of detectron2's that we do not know: PointRend's mask head beside the SuperLoss."""

import importlib
from types import ModuleType

import pytest
import torch
from detectron2.data import MapDataset
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks

from helpers.detectors import make_batch, small_config


@pytest.fixture(scope="module")
def point_rend() -> ModuleType:
    try:
        return importlib.import_module("detectron2.projects.point_rend")
    except ImportError as error:  # the project, or OpenCV, which it draws colours with
        pytest.skip(f"PointRend cannot be imported: {error}")


def point_rend_config(point_rend):
    cfg = small_config("standard_masks", superloss=True)
    point_rend.add_pointrend_config(cfg)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = cfg.MODEL.FPN.OUT_CHANNELS
    cfg.MODEL.ROI_MASK_HEAD.FC_DIM = cfg.MODEL.POINT_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON = True
    cfg.MODEL.POINT_HEAD.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = "instance"
    cfg.SOLVER.BASE_LR = 0.005
    return cfg


def batches(seed):
    """A batch with masks as bitmaps, which PointRend samples its points from."""
    batch = make_batch((2, 1), seed=seed)
    for image in batch:
        instances = image["instances"]
        polygons = instances.gt_masks.polygons
        instances.gt_masks = BitMasks.from_polygon_masks(polygons, *instances.image_size)
    return batch


def test_trains_20_iterations(point_rend):
    cfg = point_rend_config(point_rend)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loader = torch.utils.data.DataLoader(MapDataset(list(range(20)), batches), batch_size=None)
    trainer = SimpleTrainer(model, loader, build_optimizer(cfg, model))
    trainer.train(0, 20)
    history = trainer.storage.histories()
    for key in ("loss_cls", "loss_box_reg", "loss_mask", "loss_mask_point", "total_loss"):
        assert len(history[key].values()) == 20
        assert all(torch.isfinite(torch.tensor(v)) for v, _ in history[key].values())
    assert "superloss_cls/sigma_foreground" in history
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    for part in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.point_head"):
        assert any(part in n for n in moved), part
    model.eval()
    with torch.no_grad():
        (prediction, _) = model([{"image": image["image"]} for image in batches(0)])
    assert prediction["instances"].has("pred_masks")
