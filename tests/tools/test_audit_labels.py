"""tools/audit_labels.py as a user runs it, from noise on disk to a corrected dataset."""

import importlib.util
import json
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers import REPO
from helpers.forked import forked_ranks
from sl_detectron.audit import read_audit
from sl_detectron.audit.decisions import Decision, Decisions, write_decisions
from sl_detectron.audit.kinds import KINDS
from sl_detectron.audit.run import estimate_from_features, estimate_run
from sl_detectron.audit.suspects import read_suspects
from sl_detectron.data.annotation_ids import AnnotationTable
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.engine import SuperLossTrainer, setup_cfg
from sl_detectron.label_noise import SymmetricNoise, noisy_dataset_dicts
from sl_detectron.label_noise.export import export_noisy_voc

TOOL = REPO / "tools" / "audit_labels.py"
FILES = {"label_audit.json", "label_audit.csv", "index.html"}
ABOVE = ("--correct-above", "0.9")
NOISE = ("DATASETS.LABEL_NOISE.RATE", "0.4")
ONE_CLASS = ("MODEL.ROI_HEADS.NUM_CLASSES", "1", "DATASETS.TRAIN", "('one_class',)")


def expensive(*_):
    raise AssertionError("the work began before the arguments were checked")


@pytest.fixture(scope="module", autouse=True)
def one_class():
    DatasetCatalog.register("one_class", list)
    yield
    DatasetCatalog.remove("one_class")
    MetadataCatalog.pop("one_class", None)


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("audit_labels", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *args: module.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def noisy_set(toy_root, tmp_path_factory):
    """The toy set with wrong labels in its files."""
    folder = tmp_path_factory.mktemp("data")
    noises = [SymmetricNoise(rate=0.4)]
    export_noisy_voc(toy_root, "train", folder / "noisy", noises, TOY_CLASS_NAMES, "noisy_train")
    return folder / "noisy"


@pytest.fixture(scope="module")
def run(noisy_set, tmp_path_factory):
    return train(noisy_set, "train", tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def small_run(noisy_set, tmp_path_factory):
    """A run on 30 images, over which a pass is quick."""
    splits = noisy_set / "ImageSets" / "Main"
    names = (splits / "train.txt").read_text().splitlines()[:30]
    (splits / "few.txt").write_text("\n".join(names))
    return train(noisy_set, "few", tmp_path_factory.mktemp("small_run"))


@pytest.fixture
def manifest(small_run, noisy_set, tmp_path):
    """Of the images of the small run; it names the set as the noise tool knew it."""
    path = tmp_path / "manifest.jsonl"
    images = {record["image_id"] for record in AnnotationTable.read(small_run).records()}
    lines = (noisy_set / "manifest.jsonl").read_text().splitlines(keepends=True)
    lines = [line for line in lines if json.loads(line)["image_id"] in images]
    path.write_text("".join(lines).replace('"noisy_train"', f'"noisy_few_{small_run.name}"'))
    return path


def train(noisy_set, split, output):
    entry = {"NAME": f"noisy_{split}_{output.name}", "ROOT": str(noisy_set), "SPLIT": split,
             "CLASSES": list(TOY_CLASS_NAMES)}  # fmt: skip
    opts = ["DATASETS.CUSTOM_VOC", str([entry]), "DATASETS.TRAIN", f"('{entry['NAME']}',)"]
    opts += ["DATASETS.TEST", "()", "DATASETS.LABEL_NOISE.RATE", "0.0", "SOLVER.MAX_ITER", "6"]
    opts += ["SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", str(output)]
    cfg = setup_cfg(str(REPO / "configs/Toy/faster_rcnn_superloss.yaml"), opts)
    (output / "config.yaml").write_text(cfg.dump())
    SuperLossTrainer(cfg).train()
    return output


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_from_run(main, run, tmp_path, capsys):
    out = tmp_path / "audit"
    args = ("--top", 3, "--per-class", "--classes", "one, two", "--formats", "cleanlab", "fiftyone")
    assert main("--from-run", run, "--output", out, *args) == 0
    assert names(out) == FILES | {"cleanlab.json", "fiftyone"}
    assert names(out / "fiftyone") == {"labels.json", "data.json"}
    audit = read_audit(out / "label_audit.json")
    assert [a.label for a in audit.annotations].count("one") == 3
    assert {a.label for a in audit.annotations} == {"one", "two"}
    printed = capsys.readouterr().out
    assert f"report: {out / 'index.html'}" in printed
    assert f"{len(audit.annotations)} are listed" in printed


def test_exports_and_corrections_are_of_all_annotations(main, run, tmp_path):
    """A short list is for reading; other tools, and a threshold, judge the whole set."""
    whole, short = tmp_path / "whole", tmp_path / "short"
    args = ("--from-run", run, "--crops", 0, "--formats", "cleanlab", "fiftyone")
    args = (*args, "--correct-above", "0.505", "--output")
    assert main(*args, whole) == 0
    assert main(*args, short, "--top", 2, "--classes", "one") == 0
    assert len(read_audit(short / "label_audit.json").annotations) == 2
    (name,) = read_audit(whole / "label_audit.json").sources
    for file in ("cleanlab.json", "fiftyone/labels.json", f"corrected/{name}/corrections.jsonl"):
        assert (short / file).read_bytes() == (whole / file).read_bytes()
    assert len((short / "corrected" / name / "corrections.jsonl").read_text().splitlines()) > 2


def test_a_threshold_that_nothing_reaches_is_no_error(main, run, tmp_path, capsys):
    out = tmp_path / "audit"
    assert main("--from-run", run, "--output", out, "--correct-above", "1.0") == 0
    assert "no suspicion reaches 1.0: nothing is corrected" in capsys.readouterr().out
    assert names(out) == FILES


def test_threshold_then_apply(main, run, noisy_set, tmp_path, capsys):
    out = tmp_path / "audit"
    assert main("--from-run", run, "--output", out, "--correct-above", "0.505") == 0
    audit = read_audit(out / "label_audit.json")
    wrong = [a for a in audit.annotations if a.suspicion >= 0.505]
    (name,) = audit.sources
    corrected = out / "corrected" / name
    lines = [json.loads(x) for x in (corrected / "corrections.jsonl").read_text().splitlines()]
    assert len(lines) == len(wrong) > 0
    assert f"{len(wrong)} corrections of {name}" in capsys.readouterr().out
    # The same by a file of decisions.
    decisions = tuple(
        Decision(a.dataset, a.image_id, a.index, a.bbox, a.label, "wrong", a.suggested_label)
        for a in wrong
    )
    write_decisions(Decisions(audit.classes, audit.sources, decisions), tmp_path / "d.json")
    assert main("--apply", tmp_path / "d.json", "--output", tmp_path / "applied") == 0
    for path in (corrected / "Annotations").iterdir():
        other = tmp_path / "applied" / name / "Annotations" / path.name
        assert path.read_bytes() == other.read_bytes()
    assert main("--restore", corrected, "--output", tmp_path / "restored") == 0
    for path in (noisy_set / "Annotations").iterdir():
        other = tmp_path / "restored" / "Annotations" / path.name
        assert path.read_bytes() == other.read_bytes()


def test_a_decision_that_changes_nothing_is_counted(main, run, tmp_path, capsys):
    audit = read_audit(run / "label_audit.json")
    one, two = audit.annotations[:2]
    decisions = [
        Decision(a.dataset, a.image_id, a.index, a.bbox, a.label, "wrong", label, None, kind)
        for a, label, kind in (
            (one, one.suggested_label, "wrong_class"), (two, two.label, "misplaced_box")
        )
    ]  # fmt: skip
    write_decisions(Decisions(audit.classes, audit.sources, (*decisions,)), tmp_path / "d.json")
    assert main("--apply", tmp_path / "d.json", "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "1 corrections of" in printed
    assert "1 decisions mark an annotation as wrong without another class or box" in printed


@pytest.fixture
def any_features(monkeypatch):
    """Those of a detector that was trained for six iterations tell nothing."""
    monkeypatch.setattr("sl_detectron.commands.audit.LEAST_GAIN", -100.0)


def test_features_that_tell_nothing_correct_nothing(main, small_run, tmp_path, capsys):
    assert main("--from-run", small_run, "--output", tmp_path / "audit", "--auto") == 2
    assert "--auto corrects nothing: the features do not predict" in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()


@pytest.mark.usefixtures("any_features")
def test_auto_corrects_what_is_probably_wrong(main, small_run, tmp_path, capsys, monkeypatch):
    out, cfg = tmp_path / "audit", setup_cfg(str(small_run / "config.yaml"), [])
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **k: read.append(path) or load(path, **k))
    assert main("--from-run", small_run, "--output", out, "--auto") == 0
    assert len(read) == 1, "of a large set a checkpoint has gigabytes"
    printed = capsys.readouterr().out
    audit = read_audit(out / "label_audit.json")
    estimate = estimate_run(cfg, small_run)
    labels = torch.tensor(AnnotationTable.read(small_run).labels())
    best = estimate.probabilities.argmax(dim=1)
    (name,) = audit.sources
    lines = (out / "corrected" / name / "corrections.jsonl").read_text().splitlines()
    ranked = {a.annotation_id: a for a in audit.annotations}
    wrong = [i for i in ranked if best[i] != labels[i]]
    assert len(lines) == len(wrong) > 0
    for i in wrong:
        assert ranked[i].suggested_label == TOY_CLASS_NAMES[best[i]]
    given = [ranked[i].expected_correctness for i in wrong]
    all_row = printed.splitlines()[-1].split()
    # The table counts what the files had, without what was never sampled.
    assert all_row[:2] == ["all", str(len(ranked))]
    assert int(all_row[3]) == len(wrong)
    assert float(all_row[5]) == pytest.approx(sum(given), abs=0.51)


@pytest.mark.usefixtures("any_features")
def test_before_any_training_by_pretrained_features(main, small_run, tmp_path, capsys):
    """Ranked by the estimate; what is corrected is what it finds more probable."""
    out, weights = tmp_path / "audit", ["MODEL.WEIGHTS", str(small_run / "model_final.pth")]
    args = ("--config-file", small_run / "config.yaml", "--from-features", "--crops", 0)
    assert main(*args, "--output", out, "--auto", "--opts", *weights) == 0
    cfg = setup_cfg(str(small_run / "config.yaml"), weights)
    table = AnnotationTable.of(noisy_dataset_dicts(cfg))
    estimate = estimate_from_features(cfg, table)
    audit = read_audit(out / "label_audit.json")
    assert len(audit.annotations) == table.num_annotations == len(estimate.probabilities)
    labels, best = torch.tensor(table.labels()), estimate.probabilities.argmax(dim=1)
    for a in audit.annotations:
        distribution, label = estimate.probabilities[a.annotation_id], labels[a.annotation_id]
        assert a.expected_correctness == pytest.approx(float(distribution[label]), rel=1e-4)
        assert a.mean_loss == pytest.approx(
            -float(distribution[label].clamp_min(1e-6).log()), abs=1e-4
        )
        assert (a.suspicion > 0.5) == (best[a.annotation_id] != label)
    (name,) = audit.sources
    lines = (out / "corrected" / name / "corrections.jsonl").read_text().splitlines()
    assert len(lines) == int((best != labels).sum()) > 0
    assert "of these fixed" in capsys.readouterr().out


def test_features_against_known_noise(main, small_run, manifest, tmp_path):
    """There is no detector whose losses or boxes could be compared."""
    pytest.importorskip("cleanlab")
    out, opts = tmp_path / "out", ("--opts", "MODEL.WEIGHTS", small_run / "model_final.pth")
    args = ("--config-file", small_run / "config.yaml", "--from-features", "--crops", 0)
    assert main(*args, "--output", out, "--manifest", manifest, *opts) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["scores"].keys() == {"suspicion", "low confidence", "plain loss"}
    assert evaluation["num_wrong"] == len(manifest.read_text().splitlines()) > 10


def test_checkpoint_against_a_manifest(main, small_run, manifest, tmp_path, capsys):
    pytest.importorskip("cleanlab")
    out = tmp_path / "audit"
    checkpoint = ("--checkpoint", small_run / "model_final.pth")
    source = (*checkpoint, "--config-file", small_run / "config.yaml")
    assert main(*source, "--output", out, "--manifest", manifest) == 0
    assert names(out) == FILES | {"evaluation.json", "evaluation.png"}
    printed = capsys.readouterr().out
    assert "ObjectLab" in printed
    assert "right suggestions for" in printed
    num_wrong = len(manifest.read_text().splitlines())
    assert json.loads((out / "evaluation.json").read_text())["num_wrong"] == num_wrong > 10


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--from-run", "no_such_run"), "no_such_run is not the output of a training"),
        (("--apply", "no.json"), "there is no file of decisions no.json"),
        (("--from-run", "RUN", "--classes", "cow"), "the audit has no class ['cow']"),
        (("--from-run", "RUN", "--correct-above", "0.2"), "must be in (0.5, 1]; got 0.2"),
        (("--from-run", "RUN", "--auto", *("--opts", *NOISE)), "--auto corrects files"),
        (("--from-run", "RUN", "--top", "-1"), "must be at least 1; got -1"),
        (("--from-run", "RUN", "--crops", "-1"), "must be at least 0; got -1"),
        (("--from-run", "RUN", "--crop-size", "0"), "must be at least 1 pixel; got 0"),
        (("--from-run", "RUN", "--manifest", "gone.jsonl"), "no manifest at gone.jsonl"),
        (("--from-run", "RUN", "--evaluate"), "DATASETS.LABEL_NOISE of this run is off"),
        (("--from-run", "RUN", "--opts", *ONE_CLASS), "this detector has only one"),
        (
            ("--from-run", "RUN", *ABOVE, "--opts", *NOISE),
            "come from DATASETS.LABEL_NOISE, not from files",
        ),
        (("--checkpoint", "gone.pth", "--config-file", "CONFIG"), "no checkpoint gone.pth"),
        (("--from-features", "--config-file", "CONFIG"), "MODEL.WEIGHTS is empty"),
        (
            (
                "--from-features",
                *("--config-file", "CONFIG"),
                *("--opts", "MODEL.WEIGHTS", "x.pth"),
            ),
            "MODEL.WEIGHTS: there is no checkpoint x.pth",
        ),
    ],
)
def test_errors_are_one_line_before_any_work(
    main, run, tmp_path, capsys, monkeypatch, args, message
):
    for name in ("audit_run", "audit_checkpoint", "audit_features"):
        monkeypatch.setattr(f"sl_detectron.commands.audit.{name}", expensive)
    places = {"RUN": run, "CONFIG": run / "config.yaml"}
    assert main(*(places.get(arg, arg) for arg in args), "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in error
    assert message in error
    assert not (tmp_path / "out").exists()


def test_output_is_checked_before_any_work(main, run, noisy_set, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sl_detectron.commands.audit.audit_run", expensive)
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "corrected").mkdir(parents=True)
    for out, message in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "out", "corrected exists"),
        (noisy_set / "audit", "is inside"),
    ):
        assert main("--from-run", run, "--output", out, *ABOVE) == 2
        assert message in capsys.readouterr().err


