"""Co-teaching by hand arithmetic, its rate, and the pairs of detectors that it needs."""

import math

import pytest
import torch
from detectron2.structures import Instances
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.detectors import build, run_losses, small_config
from helpers.method_cases import NODE, detector_with, numbered_batch, options, plain_detector
from sl_detectron.checkpoint import SafeCheckpointer
from sl_detectron.engine.resume import resume_or_load
from sl_detectron.rivals import build_method, check_method
from sl_detectron.rivals.co_teaching import CoTeaching

# Samples of annotations 7, 8, 9 and background.
IDS = torch.tensor([7, 8, 7, 9, -1])
FIRST = torch.tensor([1.0, 2.0, 2.0, 9.0, 5.0])
SECOND = torch.tensor([1.0, 8.0, 1.0, 0.5, 5.0])


def told(method, losses=(FIRST, SECOND)):
    """The class terms of both sides, each the sum of losses times weights."""
    target = Instances((9, 9), gt_classes=torch.tensor([0, 1, 1]))
    target.gt_annotation_ids = torch.tensor([7, 8, 9])
    placeholders = {}
    for name, side, values in zip("ab", (method.first, method.second), losses):
        side.relabel([target])

        def compute(side=side, values=values):
            plain, weights = side.expected_losses(lambda _: values, IDS, IDS)
            return (plain * weights).sum()

        placeholders[name] = side.settle(compute)
    terms = method.exchanged({**placeholders, "box": torch.tensor(3.0)})
    return {name: float(value) for name, value in terms.items()}


def test_each_trains_on_what_the_other_finds_easy():
    """Means of the first: 1.5, 2, 9; of the second: 1, 8, 0.5. Two of three are kept."""
    method = CoTeaching(rate=1 / 3, ramp=0)
    # The second drops 8, the first drops 9; background always counts.
    assert told(method) == {"a": 1 + 2 + 9 + 5, "b": 1 + 8 + 1 + 5, "box": 3.0}
    assert method.first.queue[-3:, 0].tolist() == [1.5, 2.0, 9.0]
    assert method.second.queue[:, 0].isnan().sum() == 253
    # Beside [1.5, 2, 9] these are large: four of six are at most 5.
    later = told(method, (FIRST + 4, SECOND))
    assert later["b"] == 15.0  # the first keeps 7 and 8 (5.5 and 6 are among the four smallest)


def test_each_class_keeps_its_share():
    """Classes 0, 1, 1. At R = 1/2 each keeps one; the first 7 and 8, the second 7 and 9."""
    method = CoTeaching(rate=0.5, ramp=0, num_classes=2)
    assert told(method) == {"a": 1 + 2 + 9 + 5, "b": 1 + 8 + 1 + 5, "box": 3.0}
    assert method.first.queue[-3:].tolist() == [[1.5, 0.0], [2.0, 1.0], [9.0, 1.0]]
    assert method.first.queue.shape == (128, 2)
    # Among all three the loss of 1.5 alone would be kept at R = 1/3, and no 8.
    assert told(CoTeaching(rate=2 / 3, ramp=0))["b"] == 1 + 1 + 5
    assert told(CoTeaching(rate=2 / 3, ramp=0, num_classes=2))["b"] == 1 + 8 + 1 + 5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.6, 1.0])
