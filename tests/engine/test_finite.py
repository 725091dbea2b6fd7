"""A loss that is not finite: found, named with its images, at no further copy to the host."""

import gc
import logging
import re
import weakref
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import AMPTrainer, TrainerBase
from detectron2.utils.events import EventStorage
from PIL import Image

from helpers.detectors import build, make_batch, small_config
from sl_detectron.data import TrainLoader
from sl_detectron.engine.finite import FiniteAMPTrainer, FiniteTrainer, trainer_class


class Diverges(torch.nn.Module):
    """Two terms, one of them of a given value from the second batch on."""

    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.value, self.calls = value, 0

    def forward(self, batch):
        self.calls += 1
        value = self.value if self.calls > 1 else 1.0
        return {"loss_good": self.weight, "loss_bad": value + 0 * self.weight}


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_images(value, foreign):
    records = [{"image_id": f"img{i}", "width": 2, "height": 1} for i in range(6)]
    loader = (
        [records[:2], records[2:4]] if foreign else TrainLoader(records, lambda r: r, 2, seed=0)
    )
    model = Diverges(value)
    trainer = FiniteTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=1.0))
    words = rf"iteration 1: loss_bad is {value}; images \['img\d', 'img\d'\]"
    with pytest.raises(FloatingPointError, match=words) as raised:
        trainer.train(0, 5)
    assert str(["img2", "img3"] if foreign else loader.image_ids) in str(raised.value)
    assert "loss_good" not in str(raised.value)
    assert model.calls == 2
    assert model.weight.item() == 0  # one step of length 1: of the finite batch


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_weights_of_nan_stop_the_training_in_one_line(detector):
    """Faster R-CNN's proposals refuse them before there is a loss."""
    model = build(small_config(detector, superloss=True))
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    trainer = FiniteTrainer(model, [make_batch()], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(FloatingPointError, match=r"iteration 0: .*images \[") as raised:
        trainer.train(0, 1)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "terms",
    [
        (torch.ones(1), torch.ones(())),
        (torch.ones((), dtype=torch.float16), torch.ones((), dtype=torch.float64)),
    ],
)
def test_terms_of_any_form_are_checked(terms):
    model = torch.nn.Linear(1, 1)
    trainer = FiniteTrainer(model, [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer._write_metrics({"a": terms[0], "b": 1e5 * terms[1].double()}, 0.0)
    assert storage.latest()["total_loss"][0] == 100_001


def test_the_check_costs_one_copy_to_the_host(monkeypatch):
    copies = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda t: copies.append(t) or cpu(t))
    model = Diverges(1.0)
    trainer = FiniteTrainer(model, [[0]], torch.optim.SGD(model.parameters(), lr=1.0))
    trainer.iter = 0
    with EventStorage(0):
        trainer.run_step()
    # The stock trainer's own copies are of what the first one brought to the host: doubles.
    assert copies[0].shape == (2,)
    assert all(copy.dtype == torch.float64 for copy in copies[1:])


def test_mixed_precision_has_the_same_check():
    assert trainer_class(True) is FiniteAMPTrainer
    order = FiniteAMPTrainer.__mro__
    assert order.index(FiniteTrainer) < order.index(AMPTrainer) < order.index(TrainerBase)


class Record(dict):
    """A record that can be watched."""


def test_records_do_not_stay_in_memory_beside_their_copy():
    records = [Record(image_id=0, width=2, height=1)]
    seen = weakref.ref(records[0])
    loader = TrainLoader(records, lambda r: r, 1, seed=0)
    del records
    gc.collect()
    assert seen() is None
    assert next(iter(loader))[0]["image_id"] == 0


@pytest.mark.parametrize("change", ["labels", "aspect_ratio_grouping", "sampler"])
def test_a_resume_on_other_data_warns(change, caplog):
    caplog.set_level(logging.WARNING)

    def loader(changed=False, **options):
        records = [{"image_id": i, "width": 2, "height": 1} for i in range(4)]
        if changed and change == "aspect_ratio_grouping":
            options["aspect_ratio_grouping"] = False
        if changed and change == "sampler":
            options["make_sampler"] = lambda seed: InferenceSampler(4)
        made = TrainLoader(records, lambda r: r, 2, seed=0, **options)
        made.annotations = SimpleNamespace(fingerprint=8 if changed and change == "labels" else 7)
        return made

    loader().load_state_dict(loader().state_dict())
    assert not caplog.records
    loader(changed=True).load_state_dict(loader().state_dict())
    assert f"{change} was" in caplog.text


def test_a_broken_image_is_skipped_by_a_key(tmp_path, caplog):
    """In its place comes another one, the same in every run."""
    records = make_images(tmp_path)
    data = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(data[: len(data) // 2])
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")

    def ids(**options):
        loader = TrainLoader(records, mapper, 2, seed=0, **options)
        return [[s["image_id"] for s in batch] for batch, _ in zip(loader, range(6))]

    with pytest.raises(ValueError, match=r"image 2, \S*2\.png: .*BROKEN_IMAGES"):
        ids()
    first = ids(broken_images="skip")
    assert first == ids(broken_images="skip", num_workers=2)
    seen = {i for batch in first for i in batch}
    assert seen == {0, 1, 3, 4}
    assert len(re.findall(r"Skipped image 2", caplog.text)) == 1


def test_nothing_but_broken_images_ends_in_an_error(tmp_path):
    records = make_images(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")
    loader = TrainLoader(records, mapper, 2, seed=0, broken_images="skip")
    with pytest.raises(ValueError, match="10 images in a row could not be used"):
        next(iter(loader))


def make_images(folder):
    for i in range(5):
        pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    record = {"width": 32, "height": 32, "annotations": []}
    return [{**record, "image_id": i, "file_name": str(folder / f"{i}.png")} for i in range(5)]