def test_a_lazy_config_is_named(main, tmp_path, capsys):
    lazy = REPO / "configs/LazyConfig/toy_faster_rcnn_superloss.py"
    (tmp_path / "run").mkdir()
    # What its training leaves as config.yaml.
    (tmp_path / "run" / "config.yaml").write_text("model: {_target_: sl_detectron.NoSuchThing}\n")
    (tmp_path / "model.pth").write_text("")
    by_checkpoint = ("--checkpoint", tmp_path / "model.pth", "--config-file", lazy)
    for args in (by_checkpoint, ("--from-run", tmp_path / "run")):
        assert main(*args, "--output", tmp_path / "out") == 2
        assert "is a LazyConfig, whose training writes no more than" in capsys.readouterr().err


def test_a_missing_extra_is_named_before_any_work(main, run, tmp_path, capsys, monkeypatch):
    job = "sl_detectron.commands.audit"
    monkeypatch.setattr(f"{job}.audit_run", expensive)
    monkeypatch.setattr(f"{job}.find_spec", lambda name: None if name == "cleanlab" else name)
    assert main("--from-run", run, "--output", tmp_path / "out", "--evaluate") == 2
    assert "pip install 'sl_detectron[audit]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--checkpoint", "x.pth"), "--checkpoint, --from-features and --folds need"),
        (("--from-run", "x", "--per-class"), "--per-class needs --top"),
        (("--apply", "x.json", "--top", "5"), "--apply takes --output and nothing else"),
        (("--restore", "x", "--top", "5"), "--restore takes --output and nothing else"),
        (("--folds", "2"), "--checkpoint, --from-features and --folds need --config-file"),
        (("--from-features",), "--checkpoint, --from-features and --folds need --config-file"),
        (
            ("--from-features", "--config-file", "x", "--kinds", "no_object"),
            "--from-features finds wrong classes only",
        ),
        (("--checkpoint", "x", "--config-file", "y", "--auto"), "--auto needs --from-run or"),
        (("--from-run", "x", "--auto", "--correct-above", "0.9"), "--auto replaces"),
    ],
)
def test_options_that_do_not_go_together(main, tmp_path, capsys, args, message):
    with pytest.raises(SystemExit):
        main(*args, "--output", tmp_path)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("source", ["--checkpoint", "--from-features"])
