"""Every command and every Python block of the README and of docs/ runs, at tiny settings.

The commands run in the order of the page in one folder, in this process. Commands in other blocks
are only parsed. What replaces what is in
``REPLACED`` and ``ADDED``, what is not run in ``NOT_RUN``. Blocks of YAML whose first line is a
comment with a file name become that file.
"""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.modeling import StandardROIHeads, build_model

from helpers import REPO, load_tool
from helpers.detectors import build, small_config
from sl_detectron import add_superloss_config
from sl_detectron.audit import decisions_above, read_audit
from sl_detectron.audit.decisions import write_decisions
from sl_detectron.cli import CONSOLE_SCRIPTS
from sl_detectron.data import load_voc_dataset, make_toy_dataset, register_toy_datasets, toy
from sl_detectron.data.toy import TOY_CLASS_NAMES

R50 = "PascalVOC-Detection/faster_rcnn_R_50_FPN_superloss"
# ImageNet weights and GPUs are not at hand.
REPLACED = {
    f"{R50}_noisy.yaml": "Toy/faster_rcnn_superloss.yaml",
    f"{R50}.yaml": "Toy/faster_rcnn_superloss.yaml",
    "--num-gpus 8": "--num-gpus 1",
    # Of the toy config's backbone, which has none.
    "--from-features": "--from-features --opts MODEL.WEIGHTS toy_weights.pth",
    "CORRECTION.FROM_FEATURES True": "CORRECTION.FROM_FEATURES True MODEL.WEIGHTS toy_weights.pth",
    # Other than the config that it stands for, the toy one has noise.
    '  TRAIN: ("birds_train",)': '  TRAIN: ("birds_train",)\n  LABEL_NOISE: {RATE: 0.0}',
}
TINY = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()"]
ADDED = {
    "sl-train": [*TINY, "DATASETS.TEST", "()"],
    "sl-visualize": ["--num", "1"],
    "sl-sweep": ["--dry-run"],
}
# They need a network or its data, or are what runs this test.
NOT_RUN = ("pip install ", "pip download ", "make ", "sl-train --config-file DeepPCB-Detection/")
SPLITS = {"train": 12, "test": 6}


def blocks(page: str, language: str) -> list[str]:
    return blocks_of((REPO / page).read_text(), language)


def blocks_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    joined = "".join(blocks(page, "bash")).replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line.split("  #")[0]).strip() for line in joined.splitlines()]


def scripts() -> dict[str, Path]:
    """{console script: its tool}, as in setup.py."""
    return {script: REPO / f"tools/{tool}.py" for tool, script in CONSOLE_SCRIPTS.items()}


def replace(text: str) -> str:
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    return text


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty folder of a user's, with the data that the pages speak of."""
    monkeypatch.setattr(toy, "TOY_SPLITS", SPLITS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPO / "configs")
    # Not setup_cfg, which makes the toy set too.
    cfg = get_cfg()
    add_superloss_config(cfg)
    cfg.merge_from_file(str(REPO / "configs/Toy/faster_rcnn_superloss.yaml"))
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "toy_weights.pth")
    known = {n: (DatasetCatalog[n], MetadataCatalog.get(n)) for n in list(DatasetCatalog)}
    for split in SPLITS:
        DatasetCatalog.pop(f"toy_digits_{split}")
        MetadataCatalog.pop(f"toy_digits_{split}")
    register_toy_datasets(tmp_path / "datasets" / "toy_digits")
    yield tmp_path
    forget_sets_but(())
    for name, (loader, metadata) in known.items():
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


def forget_sets_but(known) -> None:
    for name in set(DatasetCatalog) - set(known):
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)


def voc_folder(root: Path, class_names, splits: dict[str, str]) -> None:
    """The toy set with classes and splits of other names."""
    make_toy_dataset(root)
    for path in (root / "Annotations").glob("*.xml"):
        text = path.read_text()
        for i, name in enumerate(TOY_CLASS_NAMES):
            new = class_names[i % len(class_names)]
            text = text.replace(f"<name>{name}<", f"<name>{new}<")
        path.write_text(text)
    for old, new in splits.items():
        (root / "ImageSets/Main" / f"{old}.txt").rename(root / "ImageSets/Main" / f"{new}.txt")


