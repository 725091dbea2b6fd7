"""MobileNetV2 computes what torchvision's does, once for each image, and trains what it should."""

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec

from sl_detectron.model_zoo import get_config
from sl_detectron.modeling.mobilenet import MobileNetV2, build_mobilenet_v2_fpn_backbone

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
    trunk = MobileNetV2(["stem", "res2", "res3", "res4", "res5"]).train()
    trunk.load_torchvision(weights)
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
    trunk = MobileNetV2(["res5"], freeze_at)
    trained = {int(n.split(".")[1]) for n, p in trunk.named_parameters() if p.requires_grad}
    # Block 0 has a convolution alone; FrozenBatchNorm2d has no parameters.
    assert min(trained, default=None) == first_trained


def test_each_image_is_computed_once(monkeypatch):
    trunk = MobileNetV2(["res3", "res5"], cache_images=3).train()
    computed = []
    compute = trunk._compute
    monkeypatch.setattr(trunk, "_compute", lambda x: computed.append(len(x)) or compute(x))
    four = images(4)
    expected = compute(four)
    for order, num_new in (([0, 1], 2), ([1, 2], 1), ([3, 0], 1), ([3, 2], 1), ([1, 0], None)):
        before = len(computed)
        features = trunk(four[order])
        assert computed[before:] == ([num_new] if num_new else [])  # image 3 found no place
        for name in ("res3", "res5"):
            torch.testing.assert_close(features[name], expected[name][order])
    trunk.eval()(four)
    assert computed[-1] == 4


@pytest.mark.parametrize(("name", "levels"), [(FRCNN, "3456"), (RETINANET, "34567")])
def test_fpn(name, levels, weights):
    cfg = get_config(name)
    cfg.MODEL.MOBILENET_V2.WEIGHTS = weights
    backbone = build_mobilenet_v2_fpn_backbone(cfg, ShapeSpec(channels=3))
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {
        f"p{n}": 2 ** int(n) for n in levels
    }
    assert not any(p.requires_grad for p in backbone.bottom_up.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["res6"],), "out_features.*res6"),
        (([],), "out_features"),
        ((["res5"], 6), "freeze_at.*6"),
        ((["res5"], 4, 10), "cache_images.*freeze_at 5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MobileNetV2(*arguments)


def test_bad_weights(tmp_path, weights):
    trunk = MobileNetV2(["res5"])
    with pytest.raises(ValueError, match=r"MOBILENET_V2\.WEIGHTS.*IMAGENET1K_V1.*got 'none\.pth'"):
        trunk.load_torchvision("none.pth")
    text = tmp_path / "text.pth"
    text.write_text("text")
    with pytest.raises(ValueError, match=r"cannot read .*text\.pth"):
        trunk.load_torchvision(str(text))
    for value, message in (
        ([1], "no state dict"),
        ({1: 2}, "no state dict"),
        ({"features.0.0.weight": 1}, "has no features"),
    ):
        torch.save(value, text)
        with pytest.raises(ValueError, match=message):
            trunk.load_torchvision(str(text))
    fits_not = torch.load(weights, weights_only=True)
    fits_not["features.0.0.weight"] = torch.zeros(1)
    torch.save(fits_not, text)
    with pytest.raises(ValueError, match=r"text\.pth.*features|features.*text\.pth"):
        trunk.load_torchvision(str(text))
