"""A schedule that is scaled as a whole: by hand, refused where it collapses, part of a run."""

import pytest
import yaml

from helpers.grid_cases import ONE_METHOD, RESULTS_GRID, method
from sl_detectron.engine.setup import merge_cfg
from sl_detectron.sweep import read_grid, read_results
from sl_detectron.sweep.plan import plan
from sl_detectron.sweep.schedule import scaled_options
from sl_detectron.sweep.state import fingerprint
from sl_detectron.sweep.text_tables import notes_of

LENGTHS = {
    "SOLVER.MAX_ITER": 1000,
    "SOLVER.STEPS": "(600, 800)",
    "SOLVER.WARMUP_ITERS": 100,
    "SOLVER.CHECKPOINT_PERIOD": 500,
    "TEST.EVAL_PERIOD": 0,
    "MODEL.SUPERLOSS.WARMUP_ITERS": 40,
    "MODEL.SUPERLOSS.CORRECTION.PERIOD": 500,
}


def config(**changes):
    opts = [part for pair in (LENGTHS | changes).items() for part in pair]
    return merge_cfg("", [str(part) for part in opts])


def scaled(cfg, scale):
    options = scaled_options(cfg, scale)
    return dict(zip(options[::2], options[1::2]))


def test_all_lengths_are_scaled_together():
    assert scaled(config(), 0.25) == {
        "SOLVER.MAX_ITER": "250",
        "SOLVER.STEPS": "(150, 200)",
        "SOLVER.WARMUP_ITERS": "25",
        "SOLVER.CHECKPOINT_PERIOD": "125",
        "TEST.EVAL_PERIOD": "0",
        "MODEL.SUPERLOSS.WARMUP_ITERS": "10",
        "MODEL.SUPERLOSS.CORRECTION.PERIOD": "125",
    }
    assert scaled(config(), 1.0) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOLVER.STEPS": "(600, 601)"}, r"600 and 601 fall together: take a larger scale"),
        ({"SOLVER.STEPS": "(600, 999)", "SOLVER.MAX_ITER": 1001}, "999 and 1001 fall together"),
        ({"SOLVER.STEPS": "(101, 800)"}, "100 and 101 fall together"),
        ({"MODEL.SUPERLOSS.WARMUP_ITERS": 1}, r"MODEL\.SUPERLOSS\.WARMUP_ITERS 1 would be 0"),
        ({"TEST.EVAL_PERIOD": 1}, r"TEST\.EVAL_PERIOD 1 would be 0"),
    ],
)
def test_what_collapses_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        scaled_options(config(**changes), 0.25)


def test_steps_that_were_beyond_the_end_may_stay_there():
    assert scaled(config(**{"SOLVER.STEPS": "(2000,)"}), 0.5)["SOLVER.STEPS"] == "(1000,)"


@pytest.fixture
def grid_path(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**ONE_METHOD, **method(opts=["SOLVER.MAX_ITER", 400])}))
    return path


def test_the_scale_is_part_of_a_run(grid_path, tmp_path):
    """The same command line gives the very config, and another scale another one."""
    half, whole = (plan(read_grid(grid_path, [], scale), tmp_path)[0] for scale in (0.5, 1.0))
    assert half.cfg.SOLVER.MAX_ITER == 200
    assert whole.cfg.SOLVER.MAX_ITER == 400
    assert fingerprint(half.cfg) != fingerprint(whole.cfg)
    again = merge_cfg(half.args[1], half.args[2:])
    assert fingerprint(again) == fingerprint(half.cfg)
    with pytest.raises(ValueError, match=r"RetinaNet, baseline: --scale-schedule 0\.001: SOLVER"):
        plan(read_grid(grid_path, [], 0.001), tmp_path)


@pytest.mark.parametrize("scale", [0.0, -1.0, 2.0, float("nan")])
def test_bad_scales(grid_path, scale):
    with pytest.raises(ValueError, match="--scale-schedule must be above 0 and at most 1"):
        read_grid(grid_path, [], scale)


def test_tables_say_it_and_leave_out_published_numbers(folder):
    (folder / "options.json").write_text('{"opts": [], "scale": 0.25}')
    results = read_results(folder)
    assert results.grid.scale == 0.25
    assert not any(m.paper for m in results.grid.methods)
    assert any("Every schedule is 0.25 times as long" in note for note in notes_of(results))
    assert RESULTS_GRID["source"] not in " ".join(notes_of(results))
    (folder / "options.json").write_text('{"opts": []}')
    with pytest.raises(ValueError, match=r"options\.json is damaged"):
        read_results(folder)
