"""What a sweep has to do: the config, command and state of every run."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from ..engine.class_estimates import round_config
from ..engine.setup import merge_cfg
from ..model_zoo import find_config
from .grid import Grid, Run
from .jobs import RunJob
from .schedule import scaled_options
from .state import FAILED, differences, fingerprint, has_checkpoint, read_result, same_config

__all__ = ["PlannedRun", "explain_change", "plan", "shared_first_rounds"]

SHOWN_KEYS = 5


@dataclass(frozen=True)
class PlannedRun:
    """A run, its folder, and what is known about it before anything runs.

    Its state is "open", "finished", "failed", or "changed": finished or half done with another
    config. ``schedule`` are options that shorten its schedule.
    """

    run: Run
    folder: Path
    config_file: str
    cfg: CfgNode
    state: str
    schedule: tuple[str, ...] = ()

    @property
    def args(self) -> list[str]:
        """Its config file and options, as arguments of ``tools/train_net.py``."""
        opts = [*self.run.method_opts, *self.schedule, *self.run.run_opts]
        opts += ["OUTPUT_DIR", str(self.folder)]
        return ["--config-file", self.config_file, *opts]

    @property
    def on_gpu(self) -> bool:
        """Whether its config names one."""
        return self.cfg.MODEL.DEVICE.startswith("cuda")

    def job(
        self,
        keep: str,
        num_gpus: int,
        threads: int | None,
        imports: Sequence[str] = (),
        first_round: "PlannedRun | None" = None,
    ) -> RunJob:
        """The process that trains it; see :func:`~sl_detectron.sweep.run_grid`.

        ``first_round`` is the run that its first round of label correction gives the result of.
        """
        if threads is None and not self.on_gpu:
            threads = 1
        modules = [word for name in imports for word in ("--import", name)]
        shared = ("--first-round", str(first_round.folder)) if first_round else ()
        args = ("--keep", keep, *shared, *modules, *self.args)
        return RunJob(self.folder, args, num_gpus, threads)


def plan(grid: Grid, output: str | os.PathLike) -> list[PlannedRun]:
    """Merge every run's config and read what there is of it; needs neither data nor GPU.

    Args:
        grid: from :func:`~sl_detectron.sweep.read_grid`
        output: the sweep's folder; it need not exist

    Raises:
        ValueError: a method's config or option is bad, or two methods of a detector are tested on
            different datasets; the message names the method
    """
    planned = []
    first: dict[str, PlannedRun] = {}
    # Once for a method, as it takes as long as a hundred copies.
    merged = functools.cache(lambda config_file, *opts: merge_cfg(config_file, list(opts)))
    for run in tqdm(grid.runs, "configs", leave=False, unit="run", disable=None):
        folder = Path(output) / run.folder
        try:
            config_file = _config_file(run.method.config)
            cfg = merged(config_file, *run.method_opts).clone()
            schedule = scaled_options(cfg, grid.scale)
            cfg.merge_from_list([*schedule, *run.run_opts, "OUTPUT_DIR", str(folder)])
            cfg.freeze()
            state = _state(cfg, folder)
            planned.append(PlannedRun(run, folder, config_file, cfg, state, schedule))
            _check_test_set(planned[-1], first.setdefault(run.method.detector, planned[-1]))
        except (ValueError, OSError) as error:
            raise ValueError(f"{run.method}: {error}") from error
    return planned


def shared_first_rounds(runs: Sequence[PlannedRun]) -> dict[Path, PlannedRun]:
    """Runs that another one trains in passing, as its first round of label correction.

    Only pairs that have not begun: what is half done goes on where it is.

    Returns:
        {folder of a run of several rounds: the run of one round that its first round is}
    """
    alone = {
        fingerprint(run.cfg): run
        for run in runs
        if _num_rounds(run) == 1 and not has_checkpoint(run.folder)
    }
    shared: dict[Path, PlannedRun] = {}
    for run in runs:
        if _num_rounds(run) > 1 and not has_checkpoint(run.folder):
            first = alone.pop(fingerprint(round_config(run.cfg, 1)), None)
            shared |= {run.folder: first} if first else {}
    return shared


def explain_change(planned: PlannedRun) -> str:
    """The keys in which a run's config differs from what it would be trained with."""
    changes = differences(planned.cfg, planned.folder).items()
    texts = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changes]
    more = f" and {len(texts) - SHOWN_KEYS} more keys" if len(texts) > SHOWN_KEYS else ""
    return "; ".join(texts[:SHOWN_KEYS]) + more


def _check_test_set(planned: PlannedRun, first: PlannedRun) -> None:
    """Methods of a detector are compared, so they need the same test set."""
    names, expected = planned.cfg.DATASETS.TEST, first.cfg.DATASETS.TEST
    if len(names) != 1:
        raise ValueError(f"DATASETS.TEST must name one dataset; got {names}")
    if names != expected:
        raise ValueError(
            f"DATASETS.TEST is {names[0]!r}, but {expected[0]!r} in {first.run.method}; "
            "methods of one detector are compared, so they need the same test set"
        )


def _state(cfg: CfgNode, folder: Path) -> str:
    finished = read_result(folder) is not None
    if not finished and (folder / FAILED).exists():
        return "failed"
    # A half-done one too: to train it anew by mistake may cost days.
    if (finished or has_checkpoint(folder)) and not same_config(cfg, folder):
        return "changed"
    return "finished" if finished else "open"


def _config_file(name: str) -> str:
    """As short as it can be written here."""
    path = find_config(name)
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _num_rounds(run: PlannedRun) -> int:
    return run.cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS
