"""Losses, terms and heads on a GPU against the same in float64, or float32, on the CPU."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.detectors import build, make_batch, roi_batch, run_losses, small_config
from helpers.loss_cases import CASES, LAM, TAUS, make_inputs
from sl_detectron.engine.finite import FiniteAMPTrainer
from sl_detectron.losses import SuperLoss
from sl_detectron.modeling import SuperLossTerm
from sl_detectron.modeling.superloss_term import GRANULARITIES, SCOPES

pytestmark = pytest.mark.gpu
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
# Of a value computed in float32 and rounded to the dtype.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
AMP = [None, torch.float16, torch.bfloat16]


def on_gpu(cfg):
    cfg.MODEL.DEVICE = "cuda"
    return build(cfg)


def autocast(dtype):
    return torch.autocast("cuda", dtype=dtype or torch.float16, enabled=dtype is not None)


def assert_near(found, expected, dtype):
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        *(found.detach().double().cpu(), expected.detach().double()),
        rtol=tolerance,
        atol=tolerance,
    )


@every_dtype
@pytest.mark.parametrize("name", CASES)
def test_losses(name, dtype):
    """Values and gradients, of inputs that were rounded to the dtype."""
    inputs = [x.detach() for x in make_inputs(name, 200, dtype)]
    wide = [x.double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    inputs = [x.cuda().requires_grad_() if x.is_floating_point() else x.cuda() for x in inputs]
    results = []
    for values, device in ((wide, "cpu"), (inputs, "cuda")):
        loss = CASES[name].build()
        if isinstance(loss, nn.Module):
            loss = loss.to(device, torch.float64 if device == "cpu" else torch.float32)
        results.append(loss(*values))
        results[-1].sum().backward()
    assert_near(results[1], results[0], dtype)
    for found, expected in zip(inputs, wide):
        if found.is_floating_point():
            assert_near(found.grad, expected.grad, dtype)


@pytest.mark.parametrize("autocast_to", AMP)
@every_dtype
@pytest.mark.parametrize("name", TAUS)
def test_tau(name, dtype, autocast_to):
    """Three batches, one of them with an infinite loss, which does not move tau."""
    ours, exact = SuperLoss(TAUS[name](), LAM).cuda(), SuperLoss(TAUS[name](), LAM)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        losses = (3 * torch.rand(1000, generator=generator)).to(dtype)
        losses[step] = float("inf") if step == 1 else 1.0
        with autocast(autocast_to):
            value, sigma = ours.with_confidence(losses.cuda())
        expected, expected_sigma = exact.with_confidence(losses.double())
        finite = losses.isfinite()
        assert_near(value[finite], expected[finite], dtype)
        assert_near(sigma, expected_sigma, dtype)
        assert ours.tau.dtype == torch.float64
        torch.testing.assert_close(ours.tau.cpu(), exact.tau, rtol=1e-9, atol=0)


def term_inputs(num=300):
    generator = torch.Generator().manual_seed(0)
    losses = 3 * torch.rand(num, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, 20, (num,), generator=generator)
    return losses, ids >= 0, ids


@every_dtype
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_terms(scope, granularity, dtype):
    losses, foreground, ids = term_inputs()
    if granularity == "class":
        losses, foreground = losses[:, None].repeat(1, 4), foreground[:, None].expand(-1, 4)
    results = []
    for device, width in (("cpu", torch.float64), ("cuda", dtype)):
        term = SuperLossTerm("cls", SuperLoss("ExpAvg", LAM), scope, granularity).to(device)
        leaf = losses.to(dtype).to(device, width).requires_grad_()
        for _ in range(2):
            leaf.grad = None
            value = term(leaf, foreground.to(device), 100.0, ids.to(device))
            value.backward()
        results.append((value, leaf.grad, term.superloss.tau))
    (expected, expected_grad, expected_tau), (value, grad, tau) = results
    assert_near(value, expected, dtype)
    assert_near(grad, expected_grad, dtype)
    # The mean of an annotation is rounded to the dtype before it counts.
    rtol = TOLERANCE[dtype] if granularity == "instance" else 1e-6
    torch.testing.assert_close(tau.cpu(), expected_tau, rtol=rtol, atol=0)


def box_head():
    """Output layers of a Faster R-CNN with both terms."""
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    return build(cfg).roi_heads.box_predictor


@pytest.mark.parametrize("autocast_to", AMP)
def test_box_head(autocast_to):
    (scores, deltas), proposals = roi_batch(64, 20)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.detach().to(device).requires_grad_() for x in (scores, deltas)]
        predictor = box_head().to(device)
        with EventStorage(), autocast(autocast_to if device == "cuda" else None):
            losses = predictor.losses(leaves, [p.to(device) for p in proposals])
        sum(losses.values()).backward()
        results.append([*losses.values(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(results[1], results[0]):
        assert_near(found, expected, autocast_to or torch.float32)


@pytest.mark.parametrize("autocast_to", AMP)
def test_retinanet(autocast_to, monkeypatch):
    """Without sampling, so with the same anchors on both devices."""
    cfg = small_config("retinanet", superloss=True)
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = True
    expected, _, _ = run_losses(build(cfg), make_batch())
    model = on_gpu(cfg)
    # torch's default for convolutions is TF32.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with autocast(autocast_to):
        losses, gradients, _ = run_losses(model, make_batch())
    tolerance = 1e-3 if autocast_to is None else 0.05
    for key, value in losses.items():
        torch.testing.assert_close(
            value.float().cpu(), expected[key], rtol=tolerance, atol=tolerance
        )
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_retinanet_with_parameters_of_16_bits(dtype):
    """Not autocast, and in the memory format channels_last."""
    cfg = small_config("retinanet", superloss=True)
    expected, _, _ = run_losses(build(cfg), make_batch())
    model, batch = on_gpu(cfg).to(dtype, memory_format=torch.channels_last), make_batch()
    for sample in batch:
        sample["image"] = sample["image"].to(dtype)
    losses, gradients, _ = run_losses(model, batch)
    for key, value in losses.items():
        torch.testing.assert_close(value.float().cpu(), expected[key], rtol=0.05, atol=0.05)
    assert all(g.isfinite().all() and g.dtype == dtype for g in gradients.values())
    assert model.superloss_cls.superloss.tau.dtype == torch.float64


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("detector", ["standard", "standard_masks", "cascade", "retinanet"])
def test_detectors_train_with_mixed_precision(detector, precision, measured):
    """detectron2's AMPTrainer with its GradScaler: losses finite, weights and tau move."""
    model = on_gpu(small_config(detector, superloss=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=precision == torch.float16)
    trainer = FiniteAMPTrainer(
        model, [make_batch()] * 4, optimizer, grad_scaler=scaler, precision=precision
    )
    trainer.train(0, 4)
    assert any((p != old).any() for p, old in zip(model.parameters(), before))
    assert all(p.isfinite().all() for p in model.parameters())
    for criterion in (m for m in model.modules() if isinstance(m, SuperLoss)):
        assert criterion.tau.dtype == torch.float64
        assert criterion.tau.isfinite()
    name = str(precision).removeprefix("torch.")
    measured(f"{detector}, AMP {name}: scale after 4 steps", scaler.get_scale(), "")
