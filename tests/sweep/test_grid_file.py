"""Grid files: bad ones are refused in one line that names file, method and key."""

import pytest
import yaml

from helpers.grid_cases import ONE_METHOD, method
from sl_detectron.sweep import read_grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nois": [0.1]}, r"unknown key 'nois'; did you mean 'noise'\?"),
        ({"noise": [1.5]}, r"noise: must be a list of different fractions.*\[1\.5\]"),
        ({"noise": 0.4}, r"noise: must be a list"),
        ({"seeds": [0, 0]}, r"seeds: must be a list of different integers"),
        ({"seeds": [-1]}, r"seeds: "),
        ({"seeds": [True]}, r"seeds: .*\[True\]"),
        ({"seeds": []}, r"seeds: "),
        ({"baseline": "basline"}, r"no method has the name 'basline'; did you mean 'baseline'\?"),
        ({"baseline": ["baseline"]}, r"baseline, controls: must be names.*\['baseline'\]"),
        ({"controls": [{"a": 1}]}, r"baseline, controls: must be names"),
        ({"baseline": 1}, r"no method has the name '1'"),
        (
            {"baseline": "a", "detectors": {d: {d: {"config": "x"}} for d in "ab"}},
            r"baseline: b has no method 'a'",
        ),
        ({"noise": [0.3333333, 0.3333334]}, r"noise: 0\.3333333 and 0\.3333334 are too near"),
        ({"detectors": {}}, r"detectors: must be"),
        ({"detectors": {"RetinaNet": []}}, r"RetinaNet: must be \{method"),
        (
            method(confg="x"),
            r"RetinaNet, baseline: unknown key 'confg'; did you mean 'config'\?",
        ),
        ({"detectors": {"RetinaNet": {"a": {}}}}, r"RetinaNet, a: has no key 'config'"),
        (method(opts=["SOLVER.MAX_ITER"]), r"RetinaNet, baseline, opts: must be \[KEY, VALUE"),
        (
            method(opts=["SEED", 1]),
            r"RetinaNet, baseline, opts: SEED is set by the grid itself",
        ),
        (
            method(paper={"AP": [1.0]}),
            r"baseline, paper, AP: must have one value for each of the 2",
        ),
        (
            method(paper={"AP": ["1", "x"]}),
            r"paper, AP: must be a number or 54\.9±0\.5; got 'x'",
        ),
        (method(paper={"AP": ["1", "1 2"]}), r"paper, AP: must be a number .*; got '1 2'"),
        (method(paper={"AP5": [1, 2]}), r"unknown key 'AP5'; did you mean"),
        (
            {"detectors": {"R": {"a b": {"config": "x"}, "a-b": {"config": "x"}}}},
            r"R, a-b: needs a unique name.* R, a b",
        ),
    ],
)
def test_bad_grids_are_refused_by_method_and_key(changes, message, tmp_path):
    path = tmp_path / "my_grid.yaml"
    path.write_text(yaml.safe_dump({**ONE_METHOD, **changes}))
    with pytest.raises(ValueError, match=message) as caught:
        read_grid(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_names_that_yaml_does_not_read_as_text(tmp_path):
    path = tmp_path / "my_grid.yaml"
    methods = "{7: {config: x}, yes: {config: x}, no: {config: x}}"
    text = "noise: [0.0]\nseeds: [0]\nbaseline: {}\ncontrols: [yes]\ndetectors: {{a: {}}}\n"
    for name in ("7", "no"):
        path.write_text(text.format(name, methods))
        grid = read_grid(path)
        first, second = grid.references
        assert {first, second} < {method.name for method in grid.methods}


def test_a_reference_that_is_named_twice_is_one(tmp_path):
    path = tmp_path / "my_grid.yaml"
    twice = {"baseline": "baseline", "controls": ["baseline"]}
    path.write_text(yaml.safe_dump({**ONE_METHOD, **twice}))
    assert read_grid(path).references == ("baseline",)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.GAMMA", "1", "SEED", "3"], "options: SEED is set by the grid itself"),
        (["OUTPUT_DIR", "x"], "options: OUTPUT_DIR is set by the grid itself"),
        (["SOLVER.GAMMA"], r"options: must be \[KEY, VALUE"),
    ],
)
def test_options_that_runs_set_are_refused(opts, message, tmp_path):
    path = tmp_path / "my_grid.yaml"
    path.write_text(yaml.safe_dump(ONE_METHOD))
    with pytest.raises(ValueError, match=message):
        read_grid(path, opts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"noise: [", "not a YAML file"),
        (b"a: 1\na: 2\n", "'a' is there twice"),
        ("source: 1±0".encode("latin-1"), "not a YAML file: 'utf-8' codec"),
    ],
)
def test_files_that_are_no_grid(text, message, tmp_path):
    path = tmp_path / "my_grid.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"my_grid\.yaml: .*{message}"):
        read_grid(path)


def test_a_method_may_begin_as_another(tmp_path):
    """A merge key is no key that is there twice."""
    path = tmp_path / "my_grid.yaml"
    path.write_text(
        "noise: [0.4]\nseeds: [0]\nsource:\ndetectors:\n  R:\n"
        "    first: &a {config: Toy/retinanet.yaml, opts: [SOLVER.MAX_ITER, 2]}\n"
        "    second: {<<: *a, opts: []}\n"
    )
    grid = read_grid(path)
    assert [m.opts for m in grid.methods] == [("SOLVER.MAX_ITER", "2"), ()]
    assert grid.methods[1].config == "Toy/retinanet.yaml"
    assert grid.source == ""


@pytest.mark.parametrize("noise", ["!!map [a]", "!!bool x", "!!timestamp x"])
def test_a_tag_that_does_not_fit_is_one_line(noise, tmp_path):
    path = tmp_path / "my_grid.yaml"
    path.write_text(f"noise: {noise}\nseeds: [0]\ndetectors: {{}}\n")
    with pytest.raises(ValueError, match=r"my_grid\.yaml: ") as caught:
        read_grid(path)
    assert "\n" not in str(caught.value)