def test_two_processes_write_what_one_writes(main, small_run, tmp_path, capfd, source):
    checkpoint, args = small_run / "model_final.pth", ("--config-file", small_run / "config.yaml")
    if source == "--checkpoint":
        args += (source, checkpoint, "--crops", 0)
    else:
        args += (source, "--crops", 0, "--opts", "MODEL.WEIGHTS", checkpoint)
    for num in (1, 2):
        with forked_ranks():
            assert main("--output", tmp_path / str(num), "--num-gpus", num, *args) == 0
        assert capfd.readouterr().out.count("annotations ranked") == 1
    one, two = ((tmp_path / str(num) / "label_audit.json").read_bytes() for num in (1, 2))
    assert one == two
    assert main("--output", tmp_path, "--num-gpus", 0, *args) == 2
    assert "--num-gpus must be at least 1; got 0" in capfd.readouterr().err


def test_kinds_are_one_list(main, small_run, tmp_path, capsys):
    """By a checkpoint or of a run; the ranking of wrong classes is what it is without them."""
    checkpoint = ("--checkpoint", small_run / "model_final.pth")
    checkpoint = (*checkpoint, "--config-file", small_run / "config.yaml")
    for place, source in (("run", ("--from-run", small_run)), ("checkpoint", checkpoint)):
        args = (*source, "--crops", 0, "--output")
        assert main(*args, tmp_path / place / "plain") == 0
        assert not (tmp_path / place / "plain" / "suspects.json").exists()
        assert main(*args, tmp_path / place / "kinds", "--kinds", *KINDS) == 0
        assert "suspects above 0.5: " in capsys.readouterr().out
        plain, kinds = (tmp_path / place / name / "label_audit.json" for name in ("plain", "kinds"))
        assert plain.read_bytes() == kinds.read_bytes()
        suspects = read_suspects(tmp_path / place / "kinds" / "suspects.json").suspects
        wrong = [(s.annotation_id, s.score) for s in suspects if s.kind == "wrong_class"]
        assert wrong == [(a.annotation_id, a.suspicion) for a in read_audit(plain).annotations]
        assert {s.kind for s in suspects} >= {"misplaced_box", "no_object", "duplicate"}
        assert all(0 <= s.score <= 1 for s in suspects)


