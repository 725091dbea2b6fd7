"""What is to be done for a grid: the config, command and state of every run."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ..engine.setup import merge_cfg
from ..model_zoo import find_config
from .grid import Grid, Run
from .jobs import rank_args
from .state import FAILED, differences, read_result, same_config

__all__ = ["STATES", "PlannedRun", "explain_change", "plan", "train_net_command"]

STATES = ("open", "finished", "failed", "changed")
SHOWN_KEYS = 5


@dataclass(frozen=True)
class PlannedRun:
    """A run and what is known about it before anything runs.

    Attributes:
        run: which
        folder: where its files are
        config_file: path of its config
        cfg: the config that it is trained with
        state: one of ``STATES``; changed is finished or half done with another config
    """

    run: Run
    folder: Path
    config_file: str
    cfg: CfgNode
    state: str

    @property
    def args(self) -> list[str]:
        """Its config file and options, as arguments of ``tools/train_net.py``."""
        opts = [*self.run.opts, "OUTPUT_DIR", str(self.folder)]
        return ["--config-file", self.config_file, *opts]


def plan(grid: Grid, output: str | os.PathLike) -> list[PlannedRun]:
    """Merge every run's config and look what there is of it; needs neither data nor GPU.

    Args:
        grid: from :func:`~sl_detectron.sweep.read_grid`
        output: the sweep's folder; it need not exist

    Raises:
        ValueError: a method's config or option is bad, or two methods of a detector are tested on
            different datasets; the message names the method
    """
    planned = []
    tests: dict[str, tuple[Run, str]] = {}
    # A method is merged once, as that takes as long as a hundred copies.
    rows: dict[tuple[str, tuple[str, ...]], CfgNode] = {}
    for run in tqdm(grid.runs, "configs", leave=False, unit="run", disable=None):
        try:
            config_file = _config_file(run.method.config)
            folder = Path(output) / run.folder
            row = (config_file, run.method_opts)
            if row not in rows:
                rows[row] = merge_cfg(config_file, list(run.method_opts))
            cfg = rows[row].clone()
            cfg.merge_from_list([*run.run_opts, "OUTPUT_DIR", str(folder)])
            if len(cfg.DATASETS.TEST) != 1:
                raise ValueError(f"DATASETS.TEST must name one set; got {cfg.DATASETS.TEST}")
        except (ValueError, OSError) as error:
            raise ValueError(f"{run.method}: {error}") from error
        cfg.freeze()
        _check_test_set(tests, run, cfg)
        planned.append(PlannedRun(run, folder, config_file, cfg, _state(cfg, folder)))
    return planned


def explain_change(planned: PlannedRun) -> str:
    """The keys in which a run's config differs from what it would be trained with."""
    changes = differences(planned.cfg, planned.folder)
    shown = [f"{k} was {old!r}, is {new!r}" for k, (old, new) in list(changes.items())[:SHOWN_KEYS]]
    more = f" and {len(changes) - SHOWN_KEYS} more keys" if len(changes) > SHOWN_KEYS else ""
    return "; ".join(shown) + more


def train_net_command(planned: PlannedRun, num_gpus: int, tool: Sequence[str]) -> str:
    """The shell command that trains a run without the sweep.

    Args:
        planned: the run
        num_gpus: processes on this machine
        tool: how ``train_net`` is called
    """
    return shlex.join([*tool, *rank_args(num_gpus), *planned.args])


def _check_test_set(tests: dict[str, tuple[Run, str]], run: Run, cfg: CfgNode) -> None:
    """Methods of a detector are compared, so they need the same test set."""
    (name,) = cfg.DATASETS.TEST
    first, expected = tests.setdefault(run.method.detector, (run, name))
    if name != expected:
        raise ValueError(
            f"{run.method}: DATASETS.TEST is {name!r}, but {expected!r} in {first.method}; "
            "methods of one detector are compared and need one test set"
        )


def _state(cfg: CfgNode, folder: Path) -> str:
    finished = read_result(folder) is not None
    if not finished and (folder / FAILED).exists():
        return "failed"
    # A half-done one too: to train it anew by mistake may cost days.
    if (finished or (folder / "last_checkpoint").is_file()) and not same_config(cfg, folder):
        return "changed"
    return "finished" if finished else "open"


def _config_file(name: str) -> str:
    """As short as it can be written here."""
    path = find_config(name)
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
