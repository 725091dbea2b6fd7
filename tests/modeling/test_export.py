"""SuperLoss detectors can be scripted and traced wherever the stock ones can."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.testing import convert_scripted_instances

from helpers.detectors import build, make_batch, run_losses, small_config
from sl_detectron.modeling import use_matrix_roi_align

# v0.6 cannot import its exports without Caffe2.
export = pytest.importorskip("detectron2.export")

# Of detectron2's code: asserts and loops that a trace fixes.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

BOX_FIELDS = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
PROPOSAL_FIELDS = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor}
FIELDS = {
    "standard": {**BOX_FIELDS, **PROPOSAL_FIELDS},
    "standard_masks": {**BOX_FIELDS, **PROPOSAL_FIELDS, "pred_masks": torch.Tensor},
    "retinanet": BOX_FIELDS,
}


def config(detector, *opts, superloss=True):
    cfg = small_config(detector, superloss)
    cfg.merge_from_list(["MODEL.SUPERLOSS.BOX_REG.ENABLED", True, *opts])
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    return cfg


def image():
    return make_batch((1,))[0]["image"]


def detect(model, image):
    """Instances of an image, before they are scaled to its original size."""
    if hasattr(model, "inference"):
        return model.inference([{"image": image}], do_postprocess=False)[0]
    result = model([{"image": image}])[0]
    return result["instances"] if isinstance(result, dict) else result


@pytest.mark.parametrize(
    ("detector", "opts"),
    [
        *((detector, ()) for detector in FIELDS),
        ("standard", ("MODEL.SUPERLOSS.CLS.TAU", "logC", "MODEL.SUPERLOSS.CLS.FIXED_SIGMA", 2.0)),
        ("standard", ("MODEL.SUPERLOSS.CLS.LOSS", "focal_loss")),
        (
            "standard",
            (
                *("MODEL.SUPERLOSS.CLS.LOSS", "data_params"),
                *("MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS", 4),
            ),
        ),
    ],
)
def test_scripted_inference_is_the_scripted_stock_models(detector, opts):
    """To the last bit; the models that are not scripted break ties of scores in other ways."""
    ours = build(config(detector, *opts))
    stock = build(config(detector, superloss=False))
    if not opts:
        for model in (ours, stock):  # after a step, as a detector that was trained
            run_losses(model, make_batch())
        ours.load_state_dict(stock.state_dict(), strict=False)
    scripted = [
        export.scripting_with_instances(model.eval(), FIELDS[detector]) for model in (ours, stock)
    ]
    with torch.no_grad():
        got, expected = (convert_scripted_instances(detect(m, image())) for m in scripted)
    assert len(got) == len(expected) > 0
    assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(got.scores, expected.scores)


@pytest.mark.parametrize("detector", ["standard", "c4", "cascade", "retinanet"])
def test_traced_inference_is_the_models(detector):
    model = build(config(detector)).eval()

    adapter = export.TracingAdapter(model, image(), detect)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        got = adapter.outputs_schema(traced(image()))
        expected = detect(model, image())
    assert len(got) == len(expected) > 0
    torch.testing.assert_close(got.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(got.scores, expected.scores)


def test_roi_align_by_matrices_is_exported_as_the_stock_one():
    """A trace would keep the numbers of boxes of its example, and TorchScript has no such code."""
    model = use_matrix_roi_align(build(config("standard"))).eval()
    adapter = export.TracingAdapter(model, image(), detect)
    other = make_batch((2,), seed=1)[0]["image"].flip(2)
    with torch.no_grad():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        got, expected = adapter.outputs_schema(traced(other)), detect(model, other)
    assert len(got) == len(expected) > 0
    torch.testing.assert_close(got.scores, expected.scores)
    torch.testing.assert_close(got.pred_boxes.tensor, expected.pred_boxes.tensor)
    scripted = export.scripting_with_instances(model, FIELDS["standard"])
    with torch.no_grad():
        found = convert_scripted_instances(detect(scripted, other))
    assert len(found) == len(expected)