def test_kinds_by_the_statistics_of_a_run(main, small_run, tmp_path, capsys, monkeypatch):
    """Without a pass over the images; what they do not suffice for is refused."""
    monkeypatch.setattr("sl_detectron.audit.run.score_checkpoint", expensive)
    out = tmp_path / "out"
    args = ("--from-run", small_run, "--crops", 3, "--output", out, "--statistics", "--kinds")
    assert main(*args, "wrong_class", "no_object") == 0
    suspects = read_suspects(out / "suspects.json").suspects
    statistics = torch.load(small_run / "model_final.pth")["annotation_tracker"]
    objects = statistics["box_sums"][:, 0] / statistics["sums"][:, 0]
    by_kind = {k: {s.annotation_id: s.score for s in suspects if s.kind == k} for k in KINDS}
    assert by_kind["wrong_class"].keys() == by_kind["no_object"].keys()
    for i, score in by_kind["no_object"].items():
        assert score == pytest.approx(1 - float(objects[i]), abs=1e-5)
    assert 0 < min(by_kind["no_object"].values()) < max(by_kind["no_object"].values()) <= 1
    capsys.readouterr()
    for kinds, message in (
        (["misplaced_box"], "its box loss had no SuperLoss"),
        (["no_object", "duplicate"], "--statistics does not suffice for duplicate"),
        (["wrong_class"], "--statistics needs --kinds"),
        (["misplaced_box", "--correct-above", 0.9], "moves boxes to suggested ones"),
    ):
        assert main(*args, *kinds) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main("--checkpoint", "x", "--config-file", "y", "--output", out, "--statistics")
    assert "--statistics needs --from-run" in capsys.readouterr().err


