"""Hooks of the trainer."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from sl_detectron.data import register_toy_datasets
from sl_detectron.engine import SuperLossTrainer, hooks
from sl_detectron.engine.hooks import LogTau
from sl_detectron.losses import SuperLoss
from sl_detectron.model_zoo import get_config
from sl_detectron.modeling import SuperLossTerm


@pytest.mark.parametrize(("iteration", "gathers"), [(9, False), (10, True)])
def test_no_collective_after_a_failed_training(monkeypatch, iteration, gathers):
    """detectron2 calls the hook after an exception too, and then on the failed rank only."""
    calls = []
    monkeypatch.setattr(comm, "gather", lambda data: calls.append(data) or [data])
    hook = LogTau()
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=10, model=SuperLoss(1.5, 1.0))
    hook.after_train()
    assert calls == ([{"": 1.5}] if gathers else [])


@pytest.mark.parametrize("config", ["faster_rcnn", "faster_rcnn_superloss", "retinanet_superloss"])
def test_training_images_show_noise_and_confidence(tmp_path, monkeypatch, config):
    """At iterations 0 and 2: red boxes are exactly the wrong labels, with the step's sigma."""
    register_toy_datasets(tmp_path / "digits", prefix=f"images_{config}")
    cfg = get_config(f"Toy/{config}.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"images_{config}_train",), ()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 3, ()
    cfg.VIS_PERIOD, cfg.OUTPUT_DIR = 2, str(tmp_path)
    drawn, images = [], {}
    draw = hooks.draw_boxes

    def spy(image, boxes):
        drawn.extend(boxes)
        return draw(image, boxes)

    def put_image(storage, name, image):
        images.setdefault(name, []).append((storage.iter, image))

    monkeypatch.setattr(hooks, "draw_boxes", spy)
    monkeypatch.setattr(EventStorage, "put_image", put_image)
    trainer = SuperLossTrainer(cfg)
    trainer.train()
    for i in range(2):
        iterations, pictures = zip(*images[f"training_labels/{i}"])
        assert iterations == (0, 2)
        assert all(p.shape[0] == 3 and min(p.shape[1:]) >= 400 for p in pictures)
    wrong = [b for b in drawn if b.colour == "red"]
    assert all("(" in b.label for b in wrong)
    assert 0 < len(wrong) < len(drawn)
    assert not any("(" in b.label for b in drawn if b.colour != "red")
    with_sigma = [float(b.label.split("σ ")[1]) for b in drawn if "σ" in b.label]
    assert bool(with_sigma) == ("superloss" in config)
    assert all(0 < sigma < 2.73 for sigma in with_sigma)
    # Nothing stays attached: the next step costs what it did before.
    for module in trainer.model.modules():
        assert not module._forward_pre_hooks
        if isinstance(module, SuperLossTerm) and module.name == "cls":
            assert module.observers == [trainer.annotation_tracker]


def test_confidences_are_means_over_the_samples_of_an_annotation():
    seen = [(torch.tensor([3, 5, 3]), torch.tensor([1.0, 0.5, 2.0]))]
    seen.append((torch.tensor([5]), torch.tensor([0.1])))
    assert hooks._means(seen) == {3: 1.5, 5: pytest.approx(0.3)}
    assert hooks._means([]) == {}
