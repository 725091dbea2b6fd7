"""The command line: noisy copies on disk that are complete, reproducible and reversible."""

import json
import math
import os
import tarfile
from pathlib import Path

import pytest
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from helpers import REPO, load_tool
from helpers.forked import Program
from sl_detectron.data import load_voc_dataset
from sl_detectron.data.formats.restore import restore_clean
from sl_detectron.label_noise import SymmetricNoise, inject
from sl_detectron.label_noise.stats import noise_statistics, uniformity_test

TOOL = REPO / "tools" / "inject_noise.py"
NOISE = ["--rate", "0.4", "--box-jitter", "0.3", "--missing", "0.2", "--spurious", "0.2"]
OBJECT = (
    "  <object>\n    <name>{}</name>\n    <bndbox><xmin>{}</xmin><ymin>5</ymin>"
    "<xmax>90</xmax><ymax>70</ymax></bndbox>\n  </object>\n"
)


inject_noise = load_tool("inject_noise")


def write_devkit(root, num_images=30):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for i in range(num_images):
        objects = "".join(OBJECT.format(CLASS_NAMES[(i + j) % 20], 3 + j) for j in range(i % 6))
        size = "  <size><width>100</width><height>80</height></size>\n"
        xml = f"<annotation>\n{size}{objects}</annotation>\n"
        (root / "Annotations" / f"{i:03}.xml").write_text(xml)
        (root / "JPEGImages" / f"{i:03}.jpg").write_bytes(b"image")
    ids = [f"{i:03}" for i in range(num_images)]
    half = num_images // 2
    for split, part in (("trainval", ids[:half]), ("test", ids[half:])):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(part) + "\n")
    return root


@pytest.fixture
def devkit(tmp_path):
    return write_devkit(tmp_path / "VOC2007")


def files(root):
    """Content of every file, also behind links."""
    paths = (Path(f, name) for f, _, names in os.walk(root, followlinks=True) for name in names)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def run(*args):
    return inject_noise.main([str(arg) for arg in args])


def test_voc_copy_and_back(devkit, tmp_path, capsys):
    out = tmp_path / "noisy" / "VOC2007"
    clean = files(devkit)
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 0
    printed = capsys.readouterr()
    assert "noisy copy of voc_2007_trainval" in printed.out
    assert "chi-square test of uniformity of the wrong labels: X^2 =" in printed.out
    assert "30/30" in printed.err
    assert files(devkit) == clean

    noisy = files(out)
    assert (out / "JPEGImages").is_symlink()
    assert (out / "SegmentationClass").is_symlink()
    assert not (out / "Annotations").is_symlink()
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    changed = {name for name, data in clean.items() if noisy[name] != data}
    lines = noisy["manifest.jsonl"].splitlines()
    images = {json.loads(line)["image_id"] for line in lines}
    assert changed == {f"Annotations/{image_id}.xml" for image_id in images}
    assert images <= {f"{i:03}" for i in range(15)}, "the test split must stay clean"

    assert run("--restore", out, "--output", tmp_path / "restored") == 0
    assert files(tmp_path / "restored") == clean
    assert files(out) == noisy
    assert run("--restore", out) == 0
    assert files(out) == clean
    assert sorted(path.name for path in out.parent.iterdir()) == ["VOC2007"]


def test_copy_has_the_noise_of_training(devkit, tmp_path):
    assert run("--voc-root", devkit, "--output", tmp_path / "out", "--rate", 0.5, "--seed", 4) == 0
    records = load_voc_dataset(devkit, "trainval", CLASS_NAMES)
    noisy, _ = inject(records, [SymmetricNoise(rate=0.5, seed=4)], 20, "voc_2007_trainval")
    loaded = load_voc_dataset(tmp_path / "out", "trainval", CLASS_NAMES)
    labels = lambda rs: [[a["category_id"] for a in r["annotations"]] for r in rs]  # noqa: E731
    assert labels(loaded) == labels(noisy) != labels(records)


def test_same_seed_same_bytes_for_any_workers_and_order(devkit, tmp_path):
    outputs = []
    for i, workers in enumerate((1, 2, 8)):
        if i == 2:
            split = devkit / "ImageSets" / "Main" / "trainval.txt"
            split.write_text("\n".join(split.read_text().split()[::-1]) + "\n")
        out = tmp_path / f"out{i}"
        assert run("--voc-root", devkit, "--output", out, "--workers", workers, *NOISE) == 0
        outputs.append({k: v for k, v in files(out).items() if k.split("/")[0] != "ImageSets"})
        assert outputs[i]["manifest.jsonl"]
    assert outputs[0] == outputs[1] == outputs[2]
    assert run("--voc-root", devkit, "--output", tmp_path / "other", "--seed", 1, *NOISE) == 0
    assert files(tmp_path / "other")["manifest.jsonl"] != outputs[0]["manifest.jsonl"]