def write_yaml_blocks(page: str) -> None:
    for block in blocks(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", block)
        assert name, f"{page}: a YAML block does not say which file it is"
        Path(name[1]).write_text(replace(block))


def run(command: str, monkeypatch) -> None:
    program, *args = shlex.split(replace(command))
    args += [] if "--curves" in args else ADDED.get(program, [])
    if program == "python":
        assert args[0] == "-c"
        exec(args[1], {})
    elif program == "sed":
        subprocess.run([program, *args], check=True)
    else:
        known = set(DatasetCatalog)
        tool = scripts()[program]
        monkeypatch.setattr(sys, "argv", [program, *args])
        spec = importlib.util.spec_from_file_location(tool.stem, tool)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.cli() == 0, command
        forget_sets_but(known)


def test_readme_commands(project, monkeypatch):
    voc_folder(project / "data/birds", ["robin", "wren"], {"test": "val"})
    write_yaml_blocks("README.md")
    # A stock detector of the same shape as what has been trained by then.
    stock = '_BASE_: "birds.yaml"\nMODEL: {ROI_HEADS: {NAME: "StandardROIHeads"}}\n'
    (project / "my.yaml").write_text(stock)
    for command in commands("README.md"):
        if command.startswith(NOT_RUN):
            continue
        if "model_final.pth" in command:
            (project / "model_final.pth").symlink_to(project / "output/model_final.pth")
        elif "decisions.json" in command:
            # The report saves it in a browser.
            audit = read_audit("output/label_audit.json")
            write_decisions(decisions_above(audit, 0.501), "decisions.json")
        run(command, monkeypatch)
    assert (project / "audit/index.html").is_file()
    assert (project / "corrected").is_dir()


def test_every_command_has_a_row_in_the_readme():
    table = (REPO / "README.md").read_text().split("## Which command")[1].split("\n## ")[0]
    assert set(re.findall(r"`(sl-[\w-]+)", table)) == set(CONSOLE_SCRIPTS.values())


def test_readme_is_short_and_shows_code_early():
    lines = (REPO / "README.md").read_text().splitlines()
    assert len(lines) <= 220
    assert lines.index("```python") < 40


def test_use_commands(project, monkeypatch):
    voc_folder(project / "data/birds", ["robin", "wren"], {"test": "val"})
    write_yaml_blocks("docs/use.md")
    for command in commands("docs/use.md"):
        run(command, monkeypatch)
    assert (project / "output/model_final.pth").is_file()
    assert list((project / "pictures").glob("0000_*.png"))
    assert (project / "pictures/curves.png").is_file()


def test_evidence_commands(project, monkeypatch, capsys):
    grid = REPO / "configs/Sweep/table5.yaml"
    (project / "output/table5").mkdir(parents=True)
    (project / "output/table5/grid.yaml").write_text(grid.read_text())
    for command in commands("docs/evidence.md"):
        run(command, monkeypatch)
    assert (project / "output/table5/table.md").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("sl-train ") for line in lines) == 72


def test_label_noise_and_evaluation_commands(project, monkeypatch):
    voc_folder(project / "VOC2007", CLASS_NAMES, {"train": "trainval"})
    (project / "results").mkdir()
    for name in CLASS_NAMES:
        (project / "results" / f"comp4_det_test_{name}.txt").touch()
    # What a training run on these classes leaves.
    cfg = small_config("retinanet", superloss=False)
    cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASS_NAMES)
    Path("output").mkdir(exist_ok=True)
    Path("output/config.yaml").write_text(cfg.dump())
    torch.save({"model": build(cfg).state_dict()}, "output/model_final.pth")
    for command in commands("docs/label_noise.md") + commands("docs/evaluation.md"):
        run(command, monkeypatch)
    assert (project / "out.json").is_file()
    same = [p.read_bytes() for p in sorted((project / "clean/VOC2007/Annotations").iterdir())]
    assert same == [p.read_bytes() for p in sorted((project / "VOC2007/Annotations").iterdir())]


def test_audit_commands(project, monkeypatch):
    write_yaml_blocks("docs/tutorial_audit.md")
    monkeypatch.setitem(REPLACED, "--correct-above 0.8", "--correct-above 0.501")
    tutorial = [c for c in commands("docs/tutorial_audit.md") if not c.startswith("sl-visualize")]
    for command in tutorial[:3] + commands("docs/audit.md"):
        run(command, monkeypatch)
    assert (project / "audit_of_detector/index.html").is_file()
    assert (project / "audit_corrected/corrected/my_digits/corrections.jsonl").is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets(page):
    targets = [c.split()[1] for c in commands(page) if c.startswith("make ")]
    assert targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=REPO, check=True, stdout=subprocess.DEVNULL)


def test_tutorial_commands(project, monkeypatch):
    write_yaml_blocks("docs/tutorial_audit.md")
    # The toy run of two iterations is sure of nothing: half as suspect is enough to correct.
    monkeypatch.setitem(REPLACED, "--correct-above 0.8", "--correct-above 0.501")
    for command in commands("docs/tutorial_audit.md"):
        run(command, monkeypatch)
    for folder in ("pictures/before", "pictures/after"):
        assert list((project / folder).glob("*.png"))
    assert (project / "output/corrected/label_audit.json").is_file()
    assert (project / "audit/corrected/my_digits/corrections.jsonl").read_text()
    assert "ROOT: audit/corrected/my_digits" in (project / "my_digits.yaml").read_text()


