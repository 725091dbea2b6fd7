"""Options and fixtures of all tests; helpers/ has what they import."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from detectron2.data import MetadataCatalog

from helpers import REPO
from sl_detectron.data import toy

TESTS = Path(__file__).parent
collect_ignore = ["helpers"]

# Marked `slow`, which `make check` leaves out: tests that train or build many detectors, start
# processes, compile or drive a browser. Beginnings of folder/file::test below tests/.
SLOW = (
    *("commands/test_demo.py", "tools/", "sweep/test_runner.py", "sweep/test_jobs.py"),
    *("sweep/test_run.py", "sweep/test_plan.py", "sweep/test_cluster.py"),
    *("engine/test_launch.py", "engine/test_lazy.py", "engine/test_long_run.py"),
    *("engine/test_resume.py", "engine/test_trainer.py", "engine/test_label_correction.py"),
    *("audit/test_report.py", "audit/test_run.py", "audit/test_tracker.py"),
    *("losses/test_battery.py", "losses/test_compile.py", "losses/test_superloss_transforms.py"),
    "engine/test_hooks.py::test_training_images_show_noise_and_confidence",
    *("modeling/test_matrix.py", "modeling/test_point_rend.py", "modeling/test_export.py"),
    *("modeling/test_class_targets.py", "modeling/test_custom_predictors.py", "data/test_toy.py"),
    *("modeling/test_host_trips.py", "modeling/test_changed_losses.py", "rivals/"),
    *("modeling/test_frozen_trunk.py", "modeling/test_efficientnet_lite.py"),
    "evaluation/test_evaluator.py::test_predictions_of_two_processes",
    "evaluation/test_evaluator.py::test_equals_detectron2_on_random_sets",
    "label_noise/test_injection.py::test_python_hash_seed",
    *("test_docs.py", "test_extending.py", "test_field_cases.py", "test_fuzz_data.py"),
    *("test_hostile.py", "test_packaging.py", "test_readme.py"),
)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run also what takes minutes each")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.is_relative_to(TESTS):
            path = item.path.relative_to(TESTS).as_posix()
            if f"{path}::{item.name}".startswith(SLOW):
                item.add_marker(pytest.mark.slow)
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="takes minutes: run with --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs CUDA: torch sees no GPU here")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def datasets_root() -> Path:
    """The folder with real VOC images; tests that need it skip where it is absent."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", REPO.parent / "shared" / "data"))
    if not (root / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").is_file():
        pytest.skip(f"no VOC2007 devkit in {root}; set DETECTRON2_DATASETS to run this test")
    return root


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory) -> Path:
    """A small toy set, for all tests to read; image sets of other names may be added."""
    with patch.object(toy, "TOY_SPLITS", {"train": 200, "test": 12}):
        return toy.make_toy_dataset(tmp_path_factory.mktemp("datasets") / "toy_digits")


@pytest.fixture(scope="session")
def toy_env(toy_root) -> dict[str, str]:
    """The environment of a training on the toy set, on one thread."""
    return {**os.environ, "DETECTRON2_DATASETS": str(toy_root.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def coco_name():
    """A name for detectron2's ``load_coco_json``, which registers it."""
    yield "noise_files_coco"
    MetadataCatalog.remove("noise_files_coco")
