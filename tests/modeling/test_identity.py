"""With the SuperLoss off, or flat, every detector is detectron2's own."""

import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from helpers.detectors import DETECTORS, build, make_batch, run_losses, small_config
from sl_detectron.modeling import SuperLossTerm

HARMLESS_LAMBDA = 1e6


@pytest.fixture(scope="module", autouse=True)
def _warm_up_torchscript():
    """The first call of a scripted focal loss rounds unlike the later, optimised ones."""
    model = build(small_config("retinanet", superloss=False))
    for _ in range(2):
        run_losses(model, make_batch())


def build_pair(detector, *opts):
    """(stock, SuperLoss) detectors and the RNG states that building them left behind."""
    stock = build(small_config(detector, superloss=False))
    stock_rng = torch.get_rng_state()
    cfg = small_config(detector, superloss=True)
    cfg.merge_from_list(list(opts))
    ours = build(cfg)
    return stock, ours, stock_rng, torch.get_rng_state()


def running_tau_keys(model):
    return {k for k in model.state_dict() if ".superloss." in k}


@pytest.mark.parametrize("detector", DETECTORS)
def test_off_equals_stock_bit_for_bit(detector):
    stock, ours, stock_rng, our_rng = build_pair(
        detector,
        *("MODEL.SUPERLOSS.CLS.ENABLED", False, "MODEL.SUPERLOSS.BOX_REG.ENABLED", False),
    )
    assert torch.equal(stock_rng, our_rng)
    assert list(stock.state_dict()) == list(ours.state_dict())
    for key, value in stock.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    for objects in ((3, 1), (0, 2), (0, 0)):
        stock_losses, stock_grads, _ = run_losses(stock, make_batch(objects))
        our_losses, our_grads, _ = run_losses(ours, make_batch(objects))
        assert stock_losses == our_losses
        assert stock_grads.keys() == our_grads.keys()
        for key, value in stock_grads.items():
            assert torch.equal(value, our_grads[key]), key


@pytest.mark.parametrize("detector", DETECTORS)
def test_on_adds_nothing_but_tau_to_the_checkpoint(detector):
    stock, ours, stock_rng, our_rng = build_pair(detector, "MODEL.SUPERLOSS.BOX_REG.ENABLED", True)
    assert torch.equal(stock_rng, our_rng)
    ours_state = ours.state_dict()
    extra = set(ours_state) - set(stock.state_dict())
    terms = [n for n, m in ours.named_modules() if isinstance(m, SuperLossTerm)]
    assert extra == {f"{n}.superloss.threshold.{key}" for n in terms for key in ("mean", "count")}
    assert terms
    assert all(ours_state[key].dim() == 0 for key in extra)
    for key, value in stock.state_dict().items():
        assert torch.equal(value, ours_state[key]), key
    assert not any(ours.load_state_dict(stock.state_dict()))  # strict: all of it is there


@pytest.mark.parametrize("scope", ["all", "foreground"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_flat_superloss_has_stock_gradients(detector, scope):
    """lambda -> inf gives l - tau (Lemma 1): the values differ by a constant, gradients do not.

    With tau = 0 the constant is 0 and the values are equal too.
    """
    opts = []
    for term in ("CLS", "BOX_REG"):
        node = f"MODEL.SUPERLOSS.{term}"
        opts += [f"{node}.ENABLED", True, f"{node}.TAU", "'0'", f"{node}.SCOPE", scope]
        opts += [f"{node}.LAMBDA", HARMLESS_LAMBDA]
    stock, ours, _, _ = build_pair(detector, *opts)
    stock_losses, stock_grads, _ = run_losses(stock, make_batch())
    our_losses, our_grads, _ = run_losses(ours, make_batch())
    for key, value in stock_losses.items():
        torch.testing.assert_close(our_losses[key], value, rtol=2e-5, atol=1e-6)
    for key, value in stock_grads.items():
        torch.testing.assert_close(our_grads[key], value, rtol=1e-3, atol=1e-5 * value.abs().max())


@pytest.mark.parametrize("detector", DETECTORS)
def test_checkpoints_cross_to_stock_for_inference(detector):
    stock, ours, _, _ = build_pair(detector)
    run_losses(ours, make_batch())
    for model in (stock, ours):  # no score is left out: fresh weights give low ones
        model.test_score_thresh = -1.0
        for part in model.modules():
            if isinstance(part, FastRCNNOutputLayers):
                part.test_score_thresh = -1.0
    incompatible = stock.load_state_dict(ours.state_dict(), strict=False)
    assert not incompatible.missing_keys
    assert set(incompatible.unexpected_keys) == running_tau_keys(ours)
    with torch.no_grad():
        expected, got = stock.eval()(make_batch()), ours.eval()(make_batch())
    assert all(len(a["instances"]) for a in expected)
    for a, b in zip(expected, got):
        assert torch.equal(a["instances"].pred_classes, b["instances"].pred_classes)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)
