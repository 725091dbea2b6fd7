"""What is on disk of a run: finished, half done, changed or damaged."""

import re

import pytest
import yaml
from detectron2.config import CfgNode

from helpers.grid_cases import ONE_METHOD
from sl_detectron.engine.class_estimates import round_config
from sl_detectron.sweep import read_grid, run_grid
from sl_detectron.sweep.plan import explain_change, plan
from sl_detectron.sweep.state import differences, fingerprint, write_json


@pytest.fixture
def finished(tmp_path):
    """A planned run with the files of a training that had its config."""
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**ONE_METHOD, "noise": [0.4]}))

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


@pytest.mark.parametrize("opts", [["ROUNDS", "2"], ["FROM_FEATURES", "True"]])
def test_a_new_key_is_no_change_for_rounds_of_label_correction(finished, opts):
    """Their config.yaml is that of the last round."""
    key, value = opts
    run = finished([f"MODEL.SUPERLOSS.CORRECTION.{key}", value])
    assert run.state == "changed"
    last = round_config(run.cfg, run.cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS)
    (run.folder / "config.yaml").write_text(last.dump())
    write_json(run.folder / "result.json", {"fingerprint": "of an older version", "metrics": {}})
    assert finished([f"MODEL.SUPERLOSS.CORRECTION.{key}", value]).state == "finished"
    assert finished().state == "changed"


def test_runs_of_another_grid_are_no_part_of_this_one(finished):
    """Its tables would be without them."""
    run = finished()
    output = run.folder.parents[3]
    path = output.parent / "grid.yaml"
    path.write_text(yaml.safe_dump({**ONE_METHOD, "noise": [0.2]}))
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
