"""Features of boxes from the maps of a detector's backbone."""

import pytest
import torch

from helpers.detectors import IMAGE_SIZE, build, small_config
from sl_detectron.audit import features as module
from sl_detectron.audit.checkpoint_scores import score_weights
from sl_detectron.audit.features import FeaturePooler, trunk_of
from sl_detectron.audit.score_annotations import score_annotations
from sl_detectron.data.annotation_ids import AnnotationTable


class Maps(torch.nn.Module):
    """A backbone of two maps: a gradient from left to right, and one that is too coarse."""

    def output_shape(self):
        from detectron2.layers import ShapeSpec

        return {"p3": ShapeSpec(channels=2, stride=8), "p6": ShapeSpec(channels=2, stride=64)}

    def forward(self, images):
        ramp = torch.arange(0.0, 20.0).expand(1, 2, 20, 20) * 8 + 4
        return {"p3": ramp, "p6": torch.full((1, 2, 3, 3), torch.nan)}


def test_a_box_and_its_surroundings():
    backbone = Maps()
    with FeaturePooler(backbone) as pooler:
        backbone(torch.zeros(1, 3, 160, 160))
        features = pooler.pool(torch.tensor([[40.0, 40.0, 80.0, 80.0], [8.0, 40.0, 48.0, 80.0]]))
    # Mean and middle of two channels of the box, and of 1.5 times its size around it, none of the
    # coarse map. The ramp has its own position as value: both are the middle of what is pooled.
    torch.testing.assert_close(features[0], torch.full((8,), 60.0))
    assert features.shape == (2, 8)
    assert features[1, 0] == pytest.approx(28.0)
    with_hook = backbone._forward_hooks
    assert not with_hook


def test_the_middle_of_a_small_object():
    """It is lost in the mean of a loose box."""

    class Spot(Maps):
        def forward(self, images):
            spot = torch.zeros(1, 2, 20, 20)
            spot[..., 10, 10] = 9.0
            return {"p3": spot}

    with FeaturePooler(backbone := Spot()) as pooler:
        backbone(torch.zeros(1, 3, 160, 160))
        mean, middle = pooler.pool(torch.tensor([[72.0, 72.0, 96.0, 96.0]]))[0, :4].view(2, 2)[:, 0]
    assert mean == pytest.approx(1.0)
    assert middle > 3 * mean


@pytest.mark.parametrize("flip", ["horizontal", "none"])
def test_a_mirrored_image_has_the_same_features_if_training_mirrors(flip, tmp_path):
    from PIL import Image, ImageOps

    height, width = IMAGE_SIZE
    image = Image.new("RGB", (width, height))
    image.paste((255, 90, 10), (20, 20, 40, 60))
    records = []
    for i, (pixels, x0) in enumerate(((image, 10), (ImageOps.mirror(image), width - 70))):
        pixels.save(path := tmp_path / f"{i}.png")
        annotation = {"bbox": [x0, 10, x0 + 60, 70], "category_id": 1, "annotation_id": i}
        annotations = [{**annotation, "bbox_mode": 0}]
        records.append({"file_name": str(path), "image_id": i, "annotations": annotations})
    cfg = small_config("standard", superloss=False)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = height, flip
    first, second = score_annotations(build(cfg).eval(), records, cfg, pool=True).features
    same = torch.allclose(first, second, rtol=1e-4, atol=1e-4)
    assert same == (flip == "horizontal")


@pytest.mark.parametrize("detector", ["standard", "c4", "retinanet"])
def test_features_of_a_set(detector, tmp_path):
    from PIL import Image

    height, width = IMAGE_SIZE
    records = []
    for i, count in enumerate((2, 0, 1)):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (width, height), (40 * i, 90, 200)).save(path)
        boxes = [[10 + 30 * k, 10, 60 + 30 * k, 70] for k in range(count)]
        annotations = [
            {"bbox": box, "bbox_mode": 0, "category_id": 1, "annotation_id": 3 * i + k}
            for k, box in enumerate(boxes)
        ]
        records.append({"file_name": str(path), "image_id": i, "annotations": annotations})
    cfg = small_config(detector, superloss=False)
    cfg.INPUT.MIN_SIZE_TEST = height
    model = build(cfg).eval()
    scores = score_annotations(model, records, cfg, pool=True)
    assert scores.feature_ids.tolist() == [0, 1, 6]
    assert scores.feature_images.tolist() == [0, 0, 2]
    assert scores.features.shape[0] == 3
    assert scores.features.isfinite().all()
    assert not torch.equal(scores.features[0], scores.features[1])
    plain = score_annotations(model, records, cfg)
    assert torch.equal(plain.losses, scores.losses)
    assert len(plain.features) == 0


def test_maps_that_a_trunk_does_not_declare():
    class More(Maps):
        def forward(self, images):
            return {"more": torch.zeros(1, 7, 10, 10), **super().forward(images)}

    with FeaturePooler(backbone := More()) as pooler:
        backbone(torch.zeros(1, 3, 160, 160))
        assert pooler.pool(torch.tensor([[40.0, 40.0, 80.0, 80.0]])).shape == (1, 8)


@pytest.mark.parametrize("detector", ["standard", "c4", "retinanet"])
def test_weights_that_are_none_of_the_trunk(detector, tmp_path):
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    model = build(cfg)
    trunk = {id(p) for p in trunk_of(model.backbone).parameters()}
    every = dict(model.named_parameters())
    others = {key: p.detach() for key, p in every.items() if id(p) not in trunk}
    assert 0 < len(others) < len(every)
    torch.save({"model": others}, cfg.MODEL.WEIGHTS)
    table = AnnotationTable.of({"none": []})
    with pytest.raises(ValueError, match="no weight that fits the backbone"):
        score_weights(model, cfg, table)
    # A part is enough: some backbones have layers that pretrained weights lack.
    key = next(key for key, p in every.items() if id(p) in trunk)
    torch.save({"model": {key: every[key].detach()}}, cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match="have no annotation"):
        score_weights(model, cfg, table)


def test_many_features_are_projected(monkeypatch):
    monkeypatch.setattr(module, "MAX_FEATURES", 3)
    backbone = Maps()
    with FeaturePooler(backbone) as pooler:
        backbone(torch.zeros(1, 3, 160, 160))
        boxes = torch.tensor([[40.0, 40.0, 80.0, 80.0]])
        first, again = pooler.pool(boxes), pooler.pool(boxes)
    assert first.shape == (1, 3)
    assert torch.equal(first, again)
