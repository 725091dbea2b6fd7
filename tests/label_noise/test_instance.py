"""Noise by a detector's mistakes: which annotations it hits, and what they become."""

from unittest.mock import patch

import pytest
import torch

from helpers import load_tool
from helpers.detectors import build, small_config
from helpers.label_noise_records import labels, make_records
from sl_detectron.data import load_voc_dataset, make_toy_dataset
from sl_detectron.data import toy as toy_module
from sl_detectron.data.annotation_ids import number_annotations
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.label_noise import InstanceNoise, inject

K = 5


@pytest.fixture(scope="module")
def records():
    return number_annotations({"d": make_records(num_images=2000, num_classes=K)})["d"]


def noise_of(records, distributions, **arguments):
    given = torch.tensor([a["category_id"] for r in records for a in r["annotations"]])
    return InstanceNoise(distributions=distributions, labels=given, **arguments)


def seen_by_a_detector(records):
    """Every second annotation is easy, p = 0.9; else p = 0.1. The rest goes to the next class."""
    rows = []
    for i, annotation in enumerate(a for r in records for a in r["annotations"]):
        row = torch.zeros(K)
        row[annotation["category_id"]] = 0.9 if i % 2 else 0.1
        row[(annotation["category_id"] + 1) % K] = 0.08 if i % 2 else 0.6
        row[(annotation["category_id"] + 2) % K] = 0.02 if i % 2 else 0.3
        rows.append(row)
    return torch.stack(rows)


def test_hard_objects_are_hit_more_often_and_become_what_they_look_like(records):
    noise = noise_of(records, seen_by_a_detector(records), rate=0.3, seed=1)
    noisy, changes = inject(records, [noise], K, "d")
    clean = [a["category_id"] for r in records for a in r["annotations"]]
    new = [a["category_id"] for r in noisy for a in r["annotations"]]
    steps = torch.tensor([(n - c) % K for n, c in zip(new, clean)])
    assert len(changes) == int((steps > 0).sum())
    # 10,000 annotations: a standard deviation is 0.5 % of them at most.
    assert float((steps > 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    hard, easy = steps[::2], steps[1::2]
    assert float((hard > 0).float().mean()) == pytest.approx(0.54, abs=0.03)
    assert float((easy > 0).float().mean()) == pytest.approx(0.06, abs=0.015)
    assert set(steps.tolist()) == {0, 1, 2}
    assert float((hard == 1).sum() / (hard > 0).sum()) == pytest.approx(2 / 3, abs=0.04)
    assert float((easy == 1).sum() / (easy > 0).sum()) == pytest.approx(0.8, abs=0.1)


def test_the_same_again_and_none_at_rate_zero(records):
    distributions = seen_by_a_detector(records)
    noise = noise_of(records, distributions, rate=0.2)
    first, _ = inject(records, [noise], K, "d")
    again, _ = inject(records[::-1], [noise], K, "d")
    assert labels(first) == labels(again)
    assert labels(inject(records, [noise_of(records, distributions, rate=0.0)], K, "d")[0]) == (
        labels(records)
    )


def test_every_label_may_become_wrong(records):
    """Also where the detector is certain, or said nothing."""
    distributions = seen_by_a_detector(records)
    distributions[0] = torch.nn.functional.one_hot(distributions[0].argmax(), K)
    distributions[1] = torch.nan
    noise = noise_of(records, distributions, rate=1.0)
    _, changes = inject(records, [noise], K, "d")
    assert len(changes) == len(distributions)


def test_what_does_not_fit_is_refused(records):
    distributions = seen_by_a_detector(records)
    with pytest.raises(ValueError, match="mode must be 'bernoulli'"):
        noise_of(records, distributions, rate=0.2, mode="exact")
    with pytest.raises(ValueError, match=r"must be \(A, K\)"):
        noise_of(records, distributions[1:], rate=0.2)
    noise = noise_of(records, distributions, rate=0.2)
    with pytest.raises(ValueError, match="the detector has 5 classes, the set 6"):
        inject(records, [noise], K + 1, "d")
    with pytest.raises(ValueError, match="do not match the annotations"):
        inject(make_records(num_images=3, num_classes=K), [noise], K, "d")
    cfg = small_config("standard", superloss=True)
    cfg.DATASETS.LABEL_NOISE.TYPE = "instance"
    with pytest.raises(ValueError, match="sl-inject-noise --type instance --checkpoint"):
        InstanceNoise.from_config(cfg.DATASETS.LABEL_NOISE, None)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Arguments for an untrained detector of the toy set's classes."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = small_config("retinanet", superloss=False)
    cfg.MODEL.RETINANET.NUM_CLASSES = len(TOY_CLASS_NAMES)
    torch.manual_seed(0)
    torch.save({"model": build(cfg).state_dict()}, folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return ["--config-file", folder / "config.yaml", "--checkpoint", folder / "model.pth"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with patch.object(toy_module, "TOY_SPLITS", {"train": 20, "test": 4}):
        return make_toy_dataset(tmp_path_factory.mktemp("toy") / "toy_digits")


def test_on_the_command_line(detector, toy, tmp_path, capsys):
    main = load_tool("inject_noise").main
    common = ["--voc-root", toy, "--split", "train", "--classes", ",".join(TOY_CLASS_NAMES)]
    common += ["--type", "instance", "--rate", "0.5", "--box-jitter", "0.2"]
    out = tmp_path / "noisy"
    assert main([str(x) for x in [*common, "--output", out, *detector]]) == 0
    wrong = [
        (a["category_id"], b["category_id"])
        for before, after in zip(
            load_voc_dataset(toy, "train", TOY_CLASS_NAMES),
            load_voc_dataset(out, "train", TOY_CLASS_NAMES),
        )
        for a, b in zip(before["annotations"], after["annotations"])
    ]
    assert 0.2 < sum(a != b for a, b in wrong) / len(wrong) < 0.8
    assert "instance" in (out / "noise.json").read_text().lower()
    assert main(["--restore", str(out)]) == 0
    for file in (toy / "Annotations").iterdir():
        assert (out / "Annotations" / file.name).read_bytes() == file.read_bytes()
    capsys.readouterr()
    for arguments, message in (
        ([*common], "needs --checkpoint and --config-file"),
        ([*common, "--mode", "exact", *detector], "has no --mode exact"),
        ([*common[:4], "--classes", "a,b", *common[6:], *detector], "class"),
    ):
        try:
            code = main([str(x) for x in [*arguments, "--output", tmp_path / "other"]])
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
