"""Audits around a training: tracked, resumed, switched off, and of stock detectors."""

import json
import logging
import math
from unittest.mock import patch

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog

from helpers import REPO
from helpers.detectors import NUM_CLASSES, build, make_batch, run_losses, small_config
from sl_detectron.audit import audit_checkpoint, audit_run, read_audit
from sl_detectron.audit.compact_tracker import CompactTracker
from sl_detectron.audit.ranking import suspicion
from sl_detectron.audit.run import evaluate_run
from sl_detectron.audit.score_annotations import AnnotationScores
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.data import register_toy_datasets, toy
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.engine import SuperLossTrainer, setup_cfg
from sl_detectron.engine.hooks import build_annotation_tracker
from sl_detectron.label_noise import build_noisy_train_loader, noisy_dataset_dicts

CONFIGS = REPO / "configs" / "Toy"
DETECTORS = ["faster_rcnn_superloss", "retinanet_superloss"]


@pytest.fixture(autouse=True)
def heard_by_caplog(caplog):
    """detectron2's set-up, in this test or an earlier one, keeps records from the root logger."""
    logger = logging.getLogger("sl_detectron")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="module", autouse=True)
def toy_set(tmp_path_factory):
    """Of 60 images: detectors look at all of them, again and again."""
    with patch.object(toy, "TOY_SPLITS", {"train": 60, "test": 4}):
        root = toy.make_toy_dataset(tmp_path_factory.mktemp("datasets") / "toy_digits")
    registered = {}
    for name in ("toy_digits_train", "toy_digits_test"):
        registered[name] = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    register_toy_datasets(root)
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
    assert audit_run(output) == audit


def test_the_table_of_a_run_is_what_its_loader_had(run):
    cfg, output, trainer = run
    table = AnnotationTable.read(output)
    sets = noisy_dataset_dicts(cfg)
    assert table == trainer.data_loader.annotations == AnnotationTable.of(sets)
    assert table.classes == TOY_CLASS_NAMES
    annotations = [a for r in sets["toy_digits_train"] for a in r["annotations"]]
    assert table.num_annotations == len(annotations)
    truth = {a["annotation_id"]: a.get("true_category_id", a["category_id"]) for a in annotations}
    assert table.true_classes() == truth


def test_a_run_is_audited_without_its_datasets(run, monkeypatch):
    def read(*_):
        raise AssertionError("a dataset was read")

    monkeypatch.setattr("sl_detectron.label_noise.training_sets.load_dataset", read)
    assert audit_run(run[1]).annotations


def test_a_run_without_its_table_says_what_to_do(run, tmp_path):
    (tmp_path / "model_final.pth").symlink_to(run[1] / "model_final.pth")
    with pytest.raises(
        FileNotFoundError, match=r"no \S*annotations\.jsonl.* or audit .*--checkpoint"
    ):
        audit_run(tmp_path)
    text = (run[1] / "annotations.jsonl").read_text()
    for damaged in ("", text.replace("annotation_id", "id"), text + "[]\n", "{}\n" + text):
        (tmp_path / "annotations.jsonl").write_text(damaged)
        with pytest.raises(ValueError, match=r"annotations\.jsonl is not a table of annotations"):
            audit_run(tmp_path)


