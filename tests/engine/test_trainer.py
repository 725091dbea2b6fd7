"""The trainer in other people's projects: their datasets, hooks, checkpoints and configs."""

import logging

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import BoxMode
from PIL import Image

from helpers.detectors import build, make_batch, run_losses, small_config
from sl_detectron.checkpoint import SafeCheckpointer
from sl_detectron.engine import SuperLossTrainer, setup_cfg
from sl_detectron.engine.resume import SaveAndStop, resume_or_load
from sl_detectron.losses import DataParams, SuperLoss
from sl_detectron.modeling import SuperLossTerm

CLASSES = ["cat", "dog"]
NAMES = ("plain_a", "plain_b")


@pytest.fixture(autouse=True)
def heard_by_caplog(caplog):
    logger = logging.getLogger("sl_detectron")
    logger.addHandler(caplog.handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)
    logger.removeHandler(caplog.handler)


@pytest.fixture
def records(tmp_path):
    """As tutorials register them: a function that returns records, and a class list."""
    made = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.full((96, 128, 3), 40 * i, dtype=np.uint8)).save(path)
        boxes = [[10.0, 10.0, 60.0, 60.0], [50.0, 20.0, 120.0, 90.0]]
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": (i + j) % 2}
            for j, box in enumerate(boxes)
        ]
        size = {"height": 96, "width": 128}
        made.append({"file_name": str(path), "image_id": i, **size, "annotations": annotations})
    for name in NAMES:
        DatasetCatalog.register(name, lambda: [dict(record) for record in made])
        MetadataCatalog.get(name).thing_classes = CLASSES
    yield made
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(tmp_path, records):
    cfg = small_config("standard", superloss=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = NAMES[:1], ()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 2, ()
    cfg.DATALOADER.NUM_WORKERS, cfg.OUTPUT_DIR = 0, str(tmp_path / "out")
    cfg.DATASETS.LABEL_NOISE.RATE = 0.0
    return cfg


def test_the_last_hooks_are_those_of_the_stock_trainer(cfg):
    """Projects put hooks by their places: at -1 before the writer, or in the place of ret[-3]."""
    ours, stock = SuperLossTrainer(cfg).build_hooks(), DefaultTrainer(cfg).build_hooks()
    kinds = [hooks.PeriodicCheckpointer, hooks.EvalHook, hooks.PeriodicWriter]
    for built in (ours, stock):
        assert [type(hook) for hook in built[-3:]] == kinds
    order = [type(hook) for hook in ours]
    # What a checkpoint holds comes before it, and a signal does not wait for an evaluation.
    assert order.index(hooks.LRScheduler) < order.index(SaveAndStop)
    assert order.index(SaveAndStop) < order.index(hooks.PeriodicCheckpointer)


class ValidationLoss(HookBase):
    """The usual one: a forward in training mode under no_grad, logged."""

    def after_step(self):
        with torch.no_grad():
            losses = self.trainer.model(next(iter(self.trainer.data_loader)))
        self.trainer.storage.put_scalar("validation_loss", float(sum(losses.values())))


class WithValidation(SuperLossTrainer):
    def build_hooks(self):
        built = super().build_hooks()
        built.insert(-1, ValidationLoss())
        return built


def test_a_validation_loss_is_written_and_not_observed(cfg, tmp_path):
    cfg.SOLVER.MAX_ITER = 3
    trainer = WithValidation(cfg)
    samples = []
    for module in trainer.model.modules():
        if isinstance(module, SuperLossTerm):
            module.observers.append(lambda ids, *_: samples.append(len(ids)))
    trainer.train()
    assert '"validation_loss"' in (tmp_path / "out" / "metrics.json").read_text()
    tracker = trainer.annotation_tracker
    assert tracker.step == len(samples) == 3
    assert tracker.statistics().num_samples.sum() == sum(samples)


@pytest.mark.parametrize("path", ["yaml", "attribute"])
def test_a_missing_comma(cfg, path, records):
    if path == "yaml":
        with pytest.raises(ValueError, match=r"DATASETS\.TRAIN takes a tuple such as \('name',\)"):
            setup_cfg("", ["DATASETS.TRAIN", "plain_a"])
        return
    cfg.DATASETS.TRAIN = "plain_a"
    cfg.DATASETS.TEST = "plain_b"
    trainer = SuperLossTrainer(cfg)
    assert trainer.cfg.DATASETS.TRAIN == ("plain_a",)
    assert trainer.annotations.num_annotations == 8
    assert "bbox" in trainer.test(cfg, trainer.model)


def test_a_set_named_twice_is_seen_twice_and_ranked_once(cfg):
    """Oversampling: the copies are of the same annotations, under the same ids."""
    cfg.DATASETS.TRAIN = ("plain_a", "plain_b", "plain_a")
    cfg.DATASETS.LABEL_NOISE.RATE = 0.5
    trainer = SuperLossTrainer(cfg)
    assert trainer.data_loader.num_images == 12
    assert trainer.annotations.num_annotations == 16
    ids = [a["annotation_id"] for r in trainer.annotations.records() for a in r["annotations"]]
    assert ids == [*range(16)]
    seen = {}
    for record in trainer.data_loader._records:
        key = (record["annotations"][0]["annotation_id"], record["file_name"])
        classes = tuple(a["category_id"] for a in record["annotations"])
        seen.setdefault(key, []).append(classes)
    assert sorted(map(len, seen.values())) == [1] * 4 + [2] * 4
    assert all(len({*classes}) == 1 for classes in seen.values())
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["plain_b", 3.0]]
    factors = SuperLossTrainer(cfg).data_loader.sampler._int_part
    assert factors.tolist() == [1.0] * 4 + [3.0] * 4 + [1.0] * 4


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["a/0.png", "a/1.png", "b/2.png", "b/3.png"], ["0.png", "1.png", "2.png", "3.png"]),
        (["a/0.png", "b/0.png", "c.png", "d.png"], [f"record {i}" for i in range(4)]),
    ],
)
def test_records_without_image_id_train(cfg, records, tmp_path, files, ids):
    for record, file in zip(records, files):
        target = tmp_path / file
        target.parent.mkdir(exist_ok=True)
        Image.open(record["file_name"]).save(target)
        record["file_name"] = str(target)
        del record["image_id"]
    cfg.DATASETS.LABEL_NOISE.RATE = 1.0
    trainer = SuperLossTrainer(cfg)
    trainer.train()
    assert [r["image_id"] for r in trainer.annotations.records()] == ids
    assert trainer.annotation_tracker.statistics().num_samples.sum() > 0
    assert "image_id" not in records[0]