def test_class_names_may_have_spaces_around_them(devkit, tmp_path):
    spaced = " , ".join(CLASS_NAMES)
    out = tmp_path / "out"
    assert run("--voc-root", devkit, "--output", out, "--rate", 0.5, "--classes", spaced) == 0
    assert load_voc_dataset(out, "trainval", CLASS_NAMES)


def test_rate_zero_changes_nothing(devkit, tmp_path, capsys):
    assert run("--voc-root", devkit, "--output", tmp_path / "noisy", "--missing", 0.5) == 0
    assert "warning" not in capsys.readouterr().err
    assert run("--voc-root", devkit, "--output", tmp_path / "out") == 0
    assert "warning: --rate, --box-jitter, --missing and --spurious" in capsys.readouterr().err
    noisy = files(tmp_path / "out")
    assert noisy.pop("manifest.jsonl") == b""
    assert {k: v for k, v in noisy.items() if k.startswith("Annotations")} == {
        k: v for k, v in files(devkit).items() if k.startswith("Annotations")
    }


def test_coco_copy_and_back(tmp_path, capsys):
    annotations = [
        {"id": i, "image_id": i % 9, "category_id": 1 + i % 3, "bbox": [1.5, 2, 30 + i % 7, 20.25]}
        for i in range(90)
    ]
    content = {
        "images": [{"id": i, "height": 60, "width": 70, "file_name": f"{i}.jpg"} for i in range(9)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate("abc")],
        "annotations": annotations,
    }
    clean = tmp_path / "train.json"
    clean.write_text(json.dumps(content, indent=2))
    before = clean.read_bytes()
    out = tmp_path / "out"
    assert run("--coco-json", clean, "--output", out, *NOISE) == 0
    assert "noisy copy of train" in capsys.readouterr().out
    assert (out / "train.json").read_bytes() != before == clean.read_bytes()
    assert run("--restore", out) == 0
    assert files(out) == {"train.json": before}


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "broken link"])
def test_refuses_to_overwrite(devkit, tmp_path, capsys, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "broken link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        if kind == "folder":
            (out / "mine.txt").write_text("mine")
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 2
    assert f"{out} exists" in capsys.readouterr().err
    if kind == "folder":
        assert files(out) == {"mine.txt": b"mine"}


def test_an_error_half_way_leaves_nothing(devkit, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sl_detectron.label_noise.export.plot_confusion", fail)
    with pytest.raises(KeyboardInterrupt):
        run("--voc-root", devkit, "--output", tmp_path / "out", *NOISE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOC2007"]


@pytest.mark.parametrize(
    "step", ["devkit.voc_edits", "devkit.write_manifest", "export.plot_confusion"]
)
def test_killed_half_way_leaves_nothing_that_looks_finished(devkit, tmp_path, step):
    script = (
        "import os, signal, runpy\n"
        "from sl_detectron.data.formats import devkit\n"
        "from sl_detectron.label_noise import export\n"
        f"{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    )
    path = tmp_path / "killed.py"
    path.write_text(script)
    out = tmp_path / "noisy" / "VOC2007"
    args = ["--voc-root", str(devkit), "--output", str(out), *NOISE]
    program = Program(path, args, {**os.environ})
    printed = program.communicate()
    assert program.returncode == -9, printed
    assert not out.exists()
    assert all(path.name.startswith(".VOC2007.partial-") for path in out.parent.iterdir())


def test_a_copy_that_was_edited_is_not_restored(devkit, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 0
    line = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    file = out / "Annotations" / f"{line['image_id']}.xml"
    file.write_bytes(b" " + file.read_bytes())
    before = files(out)
    assert run("--restore", out) == 2
    assert f"{file} changed since it was written" in capsys.readouterr().err
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOC2007", "out"]


def test_a_manifest_cannot_lead_out_of_its_folder(devkit, tmp_path):
    out = tmp_path / "out"
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 0
    victim = tmp_path / "victim.xml"
    victim.write_text("mine")
    manifest = out / "manifest.jsonl"
    line = {**json.loads(manifest.read_text().splitlines()[0]), "image_id": "../../victim"}
    manifest.write_text(json.dumps({**line, "edits": [[0, "yours", "mine"]]}) + "\n")
    with pytest.raises(ValueError, match="was not written for its files"):
        restore_clean(out)
    assert victim.read_text() == "mine"


COPY_FILES = ("manifest.jsonl", "noise.json", "confusion.png")


def test_a_noisy_copy_is_no_source_and_stays_as_it_is(devkit, tmp_path, capsys):
    """A copy links to what its source holds, so its own files would go into the source."""
    noisy = tmp_path / "noisy"
    assert run("--voc-root", devkit, "--output", noisy, *NOISE) == 0
    before = files(noisy)
    assert run("--voc-root", noisy, "--output", tmp_path / "out", "--rate", 0.5, "--seed", 9) == 2
    assert f"{noisy / 'manifest.jsonl'} belongs to a noisy copy" in capsys.readouterr().err
    assert files(noisy) == before


@pytest.mark.parametrize("name", COPY_FILES)
def test_files_with_the_names_of_the_copys_own_are_refused(devkit, tmp_path, capsys, name):
    (devkit / name).write_text("mine")
    before = files(devkit)
    assert run("--voc-root", devkit, "--output", tmp_path / "out", *NOISE) == 2
    assert f"{devkit / name} belongs" in capsys.readouterr().err
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / name).write_text(json.dumps(content))
    assert run("--coco-json", tmp_path / name, "--output", tmp_path / "out") == 2
    assert f"needs the name {name}; rename" in capsys.readouterr().err
    assert files(devkit) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["VOC2007/noisy", "link/Annotations/noisy"])
def test_output_inside_the_source_is_refused(devkit, tmp_path, capsys, inside):
    (tmp_path / "link").symlink_to(devkit)
    before = files(devkit)
    assert run("--voc-root", devkit, "--output", tmp_path / inside, *NOISE) == 2
    assert "is only read; give a folder outside" in capsys.readouterr().err
    assert files(devkit) == before


def test_every_file_of_the_annotations_comes_back(devkit, tmp_path):
    annotations = devkit / "Annotations"
    (annotations / "000").write_text("a name that an image id has too")
    (annotations / "notes").mkdir()
    for name in (*COPY_FILES, "notes.txt", "notes/who.csv"):
        (annotations / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (annotations / "000.xml").rename(tmp_path / "elsewhere" / "000.xml")
    (annotations / "linked").symlink_to(tmp_path / "elsewhere")
    ids = devkit / "ImageSets" / "Main" / "trainval.txt"
    ids.write_text(ids.read_text().replace("000\n", "linked/000\n"))
    clean = files(devkit)
    assert run("--voc-root", devkit, "--output", tmp_path / "out", *NOISE) == 0
    assert run("--restore", tmp_path / "out") == 0
    assert files(tmp_path / "out") == files(devkit) == clean


@pytest.mark.parametrize("how", ["inside", "link"])
def test_restores_in_place_by_any_name(devkit, tmp_path, monkeypatch, how):
    out = tmp_path / "noisy" / "VOC2007"
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 0
    link = tmp_path / "link"
    link.symlink_to(out)
    if how == "inside":
        monkeypatch.chdir(out)
    assert run("--restore", "." if how == "inside" else link) == 0
    assert files(out) == files(devkit)
    assert link.resolve() == out
    assert link.is_symlink()
    assert [path.name for path in out.parent.iterdir()] == ["VOC2007"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOC2007", "link", "noisy"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_rename_leaves_the_noisy_copy(devkit, tmp_path, monkeypatch, failing):
    out = tmp_path / "out"
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 0
    before = files(out)
    rename, calls = Path.rename, []

    def fail_once(path, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(KeyboardInterrupt):
        restore_clean(out)
    assert files(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOC2007", "out"]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "noise.json is not JSON"),
        ("[]", 'noise.json must hold {"file"'),
        ("{}", "got None"),
        ('{"file": "../victim.xml"}', "got '../victim.xml'"),
        ('{"file": "VICTIM"}', "victim.xml'"),
        ('{"file": "linked.xml"}', "was not written for its files"),
    ],
)
def test_a_description_cannot_lead_out_of_its_folder(tmp_path, description, message):
    victim, out = tmp_path / "victim.xml", tmp_path / "out"
    victim.write_text("yours")
    out.mkdir()
    (out / "linked.xml").symlink_to(victim)
    (out / "noise.json").write_text(description.replace("VICTIM", str(victim)))
    change = {"dataset": "d", "image_id": "a", "annotation": 0, "what": "label"}
    line = {**change, "old": "cat", "new": "dog", "edits": [[0, "mine", "yours"]]}
    (out / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=message):
        restore_clean(out)
    assert victim.read_text() == "yours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim.xml"]


@pytest.mark.parametrize("edits", [1, [1], [[0, "a"]], [[0, 1, "a"]], [[0, "a", "\u20ac"]]])
def test_bad_edits_are_named(devkit, tmp_path, edits):
    out = tmp_path / "out"
    assert run("--voc-root", devkit, "--output", out, *NOISE) == 0
    manifest = out / "manifest.jsonl"
    line = json.loads(manifest.read_text().splitlines()[0])
    manifest.write_text(json.dumps({**line, "edits": edits}) + "\n")
    with pytest.raises(ValueError, match=r"manifest.jsonl, line 1: edits must be"):
        restore_clean(out)


def test_image_ids_are_plain_names(devkit, tmp_path, capsys):
    ids = devkit / "ImageSets" / "Main" / "trainval.txt"
    ids.write_text("./001\n002\n")
    assert run("--voc-root", devkit, "--output", tmp_path / "out", *NOISE) == 2
    assert "write image id './001' as '001'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--voc-root", "nowhere"], "nowhere"),
        (["--voc-root", "VOC2007", "--split", "minival"], "minival"),
        (["--voc-root", "VOC2007", "--rate", "1.5"], "RATE must be in [0, 1]; got 1.5"),
        (
            ["--voc-root", "VOC2007", "--classes", "a,b", "--rate", "0.1"],
            "has no object of the classes 'a', 'b'; it has ",
        ),
        (["--voc-root", "VOC2007", "--workers", "0"], "workers must be at least 1"),
        (["--coco-json", "nowhere.json"], "no COCO json at nowhere.json"),
        (["--restore", "VOC2007"], "it is not a complete noisy copy"),
    ],
)
def test_bad_input_is_named(devkit, monkeypatch, capsys, args, message):
    monkeypatch.chdir(devkit.parent)
    assert run(*args, "--output", "out") == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in devkit.parent.iterdir()) == ["VOC2007"]