def test_a_checkpoint_of_an_earlier_run_in_the_folder_is_refused(run, tmp_path):
    """A run on other noise began in the same folder and has left no checkpoint yet."""
    (tmp_path / "model_final.pth").symlink_to(run[1] / "model_final.pth")
    AnnotationTable.of(noisy_dataset_dicts(with_seed(run[0], 77))).write(tmp_path)
    with pytest.raises(ValueError, match="as many annotations as this run has, but other ones"):
        audit_run(tmp_path)


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
    before = checkpoint(tmp_path, "model_0000001.pth")["annotation_tracker"]["sums"]
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=True)
    # A second tracker, which starts at nothing, sees what the resumed training adds.
    num_annotations = trainer.data_loader.annotations.num_annotations
    added = AnnotationTracker(num_annotations, len(TOY_CLASS_NAMES))
    for module in trainer.model.modules():
        if trainer.annotation_tracker in getattr(module, "observers", ()):
            module.observers.append(added)
    trainer.train()
    resumed = trainer.annotation_tracker
    assert (int(resumed.step), int(added.step)) == (4, 2)
    assert before[:-1, 0].sum() > 0
    assert added.sums[:-1, 0].sum() > 0
    assert torch.equal(resumed.sums[:, 0], before[:, 0] + added.sums[:, 0])
    torch.testing.assert_close(resumed.sums, before + added.sums)


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
        audit_run(tmp_path)
    # A run that tracks goes on from it.
    cfg = config(tmp_path, iters=2)
    assert int(train(cfg, resume=True).annotation_tracker.step) == 1


def table_of(num_annotations):
    return AnnotationTable(num_annotations, 0, (), {}, ())


def test_one_class_is_not_tracked():
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    assert build_annotation_tracker(build(cfg), table_of(9)) is None
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert build_annotation_tracker(build(cfg), table_of(9)) is not None
    assert build_annotation_tracker(build(cfg), None) is None


@pytest.mark.parametrize("detector", ["cascade", "c4_masks", "retinanet"])
def test_every_detector_tells_of_its_foreground(detector):
    cfg = small_config(detector, superloss=True)
    model = build(cfg)
    tracker = build_annotation_tracker(model, table_of(4))
    batch = make_batch((3, 1))
    for image, ids in zip(batch, ([0, 1, 2], [3])):
        image["instances"].gt_annotation_ids = torch.tensor(ids)
    run_losses(model, batch)
    statistics = tracker.statistics()
    assert (statistics.num_samples > 0).all()
    assert statistics.mean_box_loss.isnan().all() or cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED
    *others, _ = statistics
    assert all(values.isfinite().all() for values in others)
    assert statistics.probabilities.shape == (4, NUM_CLASSES)
    # Three stages of a cascade look at one step.
    run_losses(model, batch)
    assert int(tracker.step) == 2
    assert (tracker.last_step[:4] == 2).all()


def test_a_stock_model_is_not_tracked(tmp_path):
    trainer = train(config(tmp_path, detector="faster_rcnn", iters=1))
    assert trainer.annotation_tracker is None
    assert not (tmp_path / "label_audit.json").exists()


def test_too_large_to_track_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("sl_detectron.engine.hooks.MAX_BYTES", 1000)
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
    table = AnnotationTable.of(sets)
    evaluation = evaluate_run(cfg, audit, table, checkpoint=tmp_path / "model_final.pth")
    flipped = sum("true_category_id" in a for r in sets["toy_digits_train"]
                  for a in r["annotations"])  # fmt: skip
    assert evaluation.num_wrong == flipped
    assert {"suspicion", "plain loss", "loss of the final model", "ObjectLab, swap"} <= (
        evaluation.scores.keys()
    )


def test_checkpoint_of_a_lazy_config_by_a_yaml_of_the_same_detector(tmp_path):
    lazy = LazyConfig.load(str(REPO / "configs/LazyConfig/toy_faster_rcnn_superloss.py"))
    torch.manual_seed(0)
    torch.save({"model": instantiate(lazy.model).state_dict()}, tmp_path / "lazy.pth")
    audit = audit_checkpoint(config(tmp_path), tmp_path / "lazy.pth")
    assert audit.annotations
    assert audit.num_unseen == 0


def test_missing_files_are_named(tmp_path):
    cfg = config(tmp_path)
    with pytest.raises(FileNotFoundError, match="not the output of a training"):
        audit_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone\.pth"):
        audit_checkpoint(cfg, tmp_path / "gone.pth")


def with_seed(cfg, seed):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.LABEL_NOISE.SEED = seed
    return cfg


