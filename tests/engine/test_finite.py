"""Values at the edges: low precision, nothing to learn from, one class or a thousand, nan."""

import argparse
import logging

import pytest
import torch
from detectron2.engine import AMPTrainer, TrainerBase
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from helpers.detectors import NUM_CLASSES, build, make_batch, run_losses, small_config
from sl_detectron.data import TrainLoader
from sl_detectron.engine.finite import FiniteAMPTrainer, FiniteTrainer, trainer_class
from sl_detectron.engine.setup import setup_job
from sl_detectron.losses import SuperLoss

DETECTORS = ("standard", "retinanet")


def superloss_config(detector, num_classes=NUM_CLASSES, tau="ExpAvg"):
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    cfg.MODEL.SUPERLOSS.CLS.TAU = tau
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    return cfg


def assert_finite(losses, gradients, model):
    assert all(value.isfinite() for value in losses.values()), losses
    assert all(g.isfinite().all() for g in gradients.values())
    for criterion in (m for m in model.modules() if isinstance(m, SuperLoss)):
        assert not criterion.tau.isinf()


@pytest.mark.parametrize("detector", DETECTORS)
def test_bfloat16_autocast(detector):
    """tau and the losses are of float32 size and near those of float32."""
    model, batch = build(superloss_config(detector)), make_batch()
    exact, _, _ = run_losses(model, batch)
    model = build(superloss_config(detector))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, gradients, _ = run_losses(model, batch)
    assert_finite(losses, gradients, model)
    for criterion in (m for m in model.modules() if isinstance(m, SuperLoss)):
        assert criterion.tau.dtype in (torch.float32, torch.float64)
    if detector == "retinanet":  # no sampling, so the same anchors
        torch.testing.assert_close(
            {k: v.float() for k, v in losses.items()}, exact, rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("counts", [(0,), (0, 0), (3, 0)])
def test_images_without_objects(detector, counts):
    model = build(superloss_config(detector))
    for _ in range(2):  # the first batch may be the one without
        losses, gradients, _ = run_losses(model, make_batch(counts))
        assert_finite(losses, gradients, model)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("num_classes", [1, 1000])
@pytest.mark.parametrize("tau", ["ExpAvg", "logC"])
def test_one_class_and_a_thousand(detector, num_classes, tau):
    if (detector, tau) == ("retinanet", "logC"):
        pytest.skip("logC is of softmax only")
    cfg = superloss_config(detector, num_classes, tau)
    model, batch = build(cfg), make_batch()
    for sample in batch:
        sample["instances"].gt_classes %= num_classes
        sample["instances"].gt_classes[:1] = num_classes - 1
    losses, gradients, _ = run_losses(model, batch)
    assert_finite(losses, gradients, model)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("size", [1.0, 0.01])
def test_boxes_of_a_pixel(detector, size):
    model, batch = build(superloss_config(detector)), make_batch()
    for sample in batch:
        corners = sample["instances"].gt_boxes.tensor[:, :2]
        sample["instances"].gt_boxes = Boxes(torch.cat([corners, corners + size], dim=1))
    losses, gradients, _ = run_losses(model, batch)
    assert_finite(losses, gradients, model)


def test_a_batch_of_ignored_anchors_only():
    model = build(superloss_config("retinanet"))
    label = model.label_anchors

    def ignore_all(anchors, targets):
        labels, boxes = label(anchors, targets)
        return [torch.full_like(image_labels, -1) for image_labels in labels], boxes

    model.label_anchors = ignore_all
    for _ in range(2):
        losses, gradients, _ = run_losses(model, make_batch())
        assert all(value == 0 for value in losses.values())
        assert_finite(losses, gradients, model)
        assert all((g == 0).all() for g in gradients.values())
    model.label_anchors = label
    losses, gradients, _ = run_losses(model, make_batch())
    assert_finite(losses, gradients, model)
    assert losses["loss_cls"] != 0


@pytest.mark.parametrize("detector", DETECTORS)
def test_labels_that_are_all_wrong(detector):
    """Steps on labels that no two images agree on: losses stay finite, tau follows them."""
    model = build(superloss_config(detector))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = make_batch()
    for step in range(4):
        for sample in batch:
            classes = sample["instances"].gt_classes
            sample["instances"].gt_classes = (classes + step) % NUM_CLASSES
        losses, gradients, _ = run_losses(model, batch)
        assert_finite(losses, gradients, model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tau", ["Avg", "ExpAvg", "1.5"])
def test_half_precision_losses(dtype, tau):
    """Losses of a model under autocast, up to the largest that float16 can hold."""
    losses = torch.tensor([0.0, 1e-4, 1.0, 30.0, 6e4], dtype=dtype, requires_grad=True)
    criterion = SuperLoss(float(tau) if tau == "1.5" else tau)
    value, sigma = criterion.with_confidence(losses)
    value.float().sum().backward()
    assert value.isfinite().all()
    assert sigma.isfinite().all()
    assert losses.grad.dtype == dtype
    assert losses.grad.isfinite().all()
    exact = SuperLoss(float(tau) if tau == "1.5" else tau)(losses.detach().double())
    torch.testing.assert_close(value.double(), exact, rtol=2e-2, atol=2e-2)


class Diverges(torch.nn.Module):
    """Two terms, one of them of a given value from the second batch on."""

    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.value, self.calls = value, 0

    def forward(self, batch):
        self.calls += 1
        value = self.value if self.calls > 1 else 1.0
        return {"loss_good": self.weight, "loss_bad": value + 0 * self.weight}


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_images(value, foreign):
    records = [{"image_id": f"img{i}", "width": 2, "height": 1} for i in range(6)]
    loader = (
        [records[:2], records[2:4]] if foreign else TrainLoader(records, lambda r: r, 2, seed=0)
    )
    model = Diverges(value)
    trainer = FiniteTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=1.0))
    words = rf"iteration 1: loss_bad is {value}; images \['img\d', 'img\d'\]"
    with pytest.raises(FloatingPointError, match=words) as raised:
        trainer.train(0, 5)
    assert str(["img2", "img3"] if foreign else loader.image_ids) in str(raised.value)
    assert "loss_good" not in str(raised.value)
    assert model.calls == 2
    assert model.weight.item() == 0  # one step of length 1: of the finite batch


