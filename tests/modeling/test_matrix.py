"""Head x box loss x classification loss x dtype x objects: forward and backward without nan."""

import pytest
import torch
from detectron2.data import MetadataCatalog

from helpers.detectors import (
    NUM_CLASSES,
    build,
    make_batch,
    require_sigmoid_classification,
    run_losses,
    small_config,
)

BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
# Options that make the classification loss of an ROI head.
CLS_LOSSES = {
    "softmax": (),
    "sigmoid": ("USE_SIGMOID_CE", True),
    "federated": ("USE_SIGMOID_CE", True, "USE_FED_LOSS", True, "FED_LOSS_NUM_CLASSES", 3),
}
MATRIX = [
    *((h, b, c) for h in ("standard", "c4", "cascade") for b in BOX_LOSSES for c in CLS_LOSSES),
    *(("retinanet", b, "focal") for b in BOX_LOSSES),
]


@pytest.fixture(scope="module", autouse=True)
def _class_frequencies():
    """Federated losses draw classes by the image counts of the training set."""
    counts = [{"id": i + 1, "image_count": 10 * (i + 1)} for i in range(NUM_CLASSES)]
    MetadataCatalog.get("matrix_train").class_image_count = counts
    yield
    MetadataCatalog.pop("matrix_train")


def matrix_config(head, box_loss, cls_loss):
    cfg = small_config(head, superloss=True)
    cfg.DATASETS.TRAIN = ("matrix_train",)
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = box_loss
    cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = box_loss
    options = CLS_LOSSES.get(cls_loss, ())
    if options:
        require_sigmoid_classification(cfg)
    for key, value in zip(options[::2], options[1::2]):
        cfg.MODEL.ROI_BOX_HEAD[key] = value
    return cfg


@pytest.mark.parametrize(("head", "box_loss", "cls_loss"), MATRIX)
def test_no_nan(head, box_loss, cls_loss):
    model = build(matrix_config(head, box_loss, cls_loss))
    for dtype in (torch.float32, torch.bfloat16):
        for objects in ((0, 0), (2, 3)):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                losses, gradients, _ = run_losses(model, make_batch(objects))
            where = f"{dtype}, {objects} objects"
            assert all(v.isfinite() for v in losses.values()), where
            assert all(g.isfinite().all() for g in gradients.values()), where
            # Data parallel training needs a gradient for every parameter on every rank.
            trained = {n for n, p in model.named_parameters() if p.requires_grad}
            assert trained <= set(gradients), where
            assert any(g.any() for n, g in gradients.items() if "cls_score" in n), where


LOSSES = (
    *("generalized_cross_entropy", "symmetric_cross_entropy", "hard_bootstrapping"),
    *("soft_bootstrapping", "focal_loss", "data_params", "lncis", "self_paced"),
    *("truncated_generalized_cross_entropy", "forward_correction", "curriculum_loss"),
)


@pytest.mark.parametrize("enabled", [True, False], ids=["superloss", "alone"])
@pytest.mark.parametrize("loss", LOSSES)
def test_other_classification_losses(loss, enabled):
    """Each under the SuperLoss and alone, also without objects and in 16 bits."""
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.LOSS, cfg.MODEL.SUPERLOSS.CLS.ENABLED = loss, enabled
    cfg.MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS = 8
    model = build(cfg)
    stock, _, _ = run_losses(build(small_config("standard", superloss=False)), make_batch((2, 3)))
    for dtype in (torch.bfloat16, torch.float32):
        for objects in ((0, 0), (2, 3)):
            batch, start = make_batch(objects), 0
            for image in batch:
                ids = torch.arange(start, start + len(image["instances"]))
                image["instances"].gt_annotation_ids = ids
                start += len(ids)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                losses, gradients, _ = run_losses(model, batch)
            assert all(v.isfinite() for v in losses.values())
            assert all(g.isfinite().all() for g in gradients.values())
    assert losses["loss_box_reg"] == stock["loss_box_reg"]
    # Temperatures start at 1: alone, the loss is plain cross-entropy until they have learned.
    if loss == "data_params" and not enabled:
        torch.testing.assert_close(losses["loss_cls"], stock["loss_cls"])
        (temperatures,) = (g for n, g in gradients.items() if "log_sample_temperature" in n)
        assert temperatures[:5].all()  # the five annotations of the batch, and no other
        assert not temperatures[5:].any()
    else:
        assert abs(losses["loss_cls"] - stock["loss_cls"]) > 1e-3


@pytest.mark.parametrize(
    ("detector", "loss", "message"),
    [
        ("standard", "huber", r"CLS\.LOSS must be one of .*symmetric_cross_entropy.*'huber'"),
        ("standard_sigmoid", "focal_loss", r"CLS\.LOSS.*'cross_entropy' where.*not a softmax"),
        ("retinanet", "focal_loss", r"CLS\.LOSS.*'cross_entropy' where.*not a softmax"),
    ],
)
def test_losses_that_do_not_fit(detector, loss, message):
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.LOSS = loss
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_data_params_without_a_count_predict_but_do_not_train():
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.LOSS = "data_params"
    model = build(cfg)
    with torch.no_grad():
        model.eval()(make_batch())
    with pytest.raises(ValueError, match=r"NUM_ANNOTATIONS is 0.*SuperLossTrainer"):
        run_losses(model.train(), make_batch())


def test_data_params_refuse_a_loader_that_does_not_number_annotations():
    """In one line, before the loss: images without objects have nothing to number."""
    cfg = small_config("standard", superloss=True)
    cfg.merge_from_list(["MODEL.SUPERLOSS.CLS.LOSS", "data_params"])
    cfg.merge_from_list(["MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS", 9])
    model = build(cfg)
    run_losses(model, make_batch((0, 0)))
    with pytest.raises(ValueError, match="does not number them: give its instances gt_annotation"):
        run_losses(model, make_batch())
