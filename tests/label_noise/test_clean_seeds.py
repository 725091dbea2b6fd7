"""Images that noise leaves alone: the same ones everywhere, and named by the manifest."""

import json
import random

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from helpers.label_noise_records import CLASSES, NUM_CLASSES, coco_json, labels, make_records
from sl_detectron.config import IS_SEED, add_superloss_config
from sl_detectron.data.formats.coco_json import CocoFile
from sl_detectron.data.formats.manifest import changes_from_manifest, read_manifest
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.label_noise import (
    BoxJitter,
    CleanSeeds,
    MissingAnnotations,
    NoisyLabelMapper,
    SpuriousBoxes,
    SymmetricNoise,
    noisy_dataset_dicts,
    noisy_sets,
)
from sl_detectron.label_noise.config import check_label_noise
from sl_detectron.label_noise.export import export_noisy_coco

NAME = "clean_seeds_test"
SEEDS = CleanSeeds(share=0.25, seed=3)
ALL_NOISES = [
    SymmetricNoise(rate=0.9),
    BoxJitter(rate=0.9),
    MissingAnnotations(rate=0.3),
    SpuriousBoxes(rate=0.5),
]


@pytest.fixture
def cfg():
    DatasetCatalog.register(NAME, lambda: make_records(80))
    MetadataCatalog.get(NAME).thing_classes = [str(i) for i in range(NUM_CLASSES)]
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES = (NAME,), NUM_CLASSES
    node = cfg.DATASETS.LABEL_NOISE
    node.CLEAN_SHARE, node.SEED, node.RATE = SEEDS.share, SEEDS.seed, 1.0
    yield cfg
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_no_noise_touches_a_seed_and_the_others_have_theirs():
    records = make_records(400)
    noisy, changes = SEEDS.inject(records, ALL_NOISES, NUM_CLASSES, NAME)
    kept = {*SEEDS.image_ids(NAME, records)}
    assert 70 < len(kept) < 130
    assert not kept & {change.image_id for change in changes}
    for before, after in zip(records, noisy, strict=True):
        assert (before["annotations"] == after["annotations"]) == (before["image_id"] in kept)
    # The noise of an image does not depend on whether another one is a seed.
    alone, _ = CleanSeeds().inject(records, ALL_NOISES, NUM_CLASSES, NAME)
    assert all(a == b for a, b in zip(noisy, alone) if a["image_id"] not in kept)


def test_seeds_are_those_of_the_image_whatever_the_order_and_the_noise():
    records = make_records(50)
    shuffled = random.Random(1).sample(records, len(records))
    expected = {*SEEDS.image_ids(NAME, records)}
    assert {*SEEDS.image_ids(NAME, shuffled[:30])} == expected & {
        r["image_id"] for r in shuffled[:30]
    }
    for other in (CleanSeeds(0.25, 4), CleanSeeds(0.25, 3)):
        assert ({*other.image_ids(NAME, records)} == expected) == (other.seed == 3)
    assert {*SEEDS.image_ids("another", records)} != expected
    # A larger share has the smaller one's images.
    assert expected < {*CleanSeeds(0.6, 3).image_ids(NAME, records)}
    assert CleanSeeds(1.0).image_ids(NAME, records) == [r["image_id"] for r in records]
    assert CleanSeeds(0.0).image_ids(NAME, records) == []


def test_the_exact_mode_counts_the_other_images():
    records = make_records(100)
    noise = SymmetricNoise(rate=0.5, mode="exact")
    _, changes = SEEDS.inject(records, [noise], NUM_CLASSES, NAME)
    num_others = 100 - len(SEEDS.image_ids(NAME, records))
    assert len(changes) == round(0.5 * 5 * num_others)


def test_the_loader_says_which_images_are_seeds_at_any_rate(cfg):
    clean = labels(make_records(80))
    expected = {*SEEDS.image_ids(NAME, make_records(80))}
    for rate in (1.0, 0.0):
        cfg.DATASETS.LABEL_NOISE.RATE = rate
        records = noisy_dataset_dicts(cfg)[NAME]
        assert {r["image_id"] for r in records if r[IS_SEED]} == expected
        same = {r["image_id"] for r in records if labels([r]).items() <= clean.items()}
        assert same == (expected if rate else {*clean})
    cfg.DATASETS.LABEL_NOISE.CLEAN_SHARE = 0.0
    assert IS_SEED not in noisy_dataset_dicts(cfg)[NAME][0]


