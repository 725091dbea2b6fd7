"""Audits around a training: tracked, resumed, switched off, and of stock detectors."""

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import NUM_CLASSES, REPO, build, make_batch, run_losses, small_config
from detectron2.data import DatasetCatalog, MetadataCatalog

from sl_detectron.audit import AnnotationTracker, audit_annotations, read_audit
from sl_detectron.data import (
    TOY_CLASS_NAMES,
    noisy_dataset_dicts,
    number_annotations,
    register_toy_datasets,
)
from sl_detectron.engine import SuperLossTrainer, setup_cfg
from sl_detectron.engine.label_audit import (
    audit_checkpoint,
    audit_run,
    build_annotation_tracker,
    evaluate_run,
)

CONFIGS = REPO / "configs" / "Toy"
DETECTORS = ["faster_rcnn_superloss", "retinanet_superloss"]


@pytest.fixture(scope="module", autouse=True)
def toy_set(tmp_path_factory):
    registered = {}
    for name in ("toy_digits_train", "toy_digits_test"):
        registered[name] = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    register_toy_datasets(tmp_path_factory.mktemp("datasets") / "toy_digits")
    yield
    for name, (loader, metadata) in registered.items():
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


def config(output, *opts, detector="faster_rcnn_superloss", iters=4):
    fixed = ["OUTPUT_DIR", str(output), "DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", "2"]
    size = ["SOLVER.MAX_ITER", str(iters), "SOLVER.CHECKPOINT_PERIOD", "2"]
    return setup_cfg(str(CONFIGS / f"{detector}.yaml"), [*fixed, *size, *opts])


def train(cfg, resume=False, stop_at=None):
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if stop_at is not None:
        trainer.max_iter = stop_at
    trainer.train()
    return trainer


def checkpoint(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)