@pytest.fixture(scope="module")
def real_devkit(tmp_path_factory):
    """All XML files of VOC 2007, and an image set of them all."""
    data = Path(os.environ.get("DETECTRON2_DATASETS", REPO.parent / "shared" / "data"))
    archive = data / "voc07_reference.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {data}; set DETECTRON2_DATASETS to run this test")
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [m for m in tar if "/Annotations/" in m.name], filter="data")
    devkit = folder / "voc07_reference" / "VOC2007"
    (devkit / "ImageSets" / "Main").mkdir(parents=True)
    all_ids = "\n".join(sorted(path.stem for path in (devkit / "Annotations").iterdir()))
    (devkit / "ImageSets" / "Main" / "all.txt").write_text(all_ids)
    return devkit


def test_every_real_annotation_file_comes_back(real_devkit, tmp_path):
    out = tmp_path / "out"
    clean = files(real_devkit)
    assert len(clean) == 9963 + 1
    assert run("--voc-root", real_devkit, "--split", "all", "--output", out, *NOISE) == 0
    noisy = files(out)
    assert sum(noisy[name] != clean[name] for name in clean) > 7000
    assert run("--restore", out) == 0
    assert files(out) == clean


@pytest.fixture(scope="module")
def real_records(real_devkit):
    return load_voc_dataset(real_devkit, "all", CLASS_NAMES, require_images=False)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_wrong_labels_of_real_annotations_are_uniform(real_records, rate, seed):
    """All 30,638 annotations with the first seed, a fifth of the images with each other."""
    records = real_records[seed::5] if seed else real_records
    total = sum(len(record["annotations"]) for record in records)
    _, changes = inject(records, [SymmetricNoise(rate=rate, seed=seed)], 20, "voc_2007_all")
    assert abs(len(changes) - rate * total) < 5 * math.sqrt(total * rate * (1 - rate))
    confusion = noise_statistics(records, changes, 20).confusion[:-1, :-1]
    assert uniformity_test(confusion)[2] > 1e-6
