"""RoIAlign by matrices is torchvision's, and has a gradient for the boxes."""

import math
from itertools import product

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch.overrides import TorchFunctionMode

from helpers.detectors import build, make_batch, random_boxes, run_losses, small_config
from sl_detectron.engine import SuperLossTrainer
from sl_detectron.modeling import MatrixROIAlign, use_matrix_roi_align


def generator():
    return torch.Generator().manual_seed(0)


def any_boxes(num=40):
    """Inside, across an edge, outside, turned inside out, and of no size; in no order of images."""
    g = generator()
    low = 200 * torch.rand(num, 2, generator=g) - 50
    boxes = torch.cat([low, low + 220 * torch.rand(num, 2, generator=g) - 20], dim=1)
    boxes[0, 2:] = boxes[0, :2]
    return torch.cat([torch.randint(3, (num, 1), generator=g), boxes], dim=1)


@pytest.mark.parametrize(
    ("size", "ratio", "aligned"), [*product([(7, 7), (3, 5)], [0, 2], [True, False])]
)
def test_it_is_torchvisions(size, ratio, aligned):
    features = torch.randn(3, 4, 17, 23, generator=generator(), requires_grad=True)
    settings = size, 1 / 8, ratio, aligned
    pooled, gradients = [], []
    for module in (ROIAlign(*settings), MatrixROIAlign(*settings)):
        pooled.append(module(features, any_boxes()))
        weight = torch.randn(pooled[0].shape, generator=generator())
        gradients += torch.autograd.grad(pooled[-1], features, weight)
    assert pooled[0].abs().sum(dim=(1, 2, 3)).count_nonzero() in range(20, 40)
    torch.testing.assert_close(pooled[1], pooled[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_boxes_have_a_gradient():
    features = torch.randn(2, 2, 12, 12, generator=generator(), dtype=torch.float64)
    boxes = [[3.3, 4.1, 20.7, 18.9], [-3.2, 2.1, 9.7, 30.3]]
    boxes = torch.tensor(boxes, dtype=torch.float64, requires_grad=True)
    images = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    module = MatrixROIAlign((2, 3), 0.5, 2)
    assert torch.autograd.gradcheck(
        lambda b: module(features, torch.cat([images, b], dim=1)), [boxes]
    )


def test_boxes_stay_precise_in_mixed_precision():
    """The stock RoIAlign rounds the coordinates themselves to 16 bits."""
    features = torch.randn(1, 4, 40, 40, generator=generator()).bfloat16()
    rois = torch.tensor([[0, 301.3, 250.9, 318.2, 267.7]])
    exact = ROIAlign((7, 7), 1 / 8, 0)(features.float(), rois)
    errors = []
    for kind in (MatrixROIAlign, ROIAlign):
        with torch.autocast("cpu", torch.bfloat16):
            pooled = kind((7, 7), 1 / 8, 0)(features, rois)
        assert pooled.dtype == torch.bfloat16
        errors.append((pooled.float() - exact).abs().max())
    assert errors[0] < 0.02
    assert errors[1] > 4 * errors[0]


def test_a_pooler_takes_boxes_from_their_level():
    pooler = ROIPooler((3, 3), (0.25, 0.125), 2, "ROIAlignV2", canonical_box_size=32)
    features = [torch.randn(2, 4, n, n, generator=generator()) for n in (32, 16)]
    boxes = list(random_boxes(8, generator()).split([5, 3]))
    boxes[1] *= 1.3
    expected = pooler(features, [Boxes(b) for b in boxes])
    use_matrix_roi_align(pooler)
    assert [type(p) for p in pooler.level_poolers] == [MatrixROIAlign] * 2
    assert [p.spatial_scale for p in pooler.level_poolers] == [0.25, 0.125]
    torch.testing.assert_close(pooler(features, [Boxes(b) for b in boxes]), expected)
    assert pooler(features, [Boxes(b[:0]) for b in boxes]).shape == (0, 4, 3, 3)


@pytest.mark.parametrize("kind", ["ROIPool", "ROIAlignRotated"])
def test_other_poolers_are_left_alone(kind):
    pooler = ROIPooler(3, (0.25,), 2, kind)
    before = pooler.level_poolers[0]
    use_matrix_roi_align(pooler)
    assert pooler.level_poolers[0] is before


@pytest.mark.parametrize("detector", ["standard", "cascade", "standard_masks"])
def test_losses_of_a_detector_are_the_same_but_for_rounding(detector):
    cfg = small_config(detector, superloss=True)
    expected = run_losses(build(cfg), make_batch())[0]
    cfg.MODEL.ROI_HEADS.MATRIX_ROI_ALIGN = True
    model = SuperLossTrainer.build_model(cfg)
    assert not any(type(m) is ROIAlign for m in model.modules())
    model.load_state_dict(build(cfg).state_dict())
    losses = run_losses(model.train(), make_batch())[0]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_roi_align_is_said_to_ignore_the_key(caplog):
    cfg = small_config("retinanet", superloss=True)
    cfg.MODEL.ROI_HEADS.MATRIX_ROI_ALIGN = True
    SuperLossTrainer.build_model(cfg)
    assert "MATRIX_ROI_ALIGN is set but has no effect" in caplog.text


def test_a_long_thin_box_takes_little_memory():
    """It has a sample for each pixel of its length, and all boxes had as many."""
    rois = torch.tensor([[0, 0, 0, 30.0, 30.0]]).repeat(50, 1)
    rois[0, 3] = 700
    module = MatrixROIAlign((7, 7), 1.0, 0)
    sizes = []

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Sizes():
        module(torch.zeros(1, 1, 8, 700), rois)
    assert max(sizes) <= 50 * 7 * 700


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_boxes_that_are_not_finite_are_refused(value, ratio):
    rois = torch.tensor([[0, 1.0, 1.0, 5.0, 5.0], [0, 1.0, 1.0, value, 5.0]])
    with pytest.raises(FloatingPointError, match="infinite or nan"):
        MatrixROIAlign((3, 3), 1.0, ratio)(torch.zeros(1, 1, 8, 8), rois)


def test_the_gradient_on_a_pixels_centre_is_a_slope():
    """Samples on the centres of pixels, as those of boxes of whole pixels may be."""
    features = torch.arange(8.0)[None, None, None].repeat(1, 1, 8, 1)
    boxes = torch.tensor([[1.0, 1.0, 4.0, 4.0]], requires_grad=True)
    module = MatrixROIAlign((3, 3), 1.0, 1)
    pooled = module(features, torch.cat([torch.zeros(1, 1), boxes], dim=1))
    pooled.sum().backward()
    # A step to the right raises each of nine bins by as much.
    torch.testing.assert_close(boxes.grad[0, [0, 2]].sum(), torch.tensor(9.0))


def test_a_lazy_config_calls_it():
    pooler = LazyCall(ROIPooler)(
        output_size=7, scales=(0.25,), sampling_ratio=0, pooler_type="ROIAlignV2"
    )
    built = instantiate(LazyCall(use_matrix_roi_align)(model=pooler))
    assert [type(p) for p in built.level_poolers] == [MatrixROIAlign]
