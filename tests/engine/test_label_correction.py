"""Labels that are corrected within a training run, and between rounds of it."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from helpers.detectors import build, run_ranks, small_config
from helpers.trainings import FASTER_RCNN, RETINANET, assert_equal, run, toy_split
from sl_detectron.audit.compact_tracker import CompactTracker
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.engine import SuperLossTrainer, class_estimates, setup_cfg
from sl_detectron.engine.class_estimates import forget_estimates, round_config
from sl_detectron.engine.label_correction import CorrectLabels, LabelCorrection, check_correction
from sl_detectron.model_zoo import find_config
from sl_detectron.modeling.class_targets import ClassTargets

LABELS = [0, 0, 0, 1, 1, 1, 2]


class Steps:
    """As much of a trainer as a hook sees."""

    iter, max_iter = 0, 100


def tracked():
    """Statistics of seven annotations: the second was labelled 0 and looks like a 2."""
    tracker = AnnotationTracker(len(LABELS), 3)
    looks = torch.eye(3)[[0, 2, 0, 1, 1, 1]] * 0.9 + 0.1 / 3
    tracker(torch.arange(6), torch.ones(6), torch.ones(6), looks)
    return tracker


def hook_of(tracker, targets, hard=True):
    hook = CorrectLabels(tracker, targets, start=10, period=5, hard=hard, min_probability=0.0)
    hook.trainer = Steps()
    return hook


def test_corrects_what_looks_otherwise_and_was_seen():
    targets = ClassTargets(torch.tensor(LABELS))
    hook = hook_of(tracked(), targets)
    hook.trainer.iter = 9
    hook.after_step()
    assert targets.classes[:, 0].tolist() == [0, 2, 0, 1, 1, 1, 2]
    assert targets.weights[:, 0].tolist() == [1.0] * 7


def test_corrects_by_compact_statistics():
    """As by exact ones, from a few classes of each annotation."""
    tracker = CompactTracker(torch.tensor(LABELS), 40, num_kept=3)
    looks = torch.eye(40)[[0, 2, 0, 1, 1, 1]] * 0.9 + 0.1 / 40
    tracker(torch.arange(6), torch.ones(6), torch.ones(6), looks)
    targets = ClassTargets(torch.tensor(LABELS))
    hook = hook_of(tracker, targets, hard=False)
    hook.trainer.iter = 9
    hook.after_step()
    assert targets.classes[:, 0].tolist() == [0, 2, 0, 1, 1, 1, 2]
    assert (targets.weights[:6, 0] > 0.5).all()
    assert targets.weights[6].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("iteration", "corrects"), [(8, False), (9, True), (10, False), (14, True), (99, False)]
)
def test_when(iteration, corrects):
    targets = ClassTargets(torch.tensor(LABELS))
    hook = hook_of(tracked(), targets)
    hook.trainer.iter = iteration
    hook.after_step()
    assert (targets.classes[1, 0] == 2) == corrects


def job_of_a_rank(folder):
    """Each rank has the statistics of some annotations, and sets the targets of all."""
    from detectron2.utils import comm

    tracker = tracked()
    mine = torch.zeros(len(LABELS) + 1, dtype=torch.bool)
    mine[comm.get_rank() :: comm.get_world_size()] = True
    tracker.sums[~mine] = 0
    before = tracker.sums.clone()
    targets = ClassTargets(torch.tensor(LABELS))
    hook = hook_of(tracker, targets, hard=False)
    hook.trainer.iter = 9
    hook.after_step()
    assert torch.equal(tracker.sums, before)
    torch.save(targets.state_dict(), Path(folder, f"{comm.get_rank()}.pth"))


def test_two_ranks_equal_one(tmp_path):
    run_ranks(job_of_a_rank, 2, tmp_path)
    targets = ClassTargets(torch.tensor(LABELS))
    hook = hook_of(tracked(), targets, hard=False)
    hook.trainer.iter = 9
    hook.after_step()
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert torch.equal(state["classes"], targets.classes)
        torch.testing.assert_close(state["weights"], targets.weights)


def config(**node):
    cfg = small_config("standard", superloss=True)
    for key, value in node.items():
        cfg.MODEL.SUPERLOSS.CORRECTION[key] = value
    return cfg


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ROUNDS", 0),
        ("LATER_LOSS", "hard"),
        ("START", 0.0),
        ("START", 1.5),
        ("PERIOD", 0),
        ("FORM", "both"),
        ("MIN_PROBABILITY", 1.1),
    ],
)
def test_bad_values(key, value):
    with pytest.raises(ValueError, match=rf"CORRECTION\.{key} must be .*; got {value!r}"):
        check_correction(config(**{key: value}))


def test_what_correction_needs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"CORRECTION\.TARGETS: there is no"):
        check_correction(config(TARGETS=str(tmp_path / "absent.pth")))
    cfg = config(START=0.5)
    cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS = False
    with pytest.raises(ValueError, match="TRACK_ANNOTATIONS is off"):
        check_correction(cfg)
    check_correction(config())
    cfg = config(FROM_FEATURES=True)
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="needs a pretrained backbone"):
        check_correction(cfg)
    cfg.MODEL.WEIGHTS = "weights.pth"
    check_correction(cfg)
    (tmp_path / "targets.pth").touch()
    cfg.MODEL.SUPERLOSS.CORRECTION.TARGETS = str(tmp_path / "targets.pth")
    with pytest.raises(ValueError, match=r"TARGETS and .*FROM_FEATURES both set"):
        check_correction(cfg)


@pytest.mark.parametrize("node", [{"ROUNDS": 2}, {"FROM_FEATURES": True}])
def test_one_class_leaves_nothing_to_estimate(node):
    cfg = config(**node)
    cfg.MODEL.WEIGHTS = "weights.pth"
    check_correction(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    with pytest.raises(ValueError, match="one class only"):
        check_correction(cfg)


def test_a_frozen_trunk_needs_weights_too():
    cfg = config(FROM_FEATURES=True)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.WEIGHTS = "build_frozen_trunk_fpn_backbone", ""
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = "trunk.pth"
    check_correction(cfg)
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = ""
    with pytest.raises(ValueError, match="needs a pretrained backbone"):
        check_correction(cfg)


@pytest.mark.parametrize(("key", "value"), [("ROUNDS", 2), ("FROM_FEATURES", True)])
def test_a_trainer_refuses_rounds_that_it_would_leave_out(key, value):
    with pytest.raises(ValueError, match=rf"CORRECTION.{key} is {value}: call .*train_net"):
        SuperLossTrainer(config(**{key: value}))


def test_stock_heads_are_refused_before_the_pass(tmp_path, monkeypatch):
    cfg = small_config("standard", superloss=False)
    cfg.OUTPUT_DIR = str(tmp_path)
    monkeypatch.setattr(class_estimates, "noisy_dataset_dicts", lambda cfg: pytest.fail("read"))
    with pytest.raises(ValueError, match="needs SuperLoss heads"):
        class_estimates.write_first_targets(cfg)
    assert not [*tmp_path.iterdir()]


def test_a_new_run_forgets_the_estimates_of_an_earlier_one(tmp_path):
    cfg = config(ROUNDS=3, FROM_FEATURES=True)
    cfg.OUTPUT_DIR = str(tmp_path)
    paths = [tmp_path / f"round_{number}" / "class_targets.pth" for number in range(4)]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    # What it starts from stays.
    cfg.MODEL.SUPERLOSS.CORRECTION.TARGETS = f"{tmp_path}/round_3/../round_1/class_targets.pth"
    forget_estimates(cfg)
    assert [path.exists() for path in paths] == [False, True, False, True]


def table_of(labels, fingerprint=7):
    annotations = [
        {"annotation_id": i, "category_id": c, "bbox": [0, 0, 9, 9]} for i, c in enumerate(labels)
    ]
    image = {"dataset": "d", "image_id": "1", "file_name": "1.jpg", "annotations": annotations}
    return AnnotationTable(len(labels), fingerprint, ("a", "b", "c"), {}, (json.dumps(image),))


def test_nothing_is_built_when_off():
    assert LabelCorrection().build_targets(nn.Linear(1, 1), table_of(LABELS)) is None


def test_targets_of_a_file(tmp_path):
    path = tmp_path / "class_targets.pth"
    probabilities = torch.eye(3)[[2, 0, 0, 1, 1, 1, 2]] * 0.7 + 0.1
    torch.save({"probabilities": probabilities, "fingerprint": 7}, path)
    correction = LabelCorrection(targets=str(path))
    model = build(config())
    targets = correction.build_targets(model, table_of(LABELS))
    assert targets.classes[:, 0].tolist() == [2, 0, 0, 1, 1, 1, 2]
    assert model.roi_heads.class_targets is targets
    assert model.roi_heads.box_predictor.class_targets is targets
    stricter = LabelCorrection(targets=str(path), min_probability=0.9)
    uncertain = stricter.build_targets(model, table_of(LABELS))
    assert not uncertain.weights.any()
    with pytest.raises(ValueError, match="does not match the annotations of the training sets"):
        correction.build_targets(model, table_of(LABELS, fingerprint=8))
    with pytest.raises(ValueError, match="needs SuperLoss heads"):
        correction.build_targets(nn.Linear(1, 1), table_of(LABELS))
    with pytest.raises(ValueError, match="needs a training loader"):
        correction.build_targets(model, None)


def test_correction_within_a_run_needs_statistics():
    targets = ClassTargets(torch.tensor(LABELS))
    with pytest.raises(ValueError, match=r"CORRECTION\.START corrects by the statistics"):
        LabelCorrection(start=0.5).build_hook(None, targets, max_iter=10)
    assert LabelCorrection().build_hook(None, targets, max_iter=10) is None
    assert LabelCorrection(start=0.5).build_hook(tracked(), targets, max_iter=9).start == 4


def test_configs_of_rounds():
    cfg = config(ROUNDS=3)
    cfg.OUTPUT_DIR = "out"
    first, second, last = (round_config(cfg, number) for number in (1, 2, 3))
    assert [c.OUTPUT_DIR for c in (first, second, last)] == ["out/round_1", "out/round_2", "out"]
    targets = [c.MODEL.SUPERLOSS.CORRECTION.TARGETS for c in (first, second, last)]
    assert targets == ["", "out/round_1/class_targets.pth", "out/round_2/class_targets.pth"]
    assert [c.MODEL.SUPERLOSS.CLS.FIXED_SIGMA for c in (first, second, last)] == [0.0, 1.0, 1.0]
    cfg.MODEL.SUPERLOSS.CORRECTION.LATER_LOSS = "superloss"
    assert round_config(cfg, 3).MODEL.SUPERLOSS.CLS.FIXED_SIGMA == 0.0
    assert round_config(config(), 1).OUTPUT_DIR == config().OUTPUT_DIR


@pytest.mark.parametrize("rounds", [1, 2])
def test_configs_of_rounds_after_an_estimate_from_features(rounds):
    cfg = config(ROUNDS=rounds, FROM_FEATURES=True)
    cfg.OUTPUT_DIR = "out"
    cfgs = [round_config(cfg, number) for number in range(rounds + 1)]
    folders = [f"out/round_{number}" for number in range(rounds)]
    assert [c.OUTPUT_DIR for c in cfgs] == [*folders, "out"]
    nodes = [c.MODEL.SUPERLOSS.CORRECTION for c in cfgs]
    assert not any(node.FROM_FEATURES for node in nodes)
    assert [node.TARGETS for node in nodes] == ["", *(f"{x}/class_targets.pth" for x in folders)]
    assert [c.MODEL.SUPERLOSS.CLS.FIXED_SIGMA for c in cfgs] == [0.0] + [1.0] * rounds


@pytest.fixture(scope="module")
def few_images(toy_env):
    """Options: twelve images of the toy set to train on."""
    dozen = toy_split(toy_env, "dozen", "train", 12)
    return ["DATASETS.CUSTOM_VOC", [dozen], "DATASETS.TRAIN", "('dozen',)", "SOLVER.MAX_ITER", 3]


@pytest.mark.parametrize(("detector", "ranks"), [(FASTER_RCNN, 1), (RETINANET, 2)])
def test_two_rounds(toy_env, tmp_path, few_images, detector, ranks):
    opts = [*few_images, "MODEL.SUPERLOSS.CORRECTION.ROUNDS", 2]
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    code, printed = run(toy_env, detector, whole, *opts, num_gpus=ranks, fork=1)
    assert code == 0, printed
    # Each round logs once, and to its folder.
    begins = "Starting training from iteration 0"
    assert printed.count(begins) == 2
    logs = [(folder / "log.txt").read_text() for folder in (whole / "round_1", whole)]
    assert [log.count(begins) for log in logs] == [1, 1]
    for folder in (whole / "round_1", whole):
        for name in ("model_final.pth", "label_audit.json", "annotations.jsonl", "config.yaml"):
            assert (folder / name).is_file(), (folder, name)
    state = torch.load(whole / "round_1" / "class_targets.pth", weights_only=True)
    table = AnnotationTable.read(whole)
    assert state["fingerprint"] == table.fingerprint
    assert state["probabilities"].shape == (table.num_annotations, len(TOY_CLASS_NAMES))
    final = torch.load(whole / "model_final.pth", weights_only=True)
    assert torch.equal(
        final["class_targets"]["classes"][:, 0], state["probabilities"].argmax(dim=1)
    )
    # The second round alone, as after an interruption in it.
    rest.mkdir()
    (whole / "round_1").rename(rest / "round_1")
    code, printed = run(toy_env, detector, rest, *opts, num_gpus=ranks, fork=1, resume=True)
    assert code == 0, printed
    lines = (rest / "curve.jsonl").read_text().splitlines()
    assert lines == (whole / "curve.jsonl").read_text().splitlines()[-len(lines) :]
    assert len(lines) == 3
    assert_equal(torch.load(rest / "model_final.pth", weights_only=True), final)


def test_a_round_without_statistics_is_refused_before_it_trains(toy_env, tmp_path, few_images):
    opts = ["MODEL.SUPERLOSS.CORRECTION.ROUNDS", 2, "MODEL.SUPERLOSS.CLS.ENABLED", False]
    code, printed = run(toy_env, FASTER_RCNN, tmp_path / "out", *few_images, *opts)
    assert code == 2, printed
    assert "ROUNDS corrects by the statistics of the annotations" in printed
    assert "Starting training" not in printed


def test_a_round_of_its_own_equals_a_run_on_its_targets(toy_env, tmp_path, few_images):
    code, printed = run(
        *(toy_env, FASTER_RCNN, tmp_path / "a", *few_images),
        *("MODEL.SUPERLOSS.CORRECTION.ROUNDS", 2),
    )
    assert code == 0, printed
    targets = tmp_path / "a" / "round_1" / "class_targets.pth"
    code, printed = run(
        *(toy_env, FASTER_RCNN, tmp_path / "b", *few_images),
        *("MODEL.SUPERLOSS.CORRECTION.TARGETS", targets),
        *("MODEL.SUPERLOSS.CLS.FIXED_SIGMA", 1.0),
    )
    assert code == 0, printed
    final = [torch.load(tmp_path / x / "model_final.pth", weights_only=True) for x in "ab"]
    assert_equal(*(state["model"] for state in final))


@pytest.mark.parametrize("detector", [FASTER_RCNN, RETINANET])
def test_one_round_on_an_estimate_from_features(toy_env, tmp_path, few_images, detector):
    weights = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save({"model": build_model(setup_cfg(find_config(detector), [])).state_dict()}, weights)
    opts = [*few_images, "MODEL.WEIGHTS", weights, "MODEL.SUPERLOSS.CORRECTION.FROM_FEATURES", True]
    for ranks in (1, 2):
        out = tmp_path / f"ranks_{ranks}"
        code, printed = run(toy_env, detector, out, *opts, num_gpus=ranks, fork=1)
        assert code == 0, printed
        assert "get another class" in (out / "round_0" / "log.txt").read_text()
    one, two = (
        torch.load(tmp_path / f"ranks_{n}" / "round_0" / "class_targets.pth", weights_only=True)
        for n in (1, 2)
    )
    assert_equal(one, two)
    table, first = (AnnotationTable.read(tmp_path / "ranks_1" / x) for x in ("", "round_0"))
    assert table.fingerprint == first.fingerprint == one["fingerprint"]
    final = torch.load(tmp_path / "ranks_1" / "model_final.pth", weights_only=True)
    assert torch.equal(final["class_targets"]["classes"][:, 0], one["probabilities"].argmax(dim=1))
    # A run that was stopped in its only round of training takes up the estimate.
    rest = tmp_path / "rest"
    rest.mkdir()
    (tmp_path / "ranks_1" / "round_0").rename(rest / "round_0")
    code, printed = run(toy_env, detector, rest, *opts, fork=1, resume=True)
    assert code == 0, printed
    assert "get another class" not in printed
    assert_equal(torch.load(rest / "model_final.pth", weights_only=True), final)