@pytest.fixture(scope="module", params=DETECTORS)
def run(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    cfg = config(output, detector=request.param)
    return cfg, output, train(cfg)


def test_training_leaves_a_ranked_list(run):
    cfg, output, trainer = run
    audit = read_audit(output / "label_audit.json")
    seen = int((trainer.annotation_tracker.statistics().num_samples > 0).sum())
    assert 0 < len(audit.annotations) == seen
    records = {r["image_id"]: r for r in noisy_dataset_dicts(cfg)["toy_digits_train"]}
    for a in audit.annotations:
        annotation = records[a.image_id]["annotations"][a.index]
        assert annotation["annotation_id"] == a.annotation_id
        # The noisy label, which training saw, not that on the disk.
        assert audit.classes[annotation["category_id"]] == a.label
        assert math.isfinite(a.mean_loss)
        assert 0 <= a.confidence <= math.e
    total = sum(len(r["annotations"]) for r in records.values())
    assert audit.num_unseen == total - len(audit.annotations)
    assert audit.sources["toy_digits_train"]["format"] == "voc"
    assert audit_run(cfg) == audit


def test_state_is_in_every_checkpoint_and_not_in_the_model(run):
    _, output, trainer = run
    steps = [int(checkpoint(output, f"model_000000{i}.pth")["annotation_tracker"]["step"])
             for i in (1, 3)]  # fmt: skip
    assert steps == [2, 4]
    state = checkpoint(output)
    assert torch.equal(state["annotation_tracker"]["sums"], trainer.annotation_tracker.sums)
    assert not any("tracker" in key for key in state["model"])


@pytest.mark.parametrize("detector", DETECTORS)
def test_resumed_training_goes_on_counting(detector, tmp_path):
    cfg = config(tmp_path, detector=detector)
    train(cfg, stop_at=2)
    first = checkpoint(tmp_path, "model_0000001.pth")["annotation_tracker"]["sums"][:-1, 0].sum()
    resumed = train(cfg, resume=True).annotation_tracker
    assert int(resumed.step) == 4
    assert resumed.sums[:-1, 0].sum() > first > 0


def test_off_by_a_key(tmp_path):
    cfg = config(tmp_path, "MODEL.SUPERLOSS.TRACK_ANNOTATIONS", "False", iters=1)
    trainer = train(cfg)
    assert trainer.annotation_tracker is None
    terms = [m for m in trainer.model.modules() if hasattr(m, "observers")]
    assert terms
    assert all(term.observers == [] for term in terms)
    assert "annotation_tracker" not in checkpoint(tmp_path)
    assert not (tmp_path / "label_audit.json").exists()
    with pytest.raises(ValueError, match="holds no annotation statistics"):
        audit_run(cfg)
    # A run that tracks goes on from it.
    cfg = config(tmp_path, iters=2)
    assert int(train(cfg, resume=True).annotation_tracker.step) == 1


def test_one_class_is_not_tracked():
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    loader = SimpleNamespace(num_annotations=9)
    assert build_annotation_tracker(cfg, build(cfg), loader) is None
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert build_annotation_tracker(cfg, build(cfg), loader) is not None
    assert build_annotation_tracker(cfg, build(cfg), []) is None


@pytest.mark.parametrize("detector", ["cascade", "c4_masks", "retinanet"])
def test_every_detector_tells_of_its_foreground(detector):
    cfg = small_config(detector, superloss=True)
    model = build(cfg)
    tracker = build_annotation_tracker(cfg, model, SimpleNamespace(num_annotations=4))
    batch = make_batch((3, 1))
    for image, ids in zip(batch, ([0, 1, 2], [3])):
        image["instances"].gt_annotation_ids = torch.tensor(ids)
    run_losses(model, batch)
    statistics = tracker.statistics()
    assert (statistics.num_samples > 0).all()
    assert all(values.isfinite().all() for values in statistics)
    assert statistics.probabilities.shape == (4, NUM_CLASSES)


def test_a_stock_model_is_not_tracked(tmp_path):
    trainer = train(config(tmp_path, detector="faster_rcnn", iters=1))
    assert trainer.annotation_tracker is None
    assert not (tmp_path / "label_audit.json").exists()


def test_too_large_to_track_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sl_detectron.engine.label_audit.MAX_BYTES", 1000)
    with caplog.at_level(logging.WARNING):
        assert SuperLossTrainer(config(tmp_path)).annotation_tracker is None
    assert "MODEL.SUPERLOSS.TRACK_ANNOTATIONS False" in caplog.text


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_audit_and_evaluation_of_a_stock_checkpoint(detector, tmp_path):
    pytest.importorskip("cleanlab")
    cfg = config(tmp_path, detector=detector, iters=1)
    train(cfg)
    audit = audit_checkpoint(cfg, tmp_path / "model_final.pth")
    sets = noisy_dataset_dicts(cfg)
    total = sum(len(r["annotations"]) for r in sets["toy_digits_train"])
    assert len(audit.annotations) + audit.num_unseen == total
    # Each annotation is one box to ROI heads; for anchors it may lose all of them to neighbours.
    assert audit.num_unseen == 0 or detector == "retinanet"
    evaluation = evaluate_run(cfg, audit, checkpoint=tmp_path / "model_final.pth")
    flipped = sum("true_category_id" in a for r in sets["toy_digits_train"]
                  for a in r["annotations"])  # fmt: skip
    assert evaluation.num_wrong == flipped
    assert {"suspicion", "plain loss", "loss of the final model", "ObjectLab, swap"} <= (
        evaluation.scores.keys()
    )


def test_missing_files_are_named(tmp_path):
    cfg = config(tmp_path)
    with pytest.raises(FileNotFoundError, match="not the output of a training"):
        audit_run(cfg)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.pth"):
        audit_checkpoint(cfg, tmp_path / "gone.pth")


def test_statistics_of_a_set_that_has_changed_are_refused(run):
    """One annotation less, and every later one would get what was said of its neighbour."""
    cfg, output = run[0], run[1]
    sets = noisy_dataset_dicts(cfg)
    state = checkpoint(output)["annotation_tracker"]
    rows, columns = state["sums"].shape
    tracker = AnnotationTracker(rows - 1, columns - AnnotationTracker.NUM_VALUES)
    tracker.load_state_dict(state)
    audit_annotations(sets, TOY_CLASS_NAMES, tracker.statistics())
    ((name, records),) = sets.items()
    fewer = [{**records[0], "annotations": records[0]["annotations"][1:]}, *records[1:]]
    (renumbered,) = number_annotations({name: fewer}).values()
    with pytest.raises(ValueError, match="the data set has changed since"):
        audit_annotations({name: renumbered}, TOY_CLASS_NAMES, tracker.statistics())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"foo": torch.zeros(1)}}, "is not of the config's detector: for .* no weights"),
        ([1, 2], "is not a checkpoint: it holds a list"),
        (None, "cannot be read as a checkpoint"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, content, message):
    """A detector with random weights would rank labels at random."""
    path = tmp_path / "model.pth"
    if content is None:
        path.write_text("no checkpoint")
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        audit_checkpoint(config(tmp_path), path)


def test_an_audit_that_fails_does_not_take_the_evaluation_along(tmp_path, caplog, monkeypatch):
    cfg = config(tmp_path, iters=1)

    def fail(*_):
        raise KeyError("image_id")

    monkeypatch.setattr("sl_detectron.engine.hooks.audit_tracked", fail)
    with caplog.at_level(logging.ERROR):
        train(cfg)
    assert "No label audit (KeyError: 'image_id')" in caplog.text
    assert "--from-run" in caplog.text


def test_loader_without_ids_is_named(tmp_path, caplog, monkeypatch):
    cfg = config(tmp_path, iters=1)
    trainer = SuperLossTrainer(cfg)
    hook = next(h for h in trainer._hooks if hasattr(h, "tracker"))
    trainer.iter = trainer.max_iter = 1
    with caplog.at_level(logging.WARNING):
        hook.after_train()
    assert "gt_annotation_ids" in caplog.text
    assert not (tmp_path / "label_audit.json").exists()


def test_json_is_plain(run):
    data = json.loads((run[1] / "label_audit.json").read_text())
    suspicions = [row["suspicion"] for row in data["annotations"]]
    assert suspicions == sorted(suspicions, reverse=True)
