"""Plans: the shipped grids are what the paper does, bad configs are refused by method."""

import os
import shlex

import pytest
import yaml
from detectron2.engine import default_argument_parser

from helpers import REPO
from helpers.forked import Program
from helpers.grid_cases import ONE_METHOD, method
from sl_detectron.engine.setup import merge_cfg
from sl_detectron.sweep import read_grid
from sl_detectron.sweep.plan import plan
from sl_detectron.sweep.state import fingerprint

GRIDS = sorted((REPO / "configs" / "Sweep").glob("*.yaml"))


@pytest.fixture(scope="module")
def table5(tmp_path_factory):
    return plan(read_grid("Sweep/table5.yaml"), tmp_path_factory.mktemp("table5"))


def test_dry_run_prints_the_72_commands(tmp_path, table5, monkeypatch):
    """Without data, and each command builds the very config of its run."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    output = table5[0].folder.parents[3]
    args = ["--config", "configs/Sweep/table5.yaml", "--output", str(output), "--dry-run"]
    program = Program("tools/sweep.py", [*args, "--num-gpus", "8"], {**os.environ})
    out, err = program.communicate()
    assert program.returncode == 0, err
    commands = out.splitlines()
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
    path.write_text(yaml.safe_dump({**ONE_METHOD, **method(**keys)}))
    with pytest.raises(ValueError, match=message):
        plan(read_grid(path), tmp_path)


def test_order_of_options(tmp_path):
    """The command line wins over the method, the method over the file; clean_opts at noise 0."""
    path = tmp_path / "grid.yaml"
    key = "SOLVER.MAX_ITER"
    methods = method(opts=[key, 2], clean_opts=[key, 3])
    path.write_text(
        yaml.safe_dump({**ONE_METHOD, **methods, "opts": [key, 1, "SOLVER.GAMMA", 0.5]})
    )

    def values(opts):
        runs = plan(read_grid(path, opts), tmp_path)
        assert {c.cfg.SOLVER.GAMMA for c in runs} == {0.5}
        return [(c.run.noise, c.cfg.SOLVER.MAX_ITER) for c in runs]

    assert values([]) == [(0.0, 3), (0.4, 2)]
    assert values([key, "4"]) == [(0.0, 4), (0.4, 4)]


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
