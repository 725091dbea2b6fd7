"""A loss that is not finite: found, named with its images, at no further copy to the host."""

from contextlib import nullcontext

import pytest
import torch
from detectron2.engine import AMPTrainer
from detectron2.utils.events import EventStorage

from helpers.detectors import build, make_batch, small_config
from sl_detectron.data import TrainLoader
from sl_detectron.engine.finite import (
    FiniteAMPTrainer,
    FiniteBF16Trainer,
    FiniteTrainer,
    trainer_class,
)


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


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_weights_of_nan_stop_the_training_in_one_line(detector):
    """Faster R-CNN's proposals refuse them before there is a loss."""
    model = build(small_config(detector, superloss=True))
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_terms_of_any_form_are_found(value):
    model = torch.nn.Linear(1, 1)
    trainer = FiniteTrainer(model, [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.iter = 3
    for shape in ((), (1,), (1, 1)):
        terms = {"loss_good": torch.ones(1), "loss_bad": torch.full(shape, value)}
        with EventStorage(0), pytest.raises(FloatingPointError, match=f"3: loss_bad is {value};"):
            trainer._write_metrics(terms, 0.0)


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


class Scaler:
    """A gradient scaler that needs no GPU, as that of detectron2's trainer does."""

    def scale(self, loss):
        return 1 * loss

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


def test_mixed_precision_has_the_same_check(monkeypatch):
    """Its step too is not made on a loss of nan, whose images are named; autocast does nothing."""
    assert trainer_class(True, "cuda:1") is FiniteAMPTrainer
    assert trainer_class(False, "cuda") is trainer_class(False, "cpu") is FiniteTrainer
    assert issubclass(FiniteAMPTrainer, AMPTrainer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.amp, "autocast", lambda dtype: nullcontext())
    model = Diverges(float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batches = [[{"image_id": "a"}], [{"image_id": "b"}], [{"image_id": "c"}]]
    trainer = FiniteAMPTrainer(model, batches, optimizer, grad_scaler=Scaler())
    with pytest.raises(FloatingPointError, match=r"iteration 1: loss_bad is nan; images \['b'\]"):
        trainer.train(0, 3)
    assert model.calls == 2
    assert model.weight.item() == 0  # one step of length 1: of the finite batch


class Precise(torch.nn.Module):
    """Notes the types of a product in the forward and the backward pass."""

    def __init__(self, raises=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, 1))
        self.raises, self.seen = raises, []

    def forward(self, batch):
        product = torch.ones(1, 1) @ self.weight
        self.seen.append(product.dtype)
        product.register_hook(lambda _: self.seen.append(torch.is_autocast_enabled("cpu")))
        if self.raises:
            raise self.raises("no memory")
        return {"loss": product.sum()}


def test_mixed_precision_on_a_cpu_is_bfloat16_in_the_forward_pass_alone():
    assert trainer_class(True, "cpu") is FiniteBF16Trainer
    model = Precise()
    trainer = FiniteBF16Trainer(model, [[0], [0]], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.train(0, 2)
    assert model.seen == [torch.bfloat16, False] * 2
    assert model.weight.dtype == torch.float32
    assert model.weight.item() == -1  # two steps, each with the weight of before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_mixed_precision_ends_with_a_step_that_raises(error):
    model = Precise(error)
    trainer = FiniteBF16Trainer(model, [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(error, match="no memory"):
        trainer.train(0, 1)
    assert model.seen == [torch.bfloat16]
    assert not torch.is_autocast_enabled("cpu")
    assert not model._forward_hooks


def test_a_checkpoint_without_a_scaler_is_resumed_with_one(monkeypatch):
    """As one of a CPU on a GPU; AMPTrainer ends with a KeyError."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = Precise()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = {**FiniteBF16Trainer(model, [[0]], optimizer).state_dict(), "iteration": 7}
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = FiniteAMPTrainer(model, [[0]], optimizer, grad_scaler=scaler)
    trainer.load_state_dict(state)
    assert trainer.iter == 7
    assert scaler.get_scale() == 8.0


class Narrow(torch.nn.Module):
    """A convolution over images that are narrower than its stride."""

    def __init__(self, kernel, stride):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(64, 64, kernel, stride, kernel // 2, bias=False)

    def forward(self, batch):
        # Memory that was in use before: new tensors would be zero by chance.
        for size in (64 * 64 * 9, 2 * 64 * 8, 10_000):
            torch.full((size,), float("nan"), dtype=torch.bfloat16)
        return {"loss": self.convolution(batch).square().sum()}


@pytest.mark.parametrize(
    ("kernel", "stride", "width"), [(3, 2, 1), (3, 3, 2), (5, 2, 1), (7, 4, 3)]
)
def test_gradients_of_images_narrower_than_a_stride(kernel, stride, width):
    images = torch.randn(2, 64, 5, width, generator=torch.Generator().manual_seed(1))
    expected = Narrow(kernel, stride)
    loss = expected(images)["loss"]
    loss.backward()
    for _ in range(5):
        model = Narrow(kernel, stride)
        trainer = FiniteBF16Trainer(model, [images], torch.optim.SGD(model.parameters(), lr=0.0))
        trainer.train(0, 1)
        gradients = [m.convolution.weight.grad for m in (model, expected)]
        torch.testing.assert_close(*gradients, rtol=0.05, atol=0.02 * gradients[1].abs().max())
        assert not model.convolution._forward_pre_hooks
