"""From a config to the training loader: keys, manifests, filters, samplers."""

import json
import logging
from collections import Counter

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.structures import BoxMode

from sl_detectron.config import add_superloss_config
from sl_detectron.data.formats.manifest import manifest_lines
from sl_detectron.label_noise import inject
from sl_detectron.label_noise.config import noises_from_config
from sl_detectron.label_noise.loader import build_noisy_train_loader
from sl_detectron.label_noise.training_sets import noisy_dataset_dicts

CLASSES = ["cat", "dog", "cow", "owl"]
SETS = {"noise_test_a": 30, "noise_test_b": 20}


def make_records(num_images):
    return [
        {
            "file_name": f"{i}.jpg",
            "image_id": i,
            "height": 90,
            "width": 100,
            "annotations": [
                # Class 3 is rare, so that its images are repeated.
                {
                    "category_id": 3 if i % 10 == 0 else (i + j) % 3,
                    "bbox": [3.0 * j, 2.0, 3.0 * j + 40, 70.0],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
                for j in range(i % 3)
            ],
        }
        for i in range(num_images)
    ]


@pytest.fixture(autouse=True)
def sets():
    for name, size in SETS.items():
        DatasetCatalog.register(name, lambda size=size: make_records(size))
        MetadataCatalog.get(name).thing_classes = CLASSES
    yield
    for name in SETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.DATASETS.TRAIN = tuple(SETS)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


def set_noise(cfg, **values):
    for key, value in values.items():
        node, _, leaf = key.rpartition("__")
        setattr(cfg.DATASETS.LABEL_NOISE[node] if node else cfg.DATASETS.LABEL_NOISE, leaf, value)


def without_ids(records):
    """Records as they were before their annotations were numbered."""
    return [
        {**r, "annotations": [{k: v for k, v in a.items() if k != "annotation_id"} for a in annos]}
        for r in records
        for annos in [r["annotations"]]
    ]


def test_without_noise_the_sets_are_detectron2s(cfg):
    records = [r for rs in noisy_dataset_dicts(cfg).values() for r in without_ids(rs)]
    assert records == get_detection_dataset_dicts(list(SETS))


def test_noise_is_injected_set_by_set_before_the_filter(cfg, caplog):
    set_noise(cfg, RATE=0.4, MISSING__RATE=0.5)
    with caplog.at_level(logging.INFO, logger="sl_detectron.label_noise.training_sets"):
        sets = noisy_dataset_dicts(cfg)
    for name, size in SETS.items():
        records = make_records(size)
        noisy, changes = inject(records, noises_from_config(cfg), len(CLASSES), name)
        kept = [record for record in noisy if record["annotations"]]
        assert without_ids(sets[name]) == kept
        assert len(sets[name]) < sum(bool(record["annotations"]) for record in records)
        wrong = sum(change.what == "label" for change in changes)
        total = sum(len(record["annotations"]) for record in records)
        message = f"noise in {name}: {100 * wrong / total:.2f} % of {total} annotations"
        assert message in caplog.text


def test_manifest_gives_the_same_noise_as_the_rate(cfg, tmp_path):
    set_noise(cfg, RATE=0.4, BOX_JITTER__RATE=0.3, MISSING__RATE=0.2, SPURIOUS__RATE=0.2)
    by_rate = noisy_dataset_dicts(cfg)
    with open(tmp_path / "manifest.jsonl", "w") as f:
        for name, size in SETS.items():
            noises = noises_from_config(cfg)
            _, changes = inject(make_records(size), noises, len(CLASSES), name)
            for line in manifest_lines(changes, CLASSES, name):
                f.write(json.dumps(line) + "\n")
    set_noise(cfg, RATE=0.0, BOX_JITTER__RATE=0.0, MISSING__RATE=0.0, SPURIOUS__RATE=0.0)
    set_noise(cfg, MANIFEST=str(tmp_path / "manifest.jsonl"))
    by_manifest = noisy_dataset_dicts(cfg)
    for name in SETS:
        pairs = zip(by_rate[name], by_manifest[name], strict=True)
        assert all(a["annotations"] == b["annotations"] for a, b in pairs)


LINE = {
    "dataset": "noise_test_a",
    "image_id": 1,
    "annotation": 0,
    "what": "label",
    "old": "dog",
    "new": "cat",
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"dataset": "a"}', "line 1: a change needs the keys.*image_id"),
        (json.dumps({**LINE, "what": "colour"}), "line 1: what must be one of"),
        (json.dumps({**LINE, "dataset": "voc"}), r"for the datasets \['voc'\], which are not in"),
        (json.dumps({**LINE, "new": "wolf"}), "'wolf' is not one of"),
        (json.dumps({**LINE, "old": "cow"}), "not the same set"),
        (json.dumps({**LINE, "image_id": 99}), "no image 99"),
    ],
)
def test_bad_manifests_are_refused(cfg, tmp_path, text, message):
    path = tmp_path / "manifest.jsonl"
    path.write_text(text + "\n")
    set_noise(cfg, MANIFEST=str(path))
    with pytest.raises(ValueError, match=message):
        build_noisy_train_loader(cfg)