def write_coco(voc: Path, path: Path) -> None:
    """A VOC folder's training split as COCO json."""
    records = load_voc_dataset(voc, "train", ["robin", "wren"])
    images, annotations = [], []
    for number, record in enumerate(records):
        file_name = Path(record["file_name"]).name
        size = {key: record[key] for key in ("width", "height")}
        images.append({"id": number, "file_name": file_name, **size})
        for a in record["annotations"]:
            x0, y0, x1, y1 = a["bbox"]
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            more = {"image_id": number, "category_id": a["category_id"] + 1, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **box, **more})
    categories = [{"id": 1, "name": "robin"}, {"id": 2, "name": "wren"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def test_no_page_has_commands_that_are_not_run():
    # docs/results/ says how long trainings were made; tools/ tests run what it names.
    pages = {p.relative_to(REPO).as_posix() for p in (REPO / "docs").glob("*.md")}
    with_commands = {page for page in pages if blocks(page, "bash")}
    assert with_commands <= {
        *("docs/tutorial_audit.md", "docs/label_correction.md", "docs/audit.md", "docs/use.md"),
        *("docs/configs.md", "docs/sweep.md", "docs/evidence.md"),
        *("docs/label_noise.md", "docs/evaluation.md"),
    }


def test_commands_that_are_only_shown_have_options_that_exist(monkeypatch):
    """In blocks of text and indented ones: parsed, not run."""
    shown = []
    for page in sorted((REPO / "docs").glob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        indented = re.findall(r"^    (sl-.*)", text, flags=re.MULTILINE)
        lines = "".join(blocks_of(text, "text")).splitlines()
        shown += [*indented, *(line for line in lines if line.startswith("sl-"))]
    assert shown
    for command in shown:
        program, *args = shlex.split(command)
        tool = load_tool(scripts()[program].stem)
        monkeypatch.setattr(tool, "run_tool", lambda main, args: 0)
        monkeypatch.setattr(sys, "argv", [program, *args])
        assert tool.cli() == 0, command


def test_label_correction_commands(project, monkeypatch):
    # Features of a detector that was trained for two iterations tell nothing.
    monkeypatch.setattr("sl_detectron.commands.audit.LEAST_GAIN", -100.0)
    voc_folder(project / "data/birds", ["robin", "wren"], {"test": "val"})
    write_yaml_blocks("README.md")
    write_yaml_blocks("docs/tutorial_audit.md")
    for command in commands("docs/tutorial_audit.md")[:2] + commands("docs/label_correction.md"):
        run(command, monkeypatch)
    assert (project / "output/round_0/class_targets.pth").is_file()
    assert (project / "output/my_digits/round_1/class_targets.pth").is_file()
    assert (project / "fixed/corrected/my_digits/corrections.jsonl").read_text()
    assert "ROOT: fixed/corrected/my_digits" in (project / "my_digits.yaml").read_text()
    assert (project / "output/second/model_final.pth").is_file()


def test_configs_commands(project, monkeypatch, capsys):
    for command in commands("docs/configs.md"):
        if not command.startswith(NOT_RUN):
            run(command, monkeypatch)
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_sweep_commands(project, monkeypatch, capsys):
    write_yaml_blocks("docs/sweep.md")
    # The folders of sweeps that have trained nothing yet.
    for name in ("mine", "table5"):
        (project / "output" / name).mkdir(parents=True)
        grid_file = project / "output" / name / "grid.yaml"
        grid_file.write_text((project / "my_grid.yaml").read_text())
    for command in commands("docs/sweep.md"):
        if not command.startswith(NOT_RUN):
            run(command, monkeypatch)
    assert "18 of 18 runs are missing" in (project / "output/mine/table.md").read_text()
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("sl-train ") for line in lines) == 18 + 72 + 72


class MyROIHeads(StandardROIHeads):
    """Somebody's own."""


def run_python_blocks(page, names):
    """Run the blocks of a page, one after another, with the shipped schedule cut short."""
    for block in blocks(page, "python"):
        block = replace(block)
        if "get_config" in block and "SuperLossTrainer" in block:
            block = block.replace(
                "cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2\n",
                "cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2\ncfg.merge_from_list(TINY)\n",
            )
            names["TINY"] = TINY
        exec(compile(block, page, "exec"), names)


def my_config() -> None:
    keys = "SOLVER: {MAX_ITER: 1, IMS_PER_BATCH: 1, STEPS: []}\nDATASETS: {TEST: []}\n"
    Path("my_config.yaml").write_text('_BASE_: "configs/Toy/faster_rcnn.yaml"\n' + keys)


def test_readme_python(project):
    my_config()
    names = {"MyROIHeads": MyROIHeads, "logits": torch.zeros(2, 3), "labels": torch.tensor([0, 2])}
    run_python_blocks("README.md", names)
    assert names["cfg"].MODEL.ROI_HEADS.NAME == "SuperLossMyROIHeads"
    assert names["loss"].isfinite()


def test_use_python(project):
    voc_folder(project / "data/birds", ["robin", "wren"], {})
    write_coco(project / "data/birds", project / "data/birds.json")
    my_config()
    names = {}
    run_python_blocks("docs/use.md", names)
    assert names["cfg"].MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert type(instantiate(names["model"]).roi_heads).__name__ == "SuperLossStandardROIHeads"