def test_statistics_of_boxes_are_evaluated(main, noisy_config, tmp_path):
    """Of a run with both terms, against noise in memory; ObjectLab needs a pass."""
    run, out = tmp_path / "run", tmp_path / "out"
    opts = ["MODEL.SUPERLOSS.BOX_REG.ENABLED", "True", "DATASETS.TEST", "()"]
    opts += ["SOLVER.MAX_ITER", "6", "SOLVER.IMS_PER_BATCH", "4", "OUTPUT_DIR", str(run)]
    text = noisy_config.read_text().replace("faster_rcnn.yaml", "faster_rcnn_superloss.yaml")
    noisy_config.write_text(text)
    cfg = setup_cfg(str(noisy_config), opts)
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    SuperLossTrainer(cfg).train()
    args = ("--from-run", run, "--crops", 0, "--output", out, "--statistics", "--evaluate")
    assert main(*args, "--kinds", "misplaced_box", "no_object") == 0
    evaluation = json.loads((out / "evaluation_kinds.json").read_text())
    for kind in ("misplaced_box", "no_object"):
        assert evaluation[kind]["num_wrong"] > 0
        assert evaluation[kind]["scores"].keys() == {"sl_detectron"}
    suspects = read_suspects(out / "suspects.json").suspects
    assert {s.suggested_bbox for s in suspects} == {None}
    assert all(0 <= s.score <= 1 for s in suspects)
    assert len({s.score for s in suspects}) > 20