@pytest.mark.parametrize("detector", DETECTORS)
def test_weights_of_nan_stop_the_training_in_one_line(detector):
    """Faster R-CNN's proposals refuse them before there is a loss."""
    model = build(superloss_config(detector))
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    trainer = FiniteTrainer(model, [make_batch()], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(FloatingPointError, match=r"iteration 0: .*images \[") as raised:
        trainer.train(0, 1)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "terms",
    [
        (torch.ones(1), torch.ones(())),
        (torch.ones((), dtype=torch.float16), torch.ones((), dtype=torch.float64)),
    ],
)
def test_terms_of_any_form_are_checked(terms):
    model = torch.nn.Linear(1, 1)
    trainer = FiniteTrainer(model, [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer._write_metrics({"a": terms[0], "b": 1e5 * terms[1].double()}, 0.0)
    assert storage.latest()["total_loss"][0] == 100_001


def test_the_check_costs_one_copy_to_the_host(monkeypatch):
    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(t) or cpu(t))
    model = Diverges(1.0)
    trainer = FiniteTrainer(model, [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.iter = 0
    with EventStorage(0):
        trainer.run_step()
    # The stock trainer's own copies are of what the first one brought to the host: doubles.
    assert copies[0].shape == (2,)
    assert all(copy.dtype == torch.float64 for copy in copies[1:])


def test_the_log_file_keeps_the_traceback_that_the_console_leaves_out(tmp_path, capsys):
    cfg = small_config("standard", superloss=True)
    cfg.OUTPUT_DIR = str(tmp_path)
    setup_logger.cache_clear()
    parent = logging.getLogger("detectron2")
    before, parent.handlers = parent.handlers, []
    try:
        setup_job(cfg, argparse.Namespace(debug=False, config_file="", opts=[]))
        try:
            raise ValueError("a bug\nof two lines")
        except ValueError:
            logging.getLogger("detectron2.engine.train_loop").exception("Exception during %s:", "a")
    finally:
        parent.handlers = before
        setup_logger.cache_clear()
    printed = "".join(capsys.readouterr())
    assert "Traceback" not in printed
    assert "Exception during a: a bug of two lines" in printed
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_mixed_precision_has_the_same_check():
    assert trainer_class(True) is FiniteAMPTrainer
    order = FiniteAMPTrainer.__mro__
    assert order.index(FiniteTrainer) < order.index(AMPTrainer) < order.index(TrainerBase)