def test_largest_kept_loss_of_each_class_by_a_slow_loop(share):
    """Classes with ten, with few and with no losses, ties, and rows that are empty."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.cat([torch.zeros(10), torch.tensor([1.0, 3.0, 3.0]), torch.ones(9)])
    losses = (torch.rand(len(classes), generator=generator) * 8).round()
    rows = torch.stack([losses, classes], dim=1)
    rows[-2:] = math.nan
    rows = rows[torch.randperm(len(rows), generator=generator)]
    found = CoTeaching(0.4, 0, num_classes=5).first._largest(share, rows)
    for number, value in enumerate(found.tolist()):
        ordered = sorted(loss for loss, of in rows.tolist() if of == number)
        kept = max(math.ceil(share * len(ordered) - 1e-9), 1)
        assert value == (ordered[kept - 1] if kept < len(ordered) else math.inf)


def test_memory_grows_with_losses_and_not_with_classes_times_losses():
    """LVIS: 1,203 classes with 64 losses each would be 93 million numbers."""
    side = CoTeaching(0.4, 0, num_classes=1203).first
    rows = torch.stack([torch.rand(len(side.queue)), torch.arange(len(side.queue)) % 1203], dim=1)
    largest = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Sizes():
        assert side._largest(0.5, rows).isfinite().all()
    assert max(largest) <= 2 * len(rows)


def test_all_are_kept_at_rate_0_and_by_one_that_has_not_seen_it():
    assert told(CoTeaching(rate=0.0, ramp=0)) == {"a": 19.0, "b": 15.5, "box": 3.0}
    method = CoTeaching(rate=0.9, ramp=0)
    unseen = IDS.clone()
    side = method.second
    side._ids, side._groups = torch.tensor([7, 8, 9]), torch.zeros(3).long()
    side.settle(lambda: side.expected_losses(lambda _: SECOND[:1], unseen[:1], unseen[:1])[0].sum())
    assert side.choose(0.1).tolist() == [True, True, True]


def test_a_forward_that_does_not_learn_leaves_no_loss():
    method = CoTeaching(rate=1 / 3, ramp=0)
    with torch.no_grad():
        assert told(method)["a"] == 17.0
    assert method.first.queue.isnan().all()


def test_share_falls_over_the_ramp():
    method = CoTeaching(rate=0.4, ramp=10)
    shares = []
    for iteration in (0, 5, 10, 99):
        method.begin_step(iteration)
        shares.append(method.share)
    assert shares == pytest.approx([1.0, 0.8, 0.6, 0.6])


def test_rate_goes_with_the_state_only_if_it_is_estimated():
    estimated, given = CoTeaching(-1.0, 10), CoTeaching(0.2, 10)
    estimated.rate = 0.37
    for method, rate in ((CoTeaching(-1.0, 10), 0.37), (given, 0.2)):
        method.load_state_dict(estimated.state_dict())
        assert method.rate == rate
    assert CoTeaching(-1.0, 10).rate == 0.0


def test_the_two_differ_and_one_trunk_is_one():
    model, _ = detector_with("CoTeaching")
    losses, _, _ = run_losses(model, numbered_batch())
    assert losses["second_loss_cls"] != losses["loss_cls"]
    shared, _ = detector_with("CoTeaching, one trunk")
    keys = [key for key in shared.state_dict() if key.startswith("second")]
    assert keys
    assert all(key.startswith("second.roi_heads") for key in keys)
    losses, _, _ = run_losses(shared, numbered_batch())
    assert "second_loss_rpn_cls" not in losses


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_predictions_are_those_of_the_first_by_a_config_of_one(detector):
    model, _ = detector_with("CoTeaching", detector)
    run_losses(model, numbered_batch())
    one = plain_detector(detector)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("second.")}
    one.load_state_dict(state)
    with torch.no_grad():
        found, expected = (m.eval()(numbered_batch()) for m in (model, one))
        for ours, theirs in zip(found, expected, strict=True):
            for key, value in theirs["instances"].get_fields().items():
                assert torch.equal(
                    getattr(ours["instances"].get(key), "tensor", ours["instances"].get(key)),
                    getattr(value, "tensor", value),
                )


def test_weights_of_one_detector_fill_both(tmp_path):
    """Also by detectron2's matching of names, which refuses weights that fit two places."""
    one = build(small_config("standard", superloss=True), seed=5)
    weights = {
        key.removeprefix("backbone."): value
        for key, value in one.state_dict().items()
        if key.startswith("backbone.bottom_up")
    }
    path = tmp_path / "weights.pth"
    torch.save({"model": weights, "matching_heuristics": True}, path)
    model, _ = detector_with("CoTeaching")
    head = model.second.roi_heads.box_head.fc1.weight.clone()
    assert not resume_or_load(SafeCheckpointer(model, str(tmp_path / "out")), str(path), False)
    for key, value in weights.items():
        assert torch.equal(model.state_dict()[f"backbone.{key}"], value)
        assert torch.equal(model.state_dict()[f"second.backbone.{key}"], value)
    assert torch.equal(model.second.roi_heads.box_head.fc1.weight, head)
    assert not torch.equal(model.roi_heads.box_head.fc1.weight, head)


