"""What is to be done for a grid: the config, command and state of every cell."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ..engine.setup import merge_cfg
from ..model_zoo import find_config
from .grid import Cell, Grid
from .jobs import rank_args
from .state import FAILED, differences, read_result, same_config

__all__ = ["STATES", "PlannedCell", "explain_change", "plan", "train_net_command"]

STATES = ("open", "finished", "failed", "changed")
SHOWN_KEYS = 5


@dataclass(frozen=True)
class PlannedCell:
    """A cell and what is known about it before anything runs.

    Attributes:
        cell: which
        folder: where its files are
        config_file: path of its config
        cfg: the config that it is trained with
        state: one of ``STATES``; changed is finished or half done with another config
    """

    cell: Cell
    folder: Path
    config_file: str
    cfg: CfgNode
    state: str

    @property
    def args(self) -> list[str]:
        """Its config file and options, as arguments of ``tools/train_net.py``."""
        opts = [*self.cell.opts, "OUTPUT_DIR", str(self.folder)]
        return ["--config-file", self.config_file, *opts]


def plan(grid: Grid, output: str | os.PathLike) -> list[PlannedCell]:
    """Merge every cell's config and look what there is of it; needs neither data nor GPU.

    Args:
        grid: from :func:`~sl_detectron.sweep.read_grid`
        output: the benchmark's folder; it need not exist

    Raises:
        ValueError: a row's config or option is bad, or two rows of a detector are tested on
            different sets; the message names the row
    """
    planned = []
    tests: dict[str, tuple[Cell, str]] = {}
    # A row is merged once, as that takes as long as a hundred copies.
    rows: dict[tuple[str, tuple[str, ...]], CfgNode] = {}
    for cell in tqdm(grid.cells, "configs", leave=False, unit="cell", disable=None):
        try:
            config_file = _config_file(cell.method.config)
            folder = Path(output) / cell.folder
            row = (config_file, cell.row_opts)
            if row not in rows:
                rows[row] = merge_cfg(config_file, list(cell.row_opts))
            cfg = rows[row].clone()
            cfg.merge_from_list([*cell.own_opts, "OUTPUT_DIR", str(folder)])
            if len(cfg.DATASETS.TEST) != 1:
                raise ValueError(f"DATASETS.TEST must name one set; got {cfg.DATASETS.TEST}")
        except (ValueError, OSError) as error:
            raise ValueError(f"{cell.method}: {error}") from error
        cfg.freeze()
        _check_test_set(tests, cell, cfg)
        planned.append(PlannedCell(cell, folder, config_file, cfg, _state(cfg, folder)))
    return planned


def explain_change(planned: PlannedCell) -> str:
    """The keys in which a cell's config differs from what it would be trained with."""
    changes = differences(planned.cfg, planned.folder)
    shown = [f"{k} was {old!r}, is {new!r}" for k, (old, new) in list(changes.items())[:SHOWN_KEYS]]
    more = f" and {len(changes) - SHOWN_KEYS} more keys" if len(changes) > SHOWN_KEYS else ""
    return "; ".join(shown) + more


def train_net_command(planned: PlannedCell, num_gpus: int, tool: Sequence[str]) -> str:
    """The shell command that trains a cell without the benchmark.

    Args:
        planned: the cell
        num_gpus: processes on this machine
        tool: how ``train_net`` is called
    """
    return shlex.join([*tool, *rank_args(num_gpus), *planned.args])


def _check_test_set(tests: dict[str, tuple[Cell, str]], cell: Cell, cfg: CfgNode) -> None:
    """Rows of a detector are compared, so they need the same test set."""
    (name,) = cfg.DATASETS.TEST
    first, expected = tests.setdefault(cell.method.detector, (cell, name))
    if name != expected:
        raise ValueError(
            f"{cell.method}: DATASETS.TEST is {name!r}, but {expected!r} in {first.method}; "
            "rows of one detector are compared and need one test set"
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