def test_two_sets_are_compared_without_a_detector(main, noisy_set, toy_root, tmp_path, capsys):
    out = tmp_path / "differences"
    assert main("--compare", noisy_set, "--truth", toy_root, "--output", out) == 0
    differences = json.loads((out / "differences.json").read_text())["differences"]
    manifest = (noisy_set / "manifest.jsonl").read_text().splitlines()
    assert {d["kind"] for d in differences} == {"wrong_class"}
    assert len(differences) == sum('"what": "label"' in line for line in manifest) > 100
    assert f"wrong_class     {len(differences)}" in capsys.readouterr().out
    assert main("--compare", noisy_set, "--truth", tmp_path / "gone", "--output", out) == 2
    assert "no COCO json at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main("--compare", noisy_set, "--output", out)
    assert "--compare needs --truth" in capsys.readouterr().err


def test_kinds_are_evaluated_against_true_annotations(
    main, small_run, noisy_set, toy_root, tmp_path, capsys
):
    pytest.importorskip("cleanlab")
    out = tmp_path / "audit"
    kinds = ("wrong_class", "missing_object")
    args = ("--from-run", small_run, "--crops", 0, "--output", out, "--truth")
    assert main(*args, toy_root, "--kinds", *kinds) == 0
    evaluation = json.loads((out / "evaluation_kinds.json").read_text())
    differences = json.loads((out / "differences.json").read_text())
    assert [*evaluation] == [*kinds]
    assert len(differences["images"]) == 30
    # The only noise of this set.
    assert {d["kind"] for d in differences["differences"]} == {"wrong_class"}
    audit = read_audit(out / "label_audit.json")
    assert evaluation["wrong_class"]["num_ranked"] == len(audit.annotations)
    assert evaluation["wrong_class"]["scores"].keys() == {
        *("sl_detectron", "ObjectLab, swap", "ObjectLab, swap at 0.5")
    }
    assert evaluation["missing_object"] == {
        **evaluation["missing_object"],
        "num_wrong": 0,
        "scores": {},
    }
    assert "missing_object: 0 flaws" in capsys.readouterr().out
    assert main(*args, tmp_path / "gone.json") == 2
    assert "no COCO json at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(*args, toy_root, "--manifest", noisy_set / "manifest.jsonl")
    assert "--truth and --manifest are two truths" in capsys.readouterr().err


def test_kinds_are_corrected_and_exported(main, small_run, tmp_path, capsys):
    out = tmp_path / "audit"
    args = ("--from-run", small_run, "--crops", 5, "--output", out, "--top", 3)
    kinds = ("no_object", "duplicate", "misplaced_box")
    assert main(*args, "--kinds", *kinds, "--correct-above", 0.51, "--formats", "cleanlab") == 0
    suspects = read_suspects(out / "suspects.json").suspects
    # --top is for each kind; corrections and exports are of all.
    assert Counter(s.kind for s in suspects) == dict.fromkeys(kinds, 3)
    assert "no_object_box_scores" in json.loads((out / "cleanlab.json").read_text())
    (folder,) = (out / "corrected").iterdir()
    lines = [json.loads(x) for x in (folder / "corrections.jsonl").read_text().splitlines()]
    assert {line["what"] for line in lines} <= {"missing", "box"}
    assert len(lines) > 9
    assert "corrections of" in capsys.readouterr().out