def test_a_test_set_of_records_alone_is_evaluated_as_coco(cfg, records):
    crowd = [{**records[0]["annotations"][0], "iscrowd": 1}]
    empty = {**records[1], "annotations": []}
    DatasetCatalog["plain_b"] = lambda: [{**records[0], "annotations": crowd}, empty, *records[2:]]
    cfg.DATASETS.TEST = NAMES[1:]
    before = set(DatasetCatalog), set(MetadataCatalog)
    results = SuperLossTrainer(cfg).train()
    assert {"AP", "AP50", "AP75", "AP-cat"} <= results["bbox"].keys()
    assert (set(DatasetCatalog), set(MetadataCatalog)) == before


@pytest.mark.parametrize("flaw", ["classes", "image_id", "annotations", "unknown"])
def test_a_test_set_that_cannot_be_evaluated_stops_before_training(cfg, records, flaw):
    cfg.DATASETS.TEST = NAMES[1:]
    if flaw == "classes":
        del MetadataCatalog.get("plain_b").__dict__["thing_classes"]
        message = r"'plain_b' has no class list.*thing_classes.*register_voc.*leave it out of DATAS"
    elif flaw != "unknown":
        flawed = {k: v for k, v in records[2].items() if k != flaw}
        DatasetCatalog["plain_b"] = lambda: [*records[:2], flawed]
        message = rf"test set 'plain_b', record 2 .*2\.png.*need \['{flaw}'\]"
    else:
        cfg.DATASETS.TEST = ("plain_c",)
        message = "'plain_c'"
    with pytest.raises(ValueError, match=message):
        SuperLossTrainer(cfg)

    class WithEvaluator(SuperLossTrainer):
        @classmethod
        def build_evaluator(cls, cfg, name):
            return DatasetEvaluators([])

    if flaw != "unknown":
        WithEvaluator(cfg)  # a custom evaluator is another matter


