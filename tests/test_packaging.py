"""sdist, wheel and installation: what they carry, and that the tools run from them alone."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
import yaml

import sl_detectron
from helpers import REPO

SOURCE_FOLDERS = ("sl_detectron", "configs", "tools", "tests")
SOURCE_FILES = ("setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
# Without the PYTHONPATH of a developer.
CLEAN = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(command, **kwargs):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    # A copy, because building leaves folders in the source tree.
    source = tmp_path_factory.mktemp("source")
    generated = shutil.ignore_patterns("__pycache__")
    for name in SOURCE_FOLDERS:
        shutil.copytree(REPO / name, source / name, ignore=generated)
    for name in SOURCE_FILES:
        shutil.copy(REPO / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    run([sys.executable, "-c", build], cwd=source)
    (path,) = source.glob("dist/sl_detectron-*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Built from the sdist, so that it shows what the sdist lacks."""
    folder = tmp_path_factory.mktemp("wheel")
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, sdist])
    (path,) = folder.glob("sl_detectron-*.whl")
    return path


def empty_environment(folder):
    """A new environment that sees the packages of this one, but not its sl_detectron."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    # A plain path: the .pth files in it, which editable installs leave, are not read.
    (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of an environment in which the wheel is installed."""
    binaries = empty_environment(tmp_path_factory.mktemp("environment"))
    python = ["--python", binaries / "python"]
    run([*PIP, *python, "install", "--no-deps", "--ignore-installed", wheel])
    return binaries


def test_wheel_has_all_that_runs_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"sl_detectron/py.typed"}
    wanted |= {p.relative_to(REPO).as_posix() for p in REPO.glob("sl_detectron/**/*.py")}
    wanted |= {p.relative_to(REPO).as_posix() for p in REPO.glob("sl_detectron/*/page/*")}
    for pattern in ("configs/**/*.yaml", "configs/**/*.py", "tools/*.py"):
        wanted |= {f"sl_detectron/{p.relative_to(REPO).as_posix()}" for p in REPO.glob(pattern)}
    assert {n for n in names if ".dist-info/" not in n} == wanted
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_sdist_has_no_tests_but_the_papers(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not any(n.startswith(("tests", ".ci")) for n in names)


def test_one_version(sdist):
    version = sl_detectron.__version__
    assert sdist.name == f"sl_detectron-{version}.tar.gz"
    assert f"## {version}" in (REPO / "CHANGELOG.md").read_text()
    files = [REPO / "setup.py", *REPO.glob("sl_detectron/**/*.py"), *REPO.glob("tools/**/*.py")]
    found = [p for p in files if re.search(re.escape(version), p.read_text())]
    assert found == [REPO / "sl_detectron" / "__init__.py"]
    assert "version" not in yaml.safe_load((REPO / "CITATION.cff").read_text())


def test_every_console_script_has_its_tool(installed):
    (info,) = installed.parent.glob("lib/*/site-packages/sl_detectron-*.dist-info")
    scripts = importlib.metadata.PathDistribution(info).entry_points
    assert {s.name for s in scripts} == {
        *("sl-train", "sl-demo", "sl-inject-noise", "sl-evaluate-voc", "sl-audit"),
        *("sl-visualize", "sl-sweep", "sl-make-table", "sl-check"),
    }
    assert all((installed / s.name).is_file() for s in scripts)
    load = "\n".join(f"from {s.module} import {s.attr}; assert callable({s.attr})" for s in scripts)
    where = "import sl_detectron; print(sl_detectron.__file__)"
    command = [installed / "python", "-W", "ignore", "-c", f"{load}\n{where}"]
    done = run(command, cwd=installed, env=CLEAN)
    assert str(installed.parent) in done.stdout


def test_trains_in_an_empty_folder_without_a_warning(installed, tmp_path):
    tiny = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", "out"]
    command = ["--config-file", "Toy/faster_rcnn_superloss.yaml", *tiny, "DATASETS.TEST", "()"]
    done = run([installed / "sl-train", *command], cwd=tmp_path, env=CLEAN)
    assert (tmp_path / "out" / "label_audit.json").is_file()
    assert (tmp_path / "datasets" / "toy_digits").is_dir()
    assert done.stderr == ""


def test_editable_install_has_the_tools(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("sl_detectron-*")
    binaries = empty_environment(tmp_path / "environment")
    python = ["--python", binaries / "python"]
    options = ["--no-deps", "--ignore-installed", "--no-build-isolation"]
    run([*PIP, *python, "install", *options, "-e", source])
    done = run([binaries / "sl-train", "--help"], cwd=tmp_path, env=CLEAN)
    assert "\n    sl-train --config-file Toy/" in done.stdout
    assert done.stderr == ""
