"""Hooks of the trainer."""

import re
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from helpers.detectors import build, make_batch, run_losses, small_config
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
def test_training_images_show_noise_and_confidence(toy_root, tmp_path, monkeypatch, config):
    """At iterations 0 and 2: red boxes are exactly the wrong labels, with the step's sigma."""
    register_toy_datasets(toy_root, prefix=f"images_{config}")
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
    truth = {
        (tuple(a["bbox"]), a["category_id"]): a.get("true_category_id", a["category_id"])
        for record in trainer.annotations.records()
        for a in record["annotations"]
    }
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    for box, label, _ in drawn:
        given, true = re.fullmatch(r"(\w+)(?: \((\w+)\))?(?: σ .*)?", label).groups()
        corners = tuple(round(float(x), 2) for x in box)
        assert truth[corners, names.index(given)] == names.index(true or given)
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


@pytest.mark.parametrize("uses", [True, False])
def test_a_term_that_no_step_comes_to_is_named(caplog, uses):
    """As of a detector that overrides forward_training and asks for no losses()."""
    criterion, other = (SuperLossTerm(name, SuperLoss(1.5)) for name in ("cls", "box_reg"))
    samples = torch.ones(2), torch.ones(2, dtype=torch.bool), 2
    model = torch.nn.ModuleDict({"a": criterion, "b": other})
    hook = hooks.WarnOfUnusedTerms()
    hook.trainer = SimpleNamespace(model=model)
    hook.before_train()
    for step in range(2):
        criterion(*samples)
        if uses or step:
            other(*samples)
        with caplog.at_level("WARNING", logger=hooks.__name__):
            hooks.logger.addHandler(caplog.handler)
            hook.after_step()
            hooks.logger.removeHandler(caplog.handler)
        assert not criterion._forward_pre_hooks
        assert not other._forward_pre_hooks
    told = {record.getMessage().split()[0] for record in caplog.records}
    assert told == (set() if uses else {"b"})


def test_confidences_are_means_over_the_samples_of_an_annotation():
    seen = [(torch.tensor([3, 5, 3]), torch.tensor([1.0, 0.5, 2.0]))]
    seen.append((torch.tensor([5]), torch.tensor([0.1])))
    assert hooks._means(seen) == {3: 1.5, 5: pytest.approx(0.3)}
    assert hooks._means([]) == {}


def test_the_stages_of_a_cascade_are_one_step_of_the_tracker():
    """And a box loss, which is in no nats, has a sum of its own."""
    cfg = small_config("cascade", superloss=True)
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED, cfg.MODEL.DEVICE = True, "cpu"
    model, batch = build(cfg), make_batch((3, 1))
    tracker = hooks.build_annotation_tracker(
        model, SimpleNamespace(num_annotations=4, fingerprint=0, labels=lambda: [0] * 4)
    )
    seen = []
    for term in model.modules():
        if isinstance(term, SuperLossTerm):
            term.observers.append(lambda ids, *_, name=term.name: seen.append((name, len(ids))))
    for image, ids in zip(batch, ([0, 1, 2], [3])):
        image["instances"].gt_annotation_ids = torch.tensor(ids)
    for step in range(2):
        run_losses(model, batch)
        assert tracker.step == step + 1
    expected = sum(count for name, count in seen if name == "cls")
    assert tracker.statistics().num_samples.sum() == expected
    assert {name for name, _ in seen} == {"cls", "box_reg"}
    # As many samples have a box loss as have one of their class.
    assert expected == sum(count for name, count in seen if name == "box_reg")
    assert (tracker.statistics().mean_box_loss > 0).all()
    assert ((tracker.statistics().mean_object > 0) & (tracker.statistics().mean_object < 1)).all()


def test_each_box_has_its_own_truth_and_confidence():
    """Three annotations: the second is known to be wrong, the third was in no sample."""
    cfg = get_config("Toy/faster_rcnn.yaml")
    hook = hooks.DrawTrainingImages(cfg, {7: 1, 8: 5, 9: 3})
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 6, 6], [2, 2, 9, 9]])
    target = Instances((10, 10), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([1, 2, 3]))
    target.gt_annotation_ids = torch.tensor([7, 8, 9])
    one, two, three = hook._boxes({"instances": target}, {7: 0.5, 8: 2.25})
    names = hook.classes
    assert one[1:] == (f"{names[1]} σ 0.50", "orange")
    assert two[1:] == (f"{names[2]} ({names[5]}) σ 2.25", "red")
    assert three[1:] == (names[3], "limegreen")
    for drawn, box in zip((one, two, three), boxes):
        assert drawn.box.tolist() == box.tolist()
