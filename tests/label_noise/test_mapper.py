"""NoisyLabelMapper: the same noise as the dataset's, on any mapper, in any worker."""

import copy

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

from sl_detectron.config import add_superloss_config
from sl_detectron.label_noise import NoisyLabelMapper, SymmetricNoise, inject

NUM_CLASSES = 5
NAME = "mapper_test_set"


@pytest.fixture
def records(tmp_path):
    """Twelve small images of three boxes each, registered as a training set."""
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "image.png")
    records = [
        {
            "file_name": str(tmp_path / "image.png"),
            "image_id": f"{i}",
            "height": 40,
            "width": 50,
            "annotations": [
                {
                    "category_id": (i + j) % NUM_CLASSES,
                    "bbox": [2 * j, 3, 2 * j + 20, 30],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
                for j in range(3)
            ],
        }
        for i in range(12)
    ]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).thing_classes = [f"c{i}" for i in range(NUM_CLASSES)]
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg(records):
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.DATASETS.LABEL_NOISE.RATE = 0.5
    cfg.DATASETS.LABEL_NOISE.SEED = 3
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def noisy_labels(records):
    noisy, _ = inject(records, [SymmetricNoise(rate=0.5, seed=3)], NUM_CLASSES, NAME)
    return [[a["category_id"] for a in record["annotations"]] for record in noisy]


def mapped_labels(outputs):
    return [output["instances"].gt_classes.tolist() for output in outputs]


def test_from_config_gives_the_noise_of_the_set(cfg, records):
    before = copy.deepcopy(records)
    mapper = NoisyLabelMapper(cfg)
    for _ in range(2):  # two epochs
        assert mapped_labels(map(mapper, records)) == noisy_labels(records)
    assert records == before
    assert noisy_labels(records) != [[a["category_id"] for a in r["annotations"]] for r in records]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker")
@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_workers_draw_the_same_noise(cfg, records, num_workers):
    mapper = NoisyLabelMapper(cfg)
    loader = DataLoader(
        records, batch_size=None, num_workers=num_workers, collate_fn=mapper, shuffle=False
    )
    assert mapped_labels(loader) == noisy_labels(records)


def test_wraps_any_mapper(cfg, records):
    calls = []
    mapper = NoisyLabelMapper(calls.append, [SymmetricNoise(rate=1.0)], NUM_CLASSES, NAME)
    mapper({**records[0], "extra": 1})
    assert calls[0]["extra"] == 1
    assert all("true_category_id" in annotation for annotation in calls[0]["annotations"])


def test_test_sets_stay_clean(cfg, records):
    mapper = NoisyLabelMapper(cfg, is_train=False)
    seen = []
    NoisyLabelMapper(seen.append, mapper.noises, NUM_CLASSES)(records[0])
    assert seen[0] is records[0]
    stock = DatasetMapper(cfg, is_train=False)
    assert mapper(records[0]).keys() == stock(records[0]).keys()


def test_noisy_records_go_through_as_they_are(cfg, records):
    noisy, _ = inject(records, [SymmetricNoise(rate=0.9, seed=8)], NUM_CLASSES, NAME)
    expected = [[a["category_id"] for a in record["annotations"]] for record in noisy]
    assert mapped_labels(map(NoisyLabelMapper(cfg), noisy)) == expected


def test_several_sets_need_the_name_in_the_record(cfg, records):
    cfg.DATASETS.TRAIN = (NAME, "mapper_test_other")
    MetadataCatalog.get("mapper_test_other").thing_classes = MetadataCatalog.get(NAME).thing_classes
    mapper = NoisyLabelMapper(cfg)
    with pytest.raises(ValueError, match="image '0' does not name its training set"):
        mapper(records[0])
    named = [{**record, "dataset_name": NAME} for record in records]
    assert mapped_labels(map(mapper, named)) == noisy_labels(records)
    MetadataCatalog.remove("mapper_test_other")


def test_exact_mode_is_refused(cfg):
    cfg.DATASETS.LABEL_NOISE.MODE = "exact"
    with pytest.raises(ValueError, match="exact mode needs the whole dataset"):
        NoisyLabelMapper(cfg)


def test_manifest_is_refused(cfg):
    cfg.DATASETS.LABEL_NOISE.RATE = 0.0
    cfg.DATASETS.LABEL_NOISE.MANIFEST = "some.jsonl"
    with pytest.raises(ValueError, match="build_noisy_train_loader"):
        NoisyLabelMapper(cfg)