def test_a_short_report_sees_all_annotations(main, small_run, tmp_path, monkeypatch):
    """They are drawn around a missing object, and facts about a suspect are those of one."""
    seen = []
    monkeypatch.setattr(
        "sl_detectron.commands.audit.write_report",
        lambda audit, *_, suspects, **__: seen.append((audit, suspects)),
    )
    args = ("--from-run", small_run, "--output", tmp_path / "out", "--top", 1)
    assert main(*args, "--kinds", "no_object", "missing_object") == 0
    assert main(*args) == 0
    (audit, suspects), (plain, nothing) = seen
    assert {s.annotation_id for s in suspects.suspects} - {-1}
    assert [s.kind for s in suspects.suspects].count("no_object") == 1
    annotations = [a for r in AnnotationTable.read(small_run).records() for a in r["annotations"]]
    assert len(audit.annotations) + audit.num_unseen == len(annotations)
    assert (len(plain.annotations), nothing) == (1, None)


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_a_detector_of_one_class(main, detector, tmp_path, noisy_set, capsys):
    """It suggests no other class, but every other kind of flaw."""
    pytest.importorskip("cleanlab")
    splits = noisy_set / "ImageSets" / "Main"
    (splits / "four.txt").write_text("\n".join((splits / "train.txt").read_text().split()[:4]))
    name = f"ones_{tmp_path.name}"
    entry = {"NAME": name, "ROOT": str(noisy_set), "SPLIT": "four", "CLASSES": ["seven"],
             "OTHER_CLASSES": "ignore"}  # fmt: skip
    path, out = tmp_path / "one.yaml", tmp_path / "out"
    path.write_text(
        f"""_BASE_: "{REPO}/configs/Toy/{detector}.yaml"
MODEL: {{ROI_HEADS: {{NUM_CLASSES: 1}}, RETINANET: {{NUM_CLASSES: 1}}}}
DATASETS: {{CUSTOM_VOC: {json.dumps([entry])}, TRAIN: ["{name}"], LABEL_NOISE: {{RATE: 0.0}}}}
"""
    )
    model = SuperLossTrainer.build_model(setup_cfg(str(path), ["DATASETS.TEST", "()"]))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    args = ("--config-file", path, "--checkpoint", tmp_path / "model.pth", "--output", out)
    args = (*args, "--crops", 5, "--formats", "cleanlab", "--truth", noisy_set, "--kinds")
    others = [kind for kind in KINDS if kind != "wrong_class"]
    assert main(*args, *others) == 0
    # All other digits are of classes that this detector does not have.
    assert "unmatched true annotations are of classes" in capsys.readouterr().out
    counts = Counter(s.kind for s in read_suspects(out / "suspects.json").suspects)
    assert counts["no_object"] == counts["misplaced_box"] == counts["duplicate"] > 0
    evaluation = json.loads((out / "evaluation_kinds.json").read_text())
    assert evaluation["missing_object"]["num_wrong"] == 0
    audit = read_audit(out / "label_audit.json")
    assert {a.suspicion for a in audit.annotations} == {0}
    assert main(*args, *KINDS) == 2
    assert "this detector has only one" in capsys.readouterr().err


@pytest.fixture
def noisy_config(toy_root, tmp_path):
    """60 images of the toy set with noise in memory that leaves some of them empty."""
    splits = toy_root / "ImageSets" / "Main"
    names = (splits / "train.txt").read_text().splitlines()[:60]
    (splits / "sixty.txt").write_text("\n".join(names))
    entry = {"NAME": f"sixty_{tmp_path.name}", "ROOT": str(toy_root), "SPLIT": "sixty",
             "CLASSES": list(TOY_CLASS_NAMES)}  # fmt: skip
    path = tmp_path / "noisy.yaml"
    path.write_text(
        f"""_BASE_: "{REPO}/configs/Toy/faster_rcnn.yaml"
DATASETS:
  CUSTOM_VOC: {json.dumps([entry])}
  TRAIN: ["{entry["NAME"]}"]
  LABEL_NOISE:
    RATE: 0.0
    MISSING: {{RATE: 0.6}}
    SPURIOUS: {{RATE: 0.2}}
    BOX_JITTER: {{RATE: 0.5, MAGNITUDE: 0.4}}
"""
    )
    return path


