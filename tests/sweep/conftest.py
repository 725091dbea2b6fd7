"""Sets and results that several modules of these tests use."""

import pytest
import yaml

from helpers.grid_cases import AP50, RESULTS_GRID, make_tiny_set, write_results, write_tiny_grid


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep") / "toy_digits"
    make_tiny_set(root)
    return root


@pytest.fixture(scope="session")
def grid_file(tiny_root):
    return write_tiny_grid(tiny_root.parent / "grid.yaml", tiny_root)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RESULTS_GRID, sort_keys=False))
    values = {
        (*key, seed): value
        for key, row in AP50.items()
        for seed, value in enumerate(row)
        if value is not None
    }
    write_results(path, tmp_path / "output", values)
    return tmp_path / "output"
