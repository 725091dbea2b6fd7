"""The keys of DATASETS.LABEL_NOISE: each reaches its noise, and a bad value is named."""

import math
from dataclasses import dataclass

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from sl_detectron.config import add_superloss_config
from sl_detectron.label_noise import (
    NOISE_REGISTRY,
    AsymmetricNoise,
    BoxJitter,
    MissingAnnotations,
    Noise,
    SpuriousBoxes,
    SymmetricNoise,
)
from sl_detectron.label_noise.config import check_label_noise, has_label_noise, noises_from_config
from sl_detectron.label_noise.loader import build_noisy_train_loader

CLASSES = ["cat", "dog", "cow", "owl"]
NAME = "noise_config_test"


@pytest.fixture
def cfg():
    MetadataCatalog.get(NAME).thing_classes = CLASSES
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    yield cfg
    MetadataCatalog.remove(NAME)


def set_noise(cfg, **values):
    for key, value in values.items():
        node, _, leaf = key.rpartition("__")
        setattr(cfg.DATASETS.LABEL_NOISE[node] if node else cfg.DATASETS.LABEL_NOISE, leaf, value)


def test_every_key_reaches_its_noise(cfg):
    set_noise(cfg, RATE=0.4, SEED=1, MODE="exact", TYPE="symmetric_inclusive")
    set_noise(cfg, BOX_JITTER__RATE=0.3, BOX_JITTER__MAGNITUDE=0.2, BOX_JITTER__SEED=2)
    set_noise(cfg, MISSING__RATE=0.2, MISSING__SEED=3, SPURIOUS__RATE=0.1, SPURIOUS__SEED=4)
    assert noises_from_config(cfg) == (
        SymmetricNoise(rate=0.4, seed=1, mode="exact", include_true=True),
        BoxJitter(rate=0.3, seed=2, mode="exact", magnitude=0.2),
        MissingAnnotations(rate=0.2, seed=3, mode="exact"),
        SpuriousBoxes(rate=0.1, seed=4, mode="exact"),
    )


def test_defaults_are_no_noise(cfg):
    assert noises_from_config(cfg) == ()


def test_confusion_map_from_yaml(cfg, tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("cat: dog\ndog: [cat, cow]\ncow: {owl: 0.25, cat: 0.75}\n")
    set_noise(cfg, RATE=0.4, TYPE="asymmetric", CONFUSION=str(path))
    confusion = {0: {1: 1.0}, 1: {0: 0.5, 2: 0.5}, 2: {3: 0.25, 0: 0.75}}
    assert noises_from_config(cfg) == (AsymmetricNoise(rate=0.4, confusion=confusion),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat: wolf", r"CONFUSION .*\['wolf'\]; the classes are"),
        ("cat: {dog: 0.5}", "sum to 1"),
        ("cat: {dog: much}", "map.yaml: cat must be"),
        ("[cat, dog]", "must hold"),
        ("cat: [", "not valid YAML"),
    ],
)
def test_bad_confusion_maps_are_refused(cfg, tmp_path, content, message):
    path = tmp_path / "map.yaml"
    path.write_text(content)
    set_noise(cfg, RATE=0.4, TYPE="asymmetric", CONFUSION=str(path))
    with pytest.raises(ValueError, match=message):
        noises_from_config(cfg)


def test_missing_confusion_map(cfg):
    set_noise(cfg, RATE=0.4, TYPE="asymmetric", CONFUSION="/nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.yaml"):
        noises_from_config(cfg)


def test_vocs_map_does_not_fit_other_classes(cfg):
    set_noise(cfg, RATE=0.4, TYPE="asymmetric")
    with pytest.raises(ValueError, match=r"VOC's confusable pairs.*aeroplane"):
        noises_from_config(cfg)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"TYPE": "pair"}, r"LABEL_NOISE.TYPE must be one of .*symmetric.*; got 'pair'"),
        ({"MODE": "often"}, r"LABEL_NOISE.MODE must be one of .*exact.*; got 'often'"),
        ({"RATE": 1.5}, r"LABEL_NOISE.RATE must be in \[0, 1\]; got 1.5"),
        ({"RATE": math.nan}, r"LABEL_NOISE.RATE must be in \[0, 1\]; got nan"),
        ({"MISSING__RATE": -0.1}, r"LABEL_NOISE.MISSING.RATE must be in \[0, 1\]; got -0.1"),
        ({"BOX_JITTER__MAGNITUDE": 0.5}, r"BOX_JITTER.MAGNITUDE must be in \(0, 0.5\); got 0.5"),
        (
            {"CONFUSION": "map.yaml"},
            "CONFUSION is 'map.yaml', which applies only to TYPE 'asymmetric'",
        ),
        ({"MANIFEST": "m.jsonl", "RATE": 0.4}, "MANIFEST replaces the rates.*RATE is 0.4"),
        ({"MANIFEST": "m.jsonl", "SPURIOUS__RATE": 0.4}, "SPURIOUS.RATE is 0.4"),
    ],
)
def test_bad_keys_are_named(cfg, values, message):
    set_noise(cfg, **values)
    with pytest.raises(ValueError, match=message):
        check_label_noise(cfg)
    with pytest.raises(ValueError, match=message):
        build_noisy_train_loader(cfg)


@dataclass(frozen=True, kw_only=True)
class Shift(Noise):
    """A noise with an argument, in a node of its own."""

    distance: float = 0.0

    def corrupt(self, annotation, draws, size, num_classes):
        x, y, *rest = annotation["bbox"]
        return {**annotation, "bbox": [x + self.distance, y, *rest]}


def test_a_noise_of_another_project_with_a_node(cfg):
    NOISE_REGISTRY.register("my_shift")(Shift)
    try:
        cfg.DATASETS.LABEL_NOISE.MY_SHIFT = CfgNode({"RATE": 0.5, "SEED": 7, "DISTANCE": 2.0})
        assert noises_from_config(cfg) == (Shift(rate=0.5, seed=7, distance=2.0),)
        set_noise(cfg, MY_SHIFT__RATE=2.0)
        with pytest.raises(ValueError, match=r"LABEL_NOISE.MY_SHIFT.RATE must be in \[0, 1\]"):
            check_label_noise(cfg)
        set_noise(cfg, MY_SHIFT__RATE=0.5, TYPE="my_shift")
        with pytest.raises(ValueError, match=r"LABEL_NOISE\.TYPE must be one of"):
            check_label_noise(cfg)
    finally:
        NOISE_REGISTRY._obj_map.pop("my_shift")
    assert Shift.kind == "Shift"


def test_a_manifest_must_exist(cfg, tmp_path):
    set_noise(cfg, MANIFEST=str(tmp_path / "m.jsonl"))
    for check in (check_label_noise, noises_from_config, build_noisy_train_loader):
        with pytest.raises(FileNotFoundError, match=r"LABEL_NOISE.MANIFEST is '.*m\.jsonl'"):
            check(cfg)
    (tmp_path / "m.jsonl").touch()
    check_label_noise(cfg)


def test_the_check_needs_no_data_set(cfg):
    cfg.DATASETS.TRAIN = ()
    set_noise(cfg, RATE=0.4, TYPE="asymmetric")
    check_label_noise(cfg)


def test_a_node_whose_noise_is_not_registered_is_named(cfg):
    cfg.DATASETS.LABEL_NOISE.GLARE = CfgNode({"RATE": 0.1, "SEED": 0})
    with pytest.raises(ValueError, match=r"LABEL_NOISE\.GLARE: no noise is registered as 'glare'"):
        check_label_noise(cfg)
    # An audit of its run asks only whether there is any.
    assert has_label_noise(cfg)