def test_a_resume_on_other_annotations_is_refused(run):
    """As many annotations and classes: only their fingerprint tells that labels moved."""
    cfg, output = run[0], run[1]
    before = audit_run(output)
    with pytest.raises(ValueError, match="as many annotations as this run has, but other ones"):
        train(with_seed(cfg, 77), resume=True)
    # What it has of its own annotations stays.
    assert audit_run(output) == before


def test_images_without_annotations_and_nothing_matched(tmp_path, monkeypatch):
    """A record may lack the key; small objects may be matched by no anchor of a RetinaNet."""
    cfg = config(tmp_path, detector="retinanet")
    sets = noisy_dataset_dicts(cfg)
    (records,) = sets.values()
    bare = {k: v for k, v in records[0].items() if k != "annotations"}
    sets = {"toy_digits_train": [bare, *records[1:]]}
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, 10), []
    module = "sl_detectron.audit.run"
    monkeypatch.setattr(f"{module}.noisy_dataset_dicts", lambda _: sets)
    scores = AnnotationScores(*nothing)
    monkeypatch.setattr(f"{module}.score_checkpoint", lambda *_, **__: scores)
    monkeypatch.setattr(f"{module}.objectlab_scores", lambda *_: {})
    audit = audit_checkpoint(cfg, "any.pth")
    assert audit.annotations == ()
    assert audit.num_unseen == sum(len(r["annotations"]) for r in records[1:])
    with pytest.raises(ValueError, match="0 of 0 labels are wrong"):
        evaluate_run(cfg, audit, AnnotationTable.of(sets), checkpoint="any.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"foo": torch.zeros(1)}}, "does not match this config: .* are missing"),
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

    monkeypatch.setattr("sl_detectron.engine.hooks.audit_annotations", fail)
    with caplog.at_level(logging.ERROR):
        train(cfg)
    assert "No label audit (KeyError: 'image_id')" in caplog.text
    assert "--from-run" in caplog.text


class WithoutIds(SuperLossTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        mapper = DatasetMapper(cfg, True)
        return build_noisy_train_loader(cfg, lambda record: mapper(record))


def test_loader_without_ids_is_named(tmp_path, caplog):
    trainer = WithoutIds(config(tmp_path, iters=1))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.annotation_tracker.step == 1
    assert not trainer.annotation_tracker.statistics().num_samples.any()
    assert "gt_annotation_ids" in caplog.text
    assert not (tmp_path / "label_audit.json").exists()


def test_json_is_plain(run):
    data = json.loads((run[1] / "label_audit.json").read_text())
    suspicions = [row["suspicion"] for row in data["annotations"]]
    assert suspicions == sorted(suspicions, reverse=True)


def test_a_sketch_ranks_what_a_training_run_told_the_tracker(tmp_path):
    """With fewer places than classes, all of which a detector gives a probability."""
    trainer = SuperLossTrainer(config(tmp_path, iters=6))
    steps = []
    trainer.annotation_tracker.register_forward_pre_hook(
        lambda module, args, kwargs: steps.append((args, kwargs)), with_kwargs=True
    )
    trainer.resume_or_load(resume=False)
    trainer.train()
    labels = torch.tensor(trainer.annotations.labels())
    sketch = CompactTracker(labels, len(trainer.annotations.classes), num_kept=5)
    for args, kwargs in steps:
        sketch(*args, **kwargs)
    exact = trainer.annotation_tracker.statistics()
    seen = exact.num_samples > 0
    found, wanted = sketch.statistics().probabilities[seen].dense(), exact.probabilities[seen]
    assert (sketch.sums[:-1, -1][seen] > 0).double().mean() > 0.5
    labels = labels[seen]
    suspicions = [suspicion(p, labels) for p in (found, wanted)]
    torch.testing.assert_close(*suspicions, atol=0.005, rtol=0)
    suspects = suspicions[1] > 0.5
    best = [p.scatter(1, labels[:, None], -1).argmax(dim=1)[suspects] for p in (found, wanted)]
    assert suspects.sum() > 10
    assert (best[0] == best[1]).double().mean() >= 0.99
