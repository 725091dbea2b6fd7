"""Grid files: the shipped ones say what the paper does, bad ones are refused by file and key."""

import re
import shlex
import subprocess
import sys

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from helpers import REPO
from sl_detectron.engine.setup import merge_cfg
from sl_detectron.sweep import plan, read_grid, run_grid
from sl_detectron.sweep.plan import explain_change
from sl_detectron.sweep.state import differences, fingerprint, write_json

GRIDS = sorted((REPO / "configs" / "Sweep").glob("*.yaml"))


@pytest.fixture(scope="module")
def table5(tmp_path_factory):
    return plan(read_grid("Sweep/table5.yaml"), tmp_path_factory.mktemp("table5"))


def test_dry_run_prints_the_72_commands(tmp_path, table5, monkeypatch):
    """Without data, and each command builds the very config of its run."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    tool = [sys.executable, "tools/sweep.py", "--config", "configs/Sweep/table5.yaml"]
    output = table5[0].folder.parents[3]
    done = subprocess.run(
        [*tool, "--output", output, "--dry-run", "--num-gpus", "8"],
        capture_output=True,
        text=True,
        cwd=REPO,
    )
    assert done.returncode == 0, done.stderr
    commands = done.stdout.splitlines()
    assert len(commands) == len(set(commands)) == 72
    for command, run in list(zip(commands, table5))[::7]:
        program, tool, *argv = shlex.split(command)
        assert (program, tool) == ("python", "tools/train_net.py")
        args = default_argument_parser().parse_args(argv)
        assert (args.num_gpus, args.dist_url) == (8, "auto")
        cfg = merge_cfg(str(REPO / args.config_file), args.opts)
        cfg.freeze()
        assert cfg == run.cfg
    assert not list(output.iterdir())


def test_table5_is_the_protocol_of_the_paper(table5):
    tau = {"SuperLoss ExpAvg": "ExpAvg", "SuperLoss Avg": "Avg", "SuperLoss logC": "logC"}
    seen = set()
    for planned in table5:
        run, cfg = planned.run, planned.cfg
        assert cfg.DATASETS.LABEL_NOISE.RATE == run.noise
        assert cfg.SEED == cfg.DATASETS.LABEL_NOISE.SEED == run.seed
        assert cfg.DATASETS.TRAIN == ("voc_2007_trainval", "voc_2012_trainval")
        assert cfg.DATASETS.TEST == ("voc_2007_test",)
        name = f"{cfg.MODEL.META_ARCHITECTURE} {cfg.MODEL.ROI_HEADS.NAME}"
        assert ("RetinaNet" in name) == (run.method.detector == "RetinaNet")
        assert ("SuperLoss" in name) == (run.method.name != "baseline")
        if run.method.name != "baseline":
            assert tau[run.method.name] == cfg.MODEL.SUPERLOSS.CLS.TAU
            assert (run.noise == 0) == (cfg.MODEL.SUPERLOSS.CLS.LAMBDA == 1.0)
            assert cfg.MODEL.SUPERLOSS.CLS.LAMBDA in (0.25, 1.0)
        seen.add((run.method.detector, run.method.name, run.noise, run.seed))
    assert len(seen) == len({p.folder for p in table5}) == 72
    # A number of each corner of the published table.
    methods = {str(p.run.method): p.run.method.paper for p in table5}
    assert methods["RetinaNet, baseline"]["AP"][0] == (54.9, 0.5)
    assert methods["RetinaNet, baseline"]["AP50"][3] == (52.0, 3.3)
    assert methods["Faster R-CNN, SuperLoss ExpAvg"]["AP75"][3] == (50.2, 0.5)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.name)
def test_every_shipped_grid_merges(path, tmp_path):
    grid = read_grid(path)
    runs = plan(grid, tmp_path)
    assert len(runs) == len(grid.methods) * len(grid.noise) * len(grid.seeds)
    # No two methods are one and the same training.
    methods = {fingerprint(c.cfg) for c in runs if (c.run.noise, c.run.seed) == (0.4, 0)}
    assert len(methods) == len(grid.methods)
    for name in grid.references:
        assert name in {method.name for method in grid.methods}


GOOD = {
    "noise": [0.0, 0.4],
    "seeds": [0],
    "detectors": {"RetinaNet": {"baseline": {"config": "Toy/retinanet.yaml"}}},
}


def method(**keys):
    return {"detectors": {"RetinaNet": {"baseline": {"config": "Toy/retinanet.yaml", **keys}}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nois": [0.1]}, r"unknown key 'nois'; did you mean 'noise'\?"),
        ({"noise": [1.5]}, r"noise: must be a list of different fractions.*\[1\.5\]"),
        ({"noise": 0.4}, r"noise: must be a list"),
        ({"seeds": [0, 0]}, r"seeds: must be a list of different integers"),
        ({"seeds": [-1]}, r"seeds: "),
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
        (method(confg="x"), r"RetinaNet, baseline: unknown key 'confg'; did you mean 'config'\?"),
        ({"detectors": {"RetinaNet": {"a": {}}}}, r"RetinaNet, a: has no key 'config'"),
        (method(opts=["SOLVER.MAX_ITER"]), r"RetinaNet, baseline, opts: must be \[KEY, VALUE"),
        (method(opts=["SEED", 1]), r"RetinaNet, baseline, opts: SEED is set by the grid itself"),
        (
            method(paper={"AP": [1.0]}),
            r"baseline, paper, AP: must have one value for each of the 2",
        ),
        (method(paper={"AP": ["1", "x"]}), r"paper, AP: must be a number or 54\.9±0\.5; got 'x'"),
        (method(paper={"AP5": [1, 2]}), r"unknown key 'AP5'; did you mean"),
        (
            {"detectors": {"R": {"a b": {"config": "x"}, "a-b": {"config": "x"}}}},
            r"R, a-b: needs a name of its own.* R, a b",
        ),
    ],
)
def test_bad_grids_are_refused_by_method_and_key(changes, message, tmp_path):
    path = tmp_path / "my_grid.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
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
    path.write_text(yaml.safe_dump(GOOD))
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


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"config": "Toy/retinanett.yaml"}, r"RetinaNet, baseline: .*Toy/retinanet\.yaml"),
        ({"opts": ["SOLVER.MAX_ITR", 3]}, r"RetinaNet, baseline: .*SOLVER\.MAX_ITER"),
        ({"opts": ["DATASETS.TEST", "()"]}, r"RetinaNet, baseline: DATASETS\.TEST must name one"),
    ],
)
def test_bad_configs_are_refused_by_method(keys, message, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **method(**keys)}))
    with pytest.raises(ValueError, match=message):
        plan(read_grid(path), tmp_path)


def test_order_of_options(tmp_path):
    """The command line wins over the method, the method over the file; clean_opts at noise 0."""
    path = tmp_path / "grid.yaml"
    key = "SOLVER.MAX_ITER"
    methods = method(opts=[key, 2], clean_opts=[key, 3])
    path.write_text(yaml.safe_dump({**GOOD, **methods, "opts": [key, 1, "SOLVER.GAMMA", 0.5]}))

    def values(opts):
        runs = plan(read_grid(path, opts), tmp_path)
        assert {c.cfg.SOLVER.GAMMA for c in runs} == {0.5}
        return [(c.run.noise, c.cfg.SOLVER.MAX_ITER) for c in runs]

    assert values([]) == [(0.0, 3), (0.4, 2)]
    assert values([key, "4"]) == [(0.0, 4), (0.4, 4)]


@pytest.fixture
def finished(tmp_path):
    """A planned run with the files of a training that had its config."""
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "noise": [0.4]}))

    def state(opts=()):
        (run,) = plan(read_grid(path, list(opts)), tmp_path / "output")
        return run

    run = state()
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.cfg.dump())
    result = {"fingerprint": fingerprint(run.cfg), "metrics": {}}
    write_json(run.folder / "result.json", result)
    return state


def test_a_changed_config_is_noticed_by_key(finished):
    assert finished().state == "finished"
    changed = finished(["SOLVER.GAMMA", "0.5", "INPUT.MIN_SIZE_TRAIN", "(64,)"])
    assert changed.state == "changed"
    assert differences(changed.cfg, changed.folder) == {
        "INPUT.MIN_SIZE_TRAIN": ([128], [64]),
        "SOLVER.GAMMA": (0.1, 0.5),
    }


def test_runs_of_another_grid_are_no_part_of_this_one(finished):
    """Its tables would be without them."""
    run = finished()
    output = run.folder.parents[3]
    path = output.parent / "grid.yaml"
    path.write_text(yaml.safe_dump({**GOOD, "noise": [0.2]}))
    with pytest.raises(ValueError, match="has 1 finished runs that are not in this grid") as caught:
        run_grid(read_grid(path), output)
    assert str(run.folder) in str(caught.value)
    assert not (output / "grid.yaml").exists()


def test_a_new_key_is_no_change_at_its_default(finished):
    """What a later version of the software adds must not cost finished runs."""
    run = finished()
    old = run.cfg.clone()
    old.defrost()
    del old.MODEL.SUPERLOSS["WARMUP_ITERS"]
    (run.folder / "config.yaml").write_text(old.dump())
    result = {"fingerprint": fingerprint(old), "metrics": {}}
    write_json(run.folder / "result.json", result)
    assert finished().state == "finished"
    assert finished(["MODEL.SUPERLOSS.WARMUP_ITERS", "5"]).state == "changed"


def test_a_damaged_result_is_named(finished):
    path = finished().folder / "result.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        finished()


def test_fingerprint_knows_tuples_and_lists_as_one():
    """A YAML file has lists only."""
    assert fingerprint(CfgNode({"A": (1, 2), "OUTPUT_DIR": "x"})) == fingerprint(
        CfgNode({"A": [1, 2], "OUTPUT_DIR": "y"})
    )


def test_a_half_done_run_with_another_config_is_no_open_one(finished):
    """It would be trained anew, and days of training be lost by a forgotten option."""
    run = finished()
    (run.folder / "result.json").unlink()
    assert finished(["SOLVER.GAMMA", "0.5"]).state == "open"  # nothing to lose yet
    (run.folder / "last_checkpoint").write_text("model_0000001.pth")
    assert finished().state == "open"
    changed = finished(["SOLVER.GAMMA", "0.5"])
    assert changed.state == "changed"
    assert explain_change(changed) == "SOLVER.GAMMA was 0.1, is 0.5"


@pytest.mark.parametrize("length", [0, 400, 4000])
def test_a_config_that_a_kill_cut_off(length, finished):
    """detectron2 writes it in place at every start."""
    run = finished()
    (run.folder / "result.json").unlink()
    (run.folder / "last_checkpoint").write_text("model_0000001.pth")
    config = run.folder / "config.yaml"
    config.write_text(config.read_text()[:length])
    assert finished().state == "changed"
    assert "config.yaml was '(cut off or damaged)'" in explain_change(finished()) or length > 400
    write_json(run.folder / "begun.json", {"fingerprint": fingerprint(run.cfg)})
    assert finished().state == "open"
    assert finished(["SOLVER.GAMMA", "0.5"]).state == "changed"


def test_methods_of_one_detector_need_one_test_set(tmp_path):
    path = tmp_path / "grid.yaml"
    detectors = {
        "R": {
            "one": {"config": "Toy/retinanet.yaml"},
            "two": {
                "config": "Toy/retinanet.yaml",
                "opts": ["DATASETS.TEST", "('toy_digits_train',)"],
            },
        }
    }
    path.write_text(yaml.safe_dump({"noise": [0.4], "seeds": [0], "detectors": detectors}))
    message = "R, two: DATASETS.TEST is 'toy_digits_train', but 'toy_digits_test' in R, one"
    with pytest.raises(ValueError, match=message):
        plan(read_grid(path), tmp_path)