def test_detectors_that_a_file_fills_wholly_start_equal(tmp_path, caplog):
    """RetinaNets would stay so: they see the same images, and sample nothing."""
    for detector in ("standard", "retinanet"):
        path = tmp_path / f"{detector}.pth"
        weights = build(small_config(detector, superloss=True), seed=5).state_dict()
        torch.save({"model": weights}, path)
        model, _ = detector_with("CoTeaching", detector)
        checkpointer = SafeCheckpointer(model, str(tmp_path / "out"))
        if detector == "standard":
            resume_or_load(checkpointer, str(path), False)
            assert "they start equal" in caplog.text
        else:
            with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS fills both .*never differ"):
                resume_or_load(checkpointer, str(path), False)


def test_what_it_needs():
    cfg = small_config("standard", superloss=True)
    cfg.merge_from_list([NODE + "NAME", "CoTeaching"])
    with pytest.raises(ValueError, match=r"two detectors: set MODEL\.META_ARCH.*'GeneralizedRCNN'"):
        check_method(cfg)
    cfg.merge_from_list(options("CoTeaching", "standard", NODE + "NOISE_RATE", -1.0))
    check_method(cfg)
    with pytest.raises(ValueError, match="annotations have ids"):
        build_method(cfg, build(cfg), 0)
    cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS = False
    with pytest.raises(ValueError, match="TRACK_ANNOTATIONS is off"):
        check_method(cfg)
    with pytest.raises(ValueError, match="needs a pair of detectors; got Linear"):
        CoTeaching(0.1, 1).attach(nn.Linear(1, 1))


@pytest.mark.parametrize(("key", "value"), [("NAME", "x"), ("START", 1.0), ("NOISE_RATE", 1.0)])
def test_bad_values(key, value):
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.METHOD[key] = value
    with pytest.raises(ValueError, match=rf"MODEL\.METHOD\.{key} must be .*; got {value!r}"):
        check_method(cfg)
    cfg.merge_from_list([NODE + "NAME", "", NODE + "START", 0.1, NODE + "NOISE_RATE", -1.0])
    check_method(cfg)
    assert build_method(cfg, build(cfg), 0) is None
    cfg.MODEL.METHOD.NAME, cfg.MODEL.SUPERLOSS.CORRECTION.START = "CoTeaching", 0.5
    with pytest.raises(ValueError, match="both set the training targets"):
        check_method(cfg)
    # Of which the second would fail after the whole first.
    cfg.MODEL.SUPERLOSS.CORRECTION.START, cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS = 1.0, 2
    with pytest.raises(ValueError, match="both set the training targets"):
        check_method(cfg)


def test_a_term_that_a_detector_changes_is_an_error():
    method = CoTeaching(0.1, 0)
    for side in (method.first, method.second):
        side._ids, side._groups = torch.tensor([7]), torch.tensor([0])
    for side in (method.first, method.second):
        side.settle(
            lambda side=side: side.expected_losses(lambda _: FIRST[:1], IDS[:1], IDS[:1])[0].sum()
        )
    with pytest.raises(TypeError, match="lack a class term"):
        method.exchanged({"loss_cls": torch.tensor(math.pi)})