def test_folds_are_trained_once_and_score_what_they_have_not_seen(
    main, small_run, tmp_path, capsys, monkeypatch
):
    config = tmp_path / "config.yaml"
    config.write_text((small_run / "config.yaml").read_text())
    out = tmp_path / "out"
    args = ("--config-file", config, "--folds", 2, "--output", out, "--crops", 0, "--kinds",
            *KINDS, "--opts", "SOLVER.MAX_ITER", 2)  # fmt: skip
    assert main(*args) == 0
    tables = [AnnotationTable.read(out / f"fold_{k}") for k in (0, 1)]
    seen = [{r["image_id"] for r in table.records()} for table in tables]
    assert min(map(len, seen)) > 0
    assert not seen[0] & seen[1]
    whole = AnnotationTable.read(small_run)
    assert seen[0] | seen[1] == {r["image_id"] for r in whole.records()}
    # An annotation has the number that it has in the whole set.
    ids = {a["annotation_id"]: a["bbox"] for r in whole.records() for a in r["annotations"]}
    for table in tables:
        for record in table.records():
            assert all(ids[a["annotation_id"]] == a["bbox"] for a in record["annotations"])
    audit = read_audit(out / "label_audit.json")
    assert {a.annotation_id for a in audit.annotations} == {*ids}
    # Each half is scored by the detector that was trained on the other one.
    for k, images in enumerate(seen):
        one = tmp_path / f"by_{k}"
        checkpoint = ("--checkpoint", out / f"fold_{k}" / "model_final.pth", "--crops", 0)
        assert main("--config-file", config, *checkpoint, "--output", one) == 0
        alone = {a.annotation_id: a for a in read_audit(one / "label_audit.json").annotations}
        others = [a for a in audit.annotations if a.image_id not in images]
        assert others
        for a in others:
            assert a.mean_loss == alone[a.annotation_id].mean_loss
            assert a.top_labels == alone[a.annotation_id].top_labels
    before = (out / "fold_1" / "metrics.json").stat().st_mtime_ns
    (out / "label_audit.json").rename(tmp_path / "first.json")
    assert main(*args) == 0
    assert (out / "fold_1" / "metrics.json").stat().st_mtime_ns == before
    assert (out / "label_audit.json").read_bytes() == (tmp_path / "first.json").read_bytes()
    capsys.readouterr()
    assert main(*args[:-1], 3) == 2
    assert "fold_0 belongs to a training run with another config, where 'MAX_ITER: 3'" in (
        capsys.readouterr().err
    )
    assert main(*args[:3], 1, *args[4:]) == 2
    assert "--folds must be at least 2; got 1" in capsys.readouterr().err


def test_every_kind_against_noise_in_memory(main, noisy_config, tmp_path):
    """Images that have lost all annotations are looked at too."""
    pytest.importorskip("cleanlab")
    model = tmp_path / "model.pth"
    cfg = setup_cfg(str(noisy_config), ["DATASETS.TEST", "()"])
    torch.save({"model": SuperLossTrainer.build_model(cfg).state_dict()}, model)
    trained = noisy_dataset_dicts(cfg)[cfg.DATASETS.TRAIN[0]]
    assert len(trained) < 60
    out = tmp_path / "out"
    args = ("--config-file", noisy_config, "--checkpoint", model, "--crops", 0, "--output", out)
    assert main(*args, "--kinds", "missing_object", "no_object", "--evaluate") == 0
    differences = json.loads((out / "differences.json").read_text())
    counts = Counter(d["kind"] for d in differences["differences"])
    given = [a for r in trained for a in r["annotations"]]
    added = sum(a.get("true_category_id") == len(TOY_CLASS_NAMES) for a in given)
    assert len(differences["images"]) == 60
    assert differences["num_given"] == len(given)
    assert 0 < counts["no_object"] + counts["duplicate"] <= added
    # A box without an object may happen to lie on one that is missing.
    # A box that was moved is off, however far; none of it is missing, nor without an object.
    assert counts["misplaced_box"] <= sum("true_bbox" in a for a in given)
    assert min(d["iou"] for d in differences["differences"] if d["kind"] == "misplaced_box") < 0.5
    missing = differences["num_true"] - (len(given) - added)
    assert missing - added <= counts["missing_object"] <= missing
    evaluation = json.loads((out / "evaluation_kinds.json").read_text())
    assert evaluation["no_object"]["scores"].keys() == {"sl_detectron"}
    assert {k: e["num_wrong"] for k, e in evaluation.items()} == {
        k: counts[k] for k in ("missing_object", "no_object")
    }