def test_mapper_and_lazy_sets_keep_the_same_images(cfg):
    from_cfg = noisy_dataset_dicts(cfg)[NAME]
    noises = [SymmetricNoise(rate=1.0, seed=3)]
    (lazy,) = noisy_sets(NAME, noises, seeds=SEEDS).values()
    assert lazy == from_cfg
    mapper = NoisyLabelMapper(lambda record: record, noises, NUM_CLASSES, NAME, SEEDS)
    mapped = [mapper(record) for record in make_records(80)]
    assert labels(mapped) == labels(from_cfg)
    assert [r[IS_SEED] for r in mapped] == [r[IS_SEED] for r in from_cfg]
    by_cfg = NoisyLabelMapper(cfg)
    assert (by_cfg.seeds, by_cfg.dataset_name) == (SEEDS, NAME)


@pytest.fixture
def coco_copy(tmp_path):
    """A noisy copy, and the clean file."""
    clean = tmp_path / "clean.json"
    clean.write_bytes(coco_json(None))
    seeds = CleanSeeds(0.5, 0)
    export_noisy_coco(CocoFile(clean), tmp_path / "out", [SymmetricNoise(rate=1.0)], NAME, seeds)
    return tmp_path / "out", clean


def test_a_copy_on_disk_names_its_seeds(coco_copy):
    out, clean = coco_copy
    lines = read_manifest(str(out / "manifest.jsonl"))
    kept = {line["image_id"] for line in lines if line["what"] == "clean"}
    changed = {line["image_id"] for line in lines if line["what"] != "clean"}
    assert kept == {*CleanSeeds(0.5, 0).image_ids(NAME, load_coco_json(str(clean), "", NAME))}
    assert kept
    assert changed
    assert not kept & changed
    assert json.loads((out / "noise.json").read_text())["clean_seeds"] == {"share": 0.5, "seed": 0}
    # A line that is no change is none where changes are replayed.
    assert len(changes_from_manifest(lines, CLASSES, NAME)) == len(lines) - len(kept)
    restored = restore_clean(out, out.parent / "restored")
    assert (restored / "clean.json").read_bytes() == clean.read_bytes()
    MetadataCatalog.remove(NAME)


def test_a_copy_with_other_seeds_is_not_taken_for_clean(coco_copy, cfg):
    out, _ = coco_copy
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    path = str(out / "clean.json")
    DatasetCatalog.register(NAME, lambda: load_coco_json(path, "", NAME))
    MetadataCatalog.get(NAME).json_file = path
    node = cfg.DATASETS.LABEL_NOISE
    node.RATE, node.CLEAN_SHARE, node.SEED = 0.0, 0.25, 0
    with pytest.raises(ValueError, match=r"with the clean seeds \{'share': 0\.5, 'seed': 0\}"):
        noisy_dataset_dicts(cfg)
    node.CLEAN_SHARE = 0.5
    assert any(record[IS_SEED] for record in noisy_dataset_dicts(cfg)[NAME])


def test_a_manifest_that_changes_a_seed_is_refused(cfg, tmp_path):
    (first, *_), records = SEEDS.image_ids(NAME, make_records(80)), make_records(80)
    (old,) = [r["annotations"][0]["category_id"] for r in records if r["image_id"] == first]
    line = {"dataset": NAME, "image_id": first, "annotation": 0, "what": "label"}
    line |= {"old": str(old), "new": str((old + 1) % NUM_CLASSES)}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    node = cfg.DATASETS.LABEL_NOISE
    node.RATE, node.MANIFEST = 0.0, str(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match=rf"changes image '{first}', which CLEAN_SHARE 0\.25"):
        noisy_dataset_dicts(cfg)
    node.CLEAN_SHARE = 0.0
    noisy_dataset_dicts(cfg)


def test_bad_shares(cfg):
    cfg.DATASETS.LABEL_NOISE.CLEAN_SHARE = 1.5
    with pytest.raises(ValueError, match=r"LABEL_NOISE\.CLEAN_SHARE must be in \[0, 1\]; got 1\.5"):
        check_label_noise(cfg)
