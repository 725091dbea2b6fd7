"""The whole package: who imports whom, what importing it does, what it says without detectron2."""

import ast
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from helpers import REPO
from sl_detectron.config import add_superloss_config, config_keys

PACKAGE = REPO / "sl_detectron"
# The floors of the package from the ground up: which parts a part may import.
ALLOWED: dict[str, set[str]] = {
    "losses": set(),
    "cli": set(),
    "files": set(),
    "config": set(),
    "model_zoo": {"config"},
    "checkpoint": {"files"},
    "modeling": {"losses", "files", "config"},
    "data": {"files"},
    "label_noise": {"data", "files", "config"},
    "evaluation": {"data", "files"},
    "audit": {"label_noise", "data", "checkpoint", "losses", "files", "config"},
    "visualization": {"data", "files"},
    # Methods of other papers: they change what the heads of modeling are trained on.
    "rivals": {"modeling", "audit", "losses", "config"},
}
ALLOWED["engine"] = {*ALLOWED}
ALLOWED["sweep"] = {*ALLOWED["engine"], "engine"}
ALLOWED["commands"] = {*ALLOWED["sweep"], "sweep"}
SOURCES = sorted(PACKAGE.rglob("*.py"))
ARCHITECTURE = (REPO / "docs" / "architecture.md").read_text()


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, relative imports resolved."""
    package = ("sl_detectron", *path.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module} if node.module else {f"{module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_rules(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imported_modules(path)
    assert not any(n.split(".")[0] == "tools" for n in names)
    # `from sl_detectron import x` would hide which part it takes x from.
    assert "sl_detectron" not in names
    ours = {n.split(".")[1] for n in names if n.startswith("sl_detectron.")}
    if part != "__init__":
        assert ours - {part} <= ALLOWED[part]
    if part == "losses":
        foreign = {n.split(".")[0] for n in names} - {"torch", "sl_detectron"}
        assert foreign <= set(sys.stdlib_module_names)


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=REPO
    )


HIDE_DETECTRON2 = "import sys; sys.modules['detectron2'] = None\n"


def test_losses_need_torch_only():
    done = run_python(
        HIDE_DETECTRON2 + "from sl_detectron.losses import SuperLoss; import torch\n"
        "print(SuperLoss(1.0)(torch.ones(2)).shape)\n"
        "print({'fvcore', 'scipy', 'numpy.f2py', 'pycocotools'} & set(sys.modules))"
    )
    assert done.stdout == "torch.Size([2])\nset()\n", done.stderr


def test_without_detectron2_says_how_to_get_it():
    done = run_python(HIDE_DETECTRON2 + "from sl_detectron import SuperLossTrainer")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: sl_detectron.SuperLossTrainer needs detectron2")
    assert "pip install" in last


def test_import_registers_and_changes_no_default():
    done = run_python(
        "from detectron2.config import get_cfg\n"
        "from detectron2.data import DatasetCatalog\n"
        "before, known = get_cfg().dump(), set(DatasetCatalog)\n"
        "import sl_detectron\n"
        "assert get_cfg().dump() == before\n"
        "from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY\n"
        "print(sorted(n for n, _ in [*META_ARCH_REGISTRY, *ROI_HEADS_REGISTRY] if 'Super' in n))\n"
        "print(sorted(set(DatasetCatalog) - known))\n"
        "print(all(hasattr(sl_detectron, n) for n in sl_detectron.__all__))"
    )
    heads = ["Cascade", "R", "Res5", "Standard"]
    registered = sorted(["SuperLossRetinaNet", *(f"SuperLoss{h}ROIHeads" for h in heads)])
    datasets = ["toy_digits_test", "toy_digits_train"]
    assert done.stdout == f"{registered}\n{datasets}\nTrue\n", done.stderr


def test_architecture_draws_the_layers():
    """Each line of the diagram against ALLOWED; a line that begins with spaces goes on."""
    diagram = re.search(r"```text\n(.*?)```", ARCHITECTURE, flags=re.DOTALL)[1]
    lines = re.sub(r"\n {9,}", " ", diagram).splitlines()
    rows = [re.fullmatch(r"(\w+) .* <- (.+)", line) for line in lines if " <- " in line]
    drawn: dict[str, set[str]] = {}
    for name, imports in (row.groups() for row in reversed(rows)):
        everything = {"everything below": {*drawn}, "nothing": set()}
        drawn[name] = everything.get(imports, set(imports.split()))
    assert drawn == ALLOWED


def is_in_the_code(name: str) -> bool:
    """Whether it is a config key, a path, or a module, class or function below sl_detectron."""
    if name.isupper():
        cfg = get_cfg()
        add_superloss_config(cfg)
        return name in config_keys(cfg)
    return (REPO / name).exists() or pydoc.locate(f"sl_detectron.{name}") is not None


def test_architecture_names_what_is_there():
    text = re.sub(r"```.*?```", "", ARCHITECTURE, flags=re.DOTALL)
    stale = [name for name in re.findall(r"`([^`\n]+)`", text) if not is_in_the_code(name)]
    assert not stale, f"docs/architecture.md names what is not in the code: {stale}"
    for section in text.split("\n## ")[2:]:
        lines = section.split("\n", 1)[1].strip().splitlines()
        assert len(lines) <= 8, section