def test_missing_manifest(cfg):
    set_noise(cfg, MANIFEST="/nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.jsonl"):
        build_noisy_train_loader(cfg)


def sampler_of(loader):
    """The sampler of our loader, or of detectron2's under its aspect ratio grouping."""
    return loader.sampler if hasattr(loader, "sampler") else loader.dataset.dataset.sampler


def noisy_records(cfg):
    return [record for records in noisy_dataset_dicts(cfg).values() for record in records]


def repeat_factors(records):
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.4)


def full_factors(sampler):
    return sampler._int_part + sampler._frac_part


def test_repeat_factors_are_those_of_the_noisy_labels(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    clean = full_factors(sampler_of(build_noisy_train_loader(cfg)))
    set_noise(cfg, RATE=0.9)
    noisy = full_factors(sampler_of(build_noisy_train_loader(cfg)))
    torch.testing.assert_close(noisy, repeat_factors(noisy_records(cfg)))
    assert not torch.equal(noisy, clean)


def test_weighted_samplers_see_the_noisy_sets(cfg):
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["noise_test_b", 3.0]]
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.4
    set_noise(cfg, RATE=0.9, MISSING__RATE=0.5)
    first, second = noisy_dataset_dicts(cfg).values()
    weights = torch.tensor([1.0] * len(first) + [3.0] * len(second))
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
    torch.testing.assert_close(full_factors(sampler_of(build_noisy_train_loader(cfg))), weights)
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedCategoryTrainingSampler"
    factors = weights * torch.cat([repeat_factors(first), repeat_factors(second)])
    expected = factors / factors.min()
    torch.testing.assert_close(full_factors(sampler_of(build_noisy_train_loader(cfg))), expected)


def test_weighted_samplers_equal_detectron2s_without_noise(cfg):
    from detectron2.data import build_detection_train_loader

    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["noise_test_b", 3.0]]
    for kind in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        cfg.DATALOADER.SAMPLER_TRAIN = kind
        stock, ours = build_detection_train_loader(cfg), build_noisy_train_loader(cfg)
        assert torch.equal(full_factors(sampler_of(stock)), full_factors(sampler_of(ours)))


def test_a_mapper_sees_noisy_records(cfg):
    set_noise(cfg, RATE=1.0)
    loader = build_noisy_train_loader(cfg, mapper=lambda record: record)
    assert isinstance(sampler_of(loader), TrainingSampler)
    expected = {json.dumps(record, default=str) for record in noisy_records(cfg)}
    batches = iter(loader)
    for _ in range(10):
        for record in next(batches):
            assert json.dumps(record, default=str) in expected


def test_histogram_shows_the_noisy_labels(cfg, caplog, monkeypatch):
    # detectron2 logs equal histograms once.
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    set_noise(cfg, RATE=1.0)
    cfg.DATASETS.TRAIN = ("noise_test_a",)
    with caplog.at_level(logging.INFO, logger="detectron2.data.build"):
        records = noisy_records(cfg)
    counts = Counter(a["category_id"] for r in records for a in r["annotations"])
    histogram = "".join(r.getMessage() for r in caplog.records if "Distribution" in r.getMessage())
    for index, name in enumerate(CLASSES):
        assert f" {name} " in histogram
        assert f" {counts[index]} " in histogram


def test_a_set_without_class_list_cannot_have_noise(cfg):
    MetadataCatalog.remove("noise_test_b")
    set_noise(cfg, RATE=0.1)
    with pytest.raises(ValueError, match=r"'noise_test_b' of DATASETS.TRAIN has no class list"):
        build_noisy_train_loader(cfg)


def test_sets_must_share_their_class_list(cfg):
    MetadataCatalog.remove("noise_test_b")
    MetadataCatalog.get("noise_test_b").thing_classes = CLASSES[::-1]
    with pytest.raises(ValueError, match="different class lists"):
        build_noisy_train_loader(cfg)


def test_nothing_left_to_train_on(cfg):
    set_noise(cfg, MISSING__RATE=1.0)
    with pytest.raises(ValueError, match="'noise_test_a' has no image left"):
        build_noisy_train_loader(cfg)
