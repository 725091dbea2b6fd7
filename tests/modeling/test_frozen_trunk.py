"""A trunk computes what torchvision's does, once for each image, and trains what it should."""

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from helpers.detectors import make_batch, run_losses
from sl_detectron.engine.setup import merge_cfg
from sl_detectron.model_zoo import get_config
from sl_detectron.modeling.feature_store import FeatureStore
from sl_detectron.modeling.frozen_trunk import FrozenTrunk, build_frozen_trunk_fpn_backbone

FRCNN = "PascalVOC-Detection/faster_rcnn_mobilenet_v2_FPN.yaml"
RETINANET = "PascalVOC-Detection/retinanet_mobilenet_v2_FPN.yaml"


@pytest.fixture(scope="module")
def stock():
    """torchvision's model with statistics unlike those of a fresh one."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def weights(stock, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(stock.state_dict(), path)
    return str(path)


def images(num=2):
    return torch.randn(num, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_torchvision(stock, weights):
    trunk = FrozenTrunk("mobilenet_v2", ["stem", "res2", "res3", "res4", "res5"]).train()
    trunk.load_pretrained(weights)
    x, expected = images(), {}
    ends = {1: "stem", 3: "res2", 6: "res3", 13: "res4", 17: "res5"}
    for index, block in enumerate(stock.features):
        x = block(x)
        if index in ends:
            expected[ends[index]] = x
    features = trunk(images())
    assert list(features) == list(ends.values())
    for name, shape in trunk.output_shape().items():
        torch.testing.assert_close(features[name], expected[name])
        assert features[name].shape[1] == shape.channels
        assert features[name].shape[2:] == (64 // shape.stride, 96 // shape.stride)


@pytest.mark.parametrize(("freeze_at", "first_trained"), [(0, 0), (2, 4), (5, None)])
def test_stages_are_frozen_from_the_stem_on(freeze_at, first_trained):
    trunk = FrozenTrunk("mobilenet_v2", ["res5"], freeze_at)
    trained = {int(n.split(".")[1]) for n, p in trunk.named_parameters() if p.requires_grad}
    # Block 0 has a convolution alone; FrozenBatchNorm2d has no parameters.
    assert min(trained, default=None) == first_trained


@pytest.fixture
def count(monkeypatch):
    """How many images each call has computed."""
    computed = []
    compute = FrozenTrunk._compute
    monkeypatch.setattr(
        FrozenTrunk, "_compute", lambda self, x: computed.append(len(x)) or compute(self, x)
    )
    return computed


def stored_trunk(folder, weights=None, limit=2**30, **kwargs):
    torch.manual_seed(0)
    store = FeatureStore(folder, limit, **kwargs)
    trunk = FrozenTrunk("mobilenet_v2", ["res3", "res5"], store=store)
    if weights:
        trunk.load_pretrained(weights)
    return trunk


def test_each_image_is_computed_once(tmp_path, weights, count):
    """Also by other processes, in training and evaluation, in whatever batch; bit for bit."""
    four = images(4)
    plain = FrozenTrunk("mobilenet_v2", ["res3", "res5"])
    plain.load_pretrained(weights)
    expected = plain(four)
    assert count == [1] * 4
    first, second = (stored_trunk(tmp_path, weights).train() for _ in range(2))
    second.eval()
    for trunk, order, num_new in (
        (first, [0, 1], 2),
        (second, [1, 2], 1),
        (first, [3, 0, 2], 1),
        (second, [3, 2, 1, 0], 0),
    ):
        count.clear()
        features = trunk(four[order])
        assert count == [1] * num_new
        for name in ("res3", "res5"):
            assert torch.equal(features[name], expected[name][order])


def test_mixed_precision_stores_the_features_of_full_precision(tmp_path, weights):
    expected = stored_trunk(tmp_path / "full", weights)(images())
    with torch.autocast("cpu", torch.bfloat16):
        new, stored = (stored_trunk(tmp_path / "mixed", weights)(images()) for _ in range(2))
    for name in expected:
        assert torch.equal(new[name], expected[name])
        assert torch.equal(stored[name], expected[name])


def test_features_of_other_weights_are_apart(tmp_path, weights, count):
    trunk = stored_trunk(tmp_path, weights)
    before = trunk(images(1))["res5"]
    count.clear()
    with torch.no_grad():  # as a checkpoint is loaded
        next(trunk.parameters()).mul_(1.5)
    after = trunk(images(1))["res5"]
    assert count == [1]
    assert not torch.equal(before, after)
    assert torch.equal(stored_trunk(tmp_path, weights)(images(1))["res5"], before)
    assert count == [1]
    other = FrozenTrunk("mobilenet_v2", ["res5"], store=FeatureStore(tmp_path, 2**30))
    other.load_pretrained(weights)
    assert [*other(images(1))] == ["res5"]
    assert count == [1, 1]


def test_half_precision_does_not_depend_on_the_store(tmp_path, weights, count, caplog):
    trunk = stored_trunk(tmp_path, weights, dtype="float16")
    cold, warm = trunk(images(2)), trunk(images(2))
    assert count == [1, 1]
    full = stored_trunk(tmp_path / "full", weights, limit=1, dtype="float16")(images(2))
    exact = stored_trunk(tmp_path, weights)(images(2))
    assert torch.equal(trunk(images(2))["res5"], warm["res5"])
    assert "computed again" not in caplog.text  # the two precisions are apart
    for name in exact:
        assert torch.equal(cold[name], warm[name])
        assert torch.equal(cold[name], full[name])
        assert torch.equal(cold[name], exact[name].half().float())


def test_losses_are_those_without_a_store(tmp_path, weights):
    """Of a whole detector, bit for bit."""
    cfg = get_config(FRCNN)
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = weights
    losses = []
    for store in ("", str(tmp_path), str(tmp_path)):
        cfg.MODEL.FROZEN_TRUNK.STORE = store
        torch.manual_seed(0)
        model = build_model(cfg).train()
        losses.append(run_losses(model, make_batch((1, 2)))[:2])
    for with_store in losses[1:]:
        for ours, expected in zip(with_store, losses[0], strict=True):
            assert ours.keys() == expected.keys()
            assert all(torch.equal(ours[k], expected[k]) for k in expected)


def test_a_gpu_config_has_no_store(tmp_path, weights, caplog):
    cfg = get_config(FRCNN)
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS, cfg.MODEL.FROZEN_TRUNK.STORE = weights, str(tmp_path)
    cfg.MODEL.DEVICE = "cuda"
    with caplog.at_level("INFO"):
        backbone = build_frozen_trunk_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert "MODEL.FROZEN_TRUNK.STORE is for a CPU" in caplog.text
    backbone(torch.zeros(1, 3, 64, 64))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        (FRCNN, "3456"),
        (RETINANET, "34567"),
        # From stride 4 to 16, with a level by pooling, and with none that no loss would train.
        ("DeepPCB-Detection/faster_rcnn_efficientnet_lite0_FPN.yaml", "2345"),
        ("DeepPCB-Detection/retinanet_efficientnet_lite0_FPN.yaml", "234"),
    ],
)
def test_fpn(name, levels, weights):
    cfg = get_config(name)
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = weights if "mobilenet" in name else ""
    backbone = build_frozen_trunk_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {
        f"p{n}": 2 ** int(n) for n in levels
    }
    assert not any(p.requires_grad for p in backbone.bottom_up.parameters())
    backbone.bottom_up._store = None
    features = backbone(torch.zeros(1, 3, 128, 128))
    assert {k: 128 // x.shape[-1] for k, x in features.items()} == {
        k: v.stride for k, v in backbone.output_shape().items()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mobilenet_v3", ["res5"]), r"FROZEN_TRUNK\.NAME.*mobilenet_v2.*mobilenet_v3"),
        (("mobilenet_v2", ["res6"]), "out_features.*res6"),
        (("mobilenet_v2", []), "out_features"),
        (("mobilenet_v2", ["res5"], 6), "freeze_at.*6"),
        (("mobilenet_v2", ["res5"], 4, FeatureStore("x", 1)), "store.*freeze_at 5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FrozenTrunk(*arguments)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0], r"PIXEL_MEAN.*mobilenet_v2.*123\.675"),
        ("INPUT.FORMAT", "BGR", r"INPUT\.FORMAT.*BGR.*RGB"),
        ("MODEL.FROZEN_TRUNK.WEIGHTS", "none.pth", r"FROZEN_TRUNK\.WEIGHTS.*none\.pth"),
        ("MODEL.FROZEN_TRUNK.STORE_GIB", 0.0, "STORE_GIB.*above 0"),
        ("MODEL.FROZEN_TRUNK.STORE_DTYPE", "half", "STORE_DTYPE.*float16.*half"),
        ("MODEL.FROZEN_TRUNK.STORE", __file__, "FROZEN_TRUNK.STORE.*file"),
    ],
)
def test_bad_config(key, value, message, weights):
    cfg = get_config(FRCNN)
    cfg.merge_from_list(["MODEL.FROZEN_TRUNK.WEIGHTS", weights, key, value])
    with pytest.raises(ValueError, match=message):
        build_frozen_trunk_fpn_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize(
    ("key", "now"),
    [
        ("MODEL.MOBILENET_V2.WEIGHTS", "MODEL.FROZEN_TRUNK.WEIGHTS"),
        ("MODEL.MOBILENET_V2.CACHE_IMAGES", "MODEL.FROZEN_TRUNK.STORE"),
    ],
)
def test_an_old_key_is_named_with_the_new(key, now, tmp_path):
    with pytest.raises(ValueError, match=f"{key} was renamed to {now}"):
        merge_cfg("", [key, "1"])
    old = tmp_path / "old.yaml"
    old.write_text("MODEL: {MOBILENET_V2: {WEIGHTS: x}}")
    with pytest.raises(ValueError, match=r"MODEL\.MOBILENET_V2 was renamed to MODEL\.FROZEN_TRUNK"):
        merge_cfg(str(old), [])


def test_bad_weights(tmp_path, weights):
    trunk = FrozenTrunk("mobilenet_v2", ["res5"])
    with pytest.raises(ValueError, match=r"IMAGENET1K_V1.*got 'none\.pth'"):
        trunk.load_pretrained("none.pth")
    text = tmp_path / "text.pth"
    text.write_text("text")
    with pytest.raises(ValueError, match=r"cannot read .*text\.pth"):
        trunk.load_pretrained(str(text))
    for value, message in (
        ([1], "no state dict"),
        ({1: 2}, "no state dict"),
        ({"features.0.0.weight": 1}, "has no weight for 0.1"),
    ):
        torch.save(value, text)
        with pytest.raises(ValueError, match=message):
            trunk.load_pretrained(str(text))
    fits_not = torch.load(weights, weights_only=True)
    fits_not["features.0.0.weight"] = torch.zeros(1)
    torch.save(fits_not, text)
    with pytest.raises(ValueError, match=r"text\.pth does not fit mobilenet_v2"):
        trunk.load_pretrained(str(text))