def test_a_config_without_our_keys_names_the_call():
    with pytest.raises(KeyError, match="add_superloss_config"):
        SuperLossTrainer(get_cfg())


def test_one_class_has_no_log_of_one(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SUPERLOSS.CLS.TAU = 1, "logC"
    build(cfg)
    cfg.MODEL.SUPERLOSS.CLS.NUM_OUTCOMES = "K"
    with pytest.raises(ValueError, match=r"CLS\.NUM_OUTCOMES is 'K' .*'K\+1'"):
        build(cfg)


def trained(cfg, folder):
    """A detector after a step, and its checkpoint."""
    model = build(cfg)
    run_losses(model, make_batch())
    SafeCheckpointer(model, str(folder)).save("old")
    return model, folder / "old.pth"


def running(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "superloss" in k}


@pytest.mark.parametrize("detector", ["cascade", "retinanet"])
def test_weights_of_another_training_leave_its_tau_behind(tmp_path, caplog, detector):
    """Fine-tuning: an average over 10^8 losses of another task would never move again."""
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.TAU, cfg.MODEL.SUPERLOSS.WARMUP_ITERS = "Avg", 3
    old, path = trained(cfg, tmp_path)
    new = build(cfg, seed=1)
    fresh = running(new)
    assert resume_or_load(SafeCheckpointer(new, str(tmp_path)), str(path), resume=False) is False
    assert all(torch.equal(value, fresh[key]) for key, value in running(new).items())
    assert "is reset here" in caplog.text
    assert str(path) in caplog.text
    old_state, new_state = old.state_dict(), new.state_dict()
    assert old_state.keys() == new_state.keys()
    weights = old_state.keys() - fresh.keys()
    assert all(torch.equal(old_state[key], new_state[key]) for key in weights)
    assert any(not torch.equal(old_state[key], value) for key, value in fresh.items())
    # A resume goes on with it.
    checkpointer = SafeCheckpointer(new, str(tmp_path))
    checkpointer.tag_last_checkpoint(path.name)
    assert resume_or_load(checkpointer, "", resume=True) is True
    assert all(torch.equal(value, old_state[key]) for key, value in running(new).items())


def test_learned_temperatures_stay_behind_too(tmp_path):
    cfg = small_config("standard", superloss=True)
    node = cfg.MODEL.SUPERLOSS.CLS
    node.ENABLED, node.LOSS, cfg.MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS = (
        False,
        "data_params",
        9,
    )
    find = lambda model: next(m for m in model.modules() if isinstance(m, DataParams))  # noqa: E731
    old, new = build(cfg), build(cfg)
    with torch.no_grad():
        next(find(old).parameters()).add_(1.0)
    SafeCheckpointer(old, str(tmp_path)).save("old")
    before = next(find(new).parameters()).clone()
    resume_or_load(SafeCheckpointer(new, str(tmp_path)), str(tmp_path / "old.pth"), resume=False)
    assert torch.equal(next(find(new).parameters()), before)


def test_nothing_is_said_of_a_stock_checkpoint(tmp_path, caplog):
    _, path = trained(small_config("retinanet", superloss=False), tmp_path)
    model = build(small_config("retinanet", superloss=True))
    resume_or_load(SafeCheckpointer(model, str(tmp_path)), str(path), resume=False)
    assert "is reset here" not in caplog.text


def test_the_trainer_and_a_resume_of_it(cfg, tmp_path):
    """From weights: tau of this run alone. Resumed: all of it, and the next iteration."""
    first = SuperLossTrainer(cfg)
    first.train()
    term = lambda t: next(m for m in t.model.modules() if isinstance(m, SuperLoss))  # noqa: E731
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    resumed = SuperLossTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert term(resumed).tau == term(first).tau
    cfg.OUTPUT_DIR = str(tmp_path / "new")
    for resume in (False, True):  # there is nothing to resume
        new = SuperLossTrainer(cfg)
        new.resume_or_load(resume=resume)
        assert new.start_iter == 0
        assert term(new).tau.isnan()
        weight = "backbone.fpn_output2.weight"
        assert torch.equal(new.model.state_dict()[weight], first.model.state_dict()[weight])


def test_a_stock_trainer_leaves_the_tau_of_another_training_behind(cfg, tmp_path, caplog):
    """The README's custom trainer: fine-tuned, tau is of this run alone; resumed, of all of it."""
    cfg.MODEL.SUPERLOSS.CLS.TAU, cfg.MODEL.SUPERLOSS.WARMUP_ITERS = "Avg", 5
    DefaultTrainer(cfg).train()
    path = tmp_path / "out" / "model_final.pth"
    content = torch.load(path, weights_only=True)
    prefix = "roi_heads.box_predictor.superloss_cls."
    mean, count, steps = (
        f"{prefix}{name}"
        for name in ("superloss.threshold.mean", "superloss.threshold.count", "num_steps")
    )
    assert content["model"][steps] == 2
    content["model"][mean].fill_(0.12)
    content["model"][count].fill_(10**8)
    torch.save(content, path)
    tuned = cfg.clone()
    tuned.MODEL.WEIGHTS, tuned.OUTPUT_DIR = str(path), str(tmp_path / "tuned")
    trainer = DefaultTrainer(tuned)
    trainer.resume_or_load(resume=False)
    caplog.clear()
    trainer.train()
    state = trainer.model.state_dict()
    assert 0 < state[count] < 10**4
    assert state[mean] > 0.5
    assert state[steps] == 2
    assert "'cls' were loaded, but this training run starts from its beginning" in caplog.text
    cfg.SOLVER.MAX_ITER = 4
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=True)
    caplog.clear()
    trainer.train()
    state = trainer.model.state_dict()
    assert state[count] > 10**8
    assert state[mean] == pytest.approx(0.12, abs=1e-3)
    assert state[steps] == 4
    assert "were loaded, but" not in caplog.text


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_a_stock_checkpoint_loads_strictly(detector, caplog):
    """tau stays as it is, which the log says; one of half a SuperLoss is still refused."""
    stock = build(small_config(detector, superloss=False), seed=1)
    cfg = small_config(detector, superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.TAU, cfg.MODEL.SUPERLOSS.WARMUP_ITERS = "ExpAvg", 2
    ours = build(cfg)
    run_losses(ours, make_batch())
    tau = running(ours)
    assert not any(ours.load_state_dict(stock.state_dict()))
    assert all(torch.equal(value, tau[key]) for key, value in running(ours).items())
    assert "have no tau or other state of" in caplog.text
    half = ours.state_dict()
    half.pop(next(iter(tau)))
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict(half)


def count_numbers(state):
    """How many numbers the tensors of a checkpoint hold."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    parts = state.values() if isinstance(state, dict) else state
    return sum(map(count_numbers, parts)) if isinstance(state, dict | list | tuple) else 0


def test_a_checkpoint_holds_what_resuming_needs_and_no_more(cfg, tmp_path):
    """Beside the stock trainer's: tau, the annotation statistics and the random states."""
    SuperLossTrainer(cfg).train()
    ours = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    cfg.OUTPUT_DIR, cfg.MODEL.ROI_HEADS.NAME = str(tmp_path / "stock"), "StandardROIHeads"
    DefaultTrainer(cfg).train()
    stock = torch.load(tmp_path / "stock" / "model_final.pth", weights_only=True)
    assert ours.keys() - stock.keys() == {"annotation_tracker"}
    rows, columns = 8 + 1, 4 + len(CLASSES)
    # And the sums of the probability of an object and of the box loss.
    tracker = rows * (columns + 3 + 1 + 2) + 2
    states = torch.get_rng_state().numel() + len(np.random.get_state()[1])  # noqa: NPY002
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state().numel()
    assert count_numbers(ours["annotation_tracker"]) == tracker
    assert count_numbers(ours) == count_numbers(stock) + 2 + tracker + states
