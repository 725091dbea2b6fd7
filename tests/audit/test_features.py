"""Features of annotated objects, by crops of the images."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone

from helpers.detectors import IMAGE_SIZE, build, small_config
from sl_detectron.audit import features as module
from sl_detectron.audit.checkpoint_scores import load_pretrained
from sl_detectron.audit.features import CROPS, crop_features, pool_features, trunk_of
from sl_detectron.data.images import BrokenImage


class Pixels(Backbone):
    """A trunk whose only declared map are the red values of every fourth pixel."""

    def forward(self, images):
        return {"more": torch.zeros(len(images), 7, 4, 4), "res2": images[:, :1, 2::4, 2::4]}

    def output_shape(self):
        return {"res2": ShapeSpec(channels=1, stride=4)}


def test_an_object_and_its_middle():
    pixels = torch.zeros(1, 3, 400, 400)
    pixels[..., 100:200, 100:200] = 1.0  # the object
    pixels[..., 120:180, 120:180] = 3.0  # around its middle, which is half as wide as the object
    features = crop_features(Pixels(), pixels, torch.tensor([[100.0, 100.0, 200.0, 200.0]]))
    assert features.shape == (1, 2 * len(CROPS))
    for mean, middle in features.view(len(CROPS), 2).tolist():
        assert mean == pytest.approx(1.72, abs=0.3)  # 3 in 36 % of the area, else 1
        assert middle == pytest.approx(3.0, abs=1e-3)


def test_small_and_large_objects_look_alike():
    """The same picture at a third of its size, beyond the image's border too."""
    large = torch.rand(1, 3, 60, 90).cumsum(dim=2).cumsum(dim=3) / 2700
    large = large.repeat_interleave(6, dim=2).repeat_interleave(6, dim=3)
    small = large[..., 1::3, 1::3]
    boxes = torch.tensor([[60.0, 60.0, 300.0, 240.0], [0.0, 0.0, 120.0, 90.0]])
    one, other = (crop_features(Pixels(), x, b) for x, b in ((large, boxes), (small, boxes / 3)))
    torch.testing.assert_close(one, other, atol=0.05, rtol=0.0)
    assert (one[0] - one[1]).abs().max() > 0.01


def test_an_object_depends_on_no_other(monkeypatch):
    pixels = torch.rand(1, 3, 80, 80)
    boxes = torch.tensor([[10.0 + i, 10.0, 50.0 + i, 60.0] for i in range(7)])
    together = crop_features(Pixels(), pixels, boxes)
    monkeypatch.setattr(module, "_BATCH", 3)
    torch.testing.assert_close(crop_features(Pixels(), pixels, boxes), together)


def test_crops_are_as_divisible_as_a_trunk_needs():
    class Divisible(Pixels):
        size_divisibility = 32

    sizes, trunk = [], Divisible()
    trunk.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[2:]))
    crop_features(trunk, torch.rand(1, 3, 80, 80), torch.tensor([[10.0, 10.0, 50.0, 60.0]]))
    assert sizes == [(128, 128), (224, 224)]


def test_a_box_without_area():
    box = torch.tensor([[10.0, 10.0, 10.0, 60.0]])
    assert crop_features(Pixels(), torch.rand(1, 3, 80, 80), box).isfinite().all()


def images_of(folder, counts):
    from PIL import Image

    height, width = IMAGE_SIZE
    records = []
    for i, count in enumerate(counts):
        path = folder / f"{i}.png"
        image = Image.new("RGB", (width, height), (40 * i, 90, 200))
        image.paste((255, 30, 0), (20, 20, 50, 60))
        image.save(path)
        boxes = [[10 + 30 * k, 10, 60 + 30 * k, 70] for k in range(count)]
        annotations = [
            {"bbox": box, "bbox_mode": 0, "category_id": 1, "annotation_id": 3 * i + k}
            for k, box in enumerate(boxes)
        ]
        records.append({"file_name": str(path), "image_id": i, "annotations": annotations})
    return records


@pytest.mark.parametrize("detector", ["standard", "c4", "retinanet"])
def test_features_of_a_set(detector, tmp_path):
    cfg = small_config(detector, superloss=False)
    model, records = build(cfg).eval(), images_of(tmp_path, (2, 0, 1))
    found = pool_features(model, records, cfg)
    assert found.ids.tolist() == [0, 1, 6]
    assert found.images.tolist() == [0, 0, 2]
    assert found.values.shape[0] == 3
    assert found.values.isfinite().all()
    assert not torch.allclose(found.values[0], found.values[1], atol=1e-5)
    # The size of a detector's input does not count.
    cfg.INPUT.MIN_SIZE_TEST //= 2
    assert torch.equal(pool_features(model, records, cfg).values, found.values)
    with pytest.raises(ValueError, match="have no annotation"):
        pool_features(model, records[1:2], cfg)


def test_an_image_that_cannot_be_read(tmp_path):
    cfg = small_config("standard", superloss=False)
    model, records = build(cfg).eval(), images_of(tmp_path, (2, 1, 1))
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(BrokenImage, match="image 1"):
        pool_features(model, records, cfg)
    cfg.DATALOADER.BROKEN_IMAGES = "skip"
    found = pool_features(model, records, cfg)
    assert found.ids.tolist() == [0, 1, 6]
    assert found.images.tolist() == [0, 0, 2]


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
    with pytest.raises(ValueError, match="100 % of its parameters"):
        load_pretrained(cfg)
    # One that fits is not enough; some backbones have small layers that pretrained weights lack.
    state = {key: p.detach() for key, p in every.items() if id(p) in trunk}
    largest = max(state, key=lambda key: state[key].numel())
    torch.save({"model": {largest: state[largest]}}, cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match=r"% of its parameters, as .*, would stay random"):
        load_pretrained(cfg)
    del state[min(state, key=lambda key: state[key].numel())]
    torch.save({"model": state}, cfg.MODEL.WEIGHTS)
    assert torch.equal(dict(load_pretrained(cfg).named_parameters())[largest], state[largest])
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="needs a pretrained backbone"):
        load_pretrained(cfg)


def test_many_features_are_projected(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MAX_FEATURES", 3)
    cfg = small_config("standard", superloss=False)
    model, records = build(cfg).eval(), images_of(tmp_path, (2, 0, 1))
    found, again = (pool_features(model, records, cfg).values for _ in range(2))
    assert found.shape == (3, 3)
    assert torch.equal(found, again)
