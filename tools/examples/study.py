"""Compare the plain loss with the SuperLoss over noise rates, tuned alike, and write a report.

lambda and the learning rate, the baseline's too, are chosen on noisy validation labels, by seeds
that are not reported: first lambda at one learning rate, then the learning rate. All is done twice:
for the last epoch, as the paper does, and for the best epoch on validation.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from digits import Run, Scores, Task, train
from report import draw, markdown
from tqdm import tqdm

from sl_detectron.cli import run_tool, tool_parser

__all__ = ["BASELINE", "Study", "example_main", "run_study"]

BASELINE = "baseline"
RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (100, 101, 102)
STOPPINGS = ("last", "best")


@dataclass(frozen=True)
class Study:
    """What an example compares.

    Attributes:
        name: of the files
        title, metric: for the report; the unit is part of the metric
        higher_is_better: of the metric
        tasks: by name, functions that make them
        taus: the SuperLoss variants
        lrs: learning rates of Adam to choose from
        first_lr: the one that serves while lambda is chosen
        lams: values of lambda to choose from
        num_epochs: of each training, unless the user says otherwise
        sweep: the tau for which all lambdas are reported; None for no sweep
    """

    name: str
    title: str
    metric: str
    higher_is_better: bool
    tasks: dict[str, Callable[[], Task]]
    taus: tuple[str, ...]
    lrs: tuple[float, ...]
    lams: tuple[float, ...]
    first_lr: float = 1e-3
    num_epochs: int = 60
    sweep: str | None = None


class Setting(NamedTuple):
    """What is tuned by itself."""

    task: str
    tau: str | None
    rate: float


class Runner:
    """Trains what it has not trained yet, in this process or in the pool's."""

    def __init__(self, pool: Executor | None) -> None:
        self.results: dict[Run, Scores] = {}
        self.map = map if pool is None else pool.map

    def __call__(self, runs: Iterable[Run], what: str) -> None:
        todo = [run for run in dict.fromkeys(runs) if run not in self.results]
        with tqdm(total=len(todo), desc=what, unit="run", dynamic_ncols=True) as bar:
            for run, scores in zip(todo, self.map(_train, todo)):
                self.results[run] = scores
                bar.update()

    def score(
        self, setting: Setting, lr: float, lam: float, seeds: Sequence[int], field: str
    ) -> float:
        """Mean of a field of the scores over seeds."""
        runs = [Run(*setting, lr, lam, seed) for seed in seeds]
        return sum(getattr(self.results[run], field) for run in runs) / len(runs)


# What a process trains: tasks are made once in each.
_tasks: dict[str, Task] = {}
_num_epochs = 0


def _start(study: Study, num_epochs: int) -> None:
    global _num_epochs
    torch.set_num_threads(1)
    _num_epochs = num_epochs
    _tasks.clear()
    _tasks.update({name: make() for name, make in study.tasks.items()})


def _train(run: Run) -> Scores:
    return train(_tasks[run.task], run, _num_epochs)


def _tune(
    study: Study, runner: Runner, settings: list[Setting], seeds: Sequence[int]
) -> dict[tuple[Setting, str], tuple[float, float]]:
    """(lr, lam) of each setting and stopping, by the mean validation score over the seeds."""
    first_lr = study.first_lr
    lams = {setting: study.lams if setting.tau else (1.0,) for setting in settings}
    runner(
        (Run(*c, first_lr, lam, seed) for c in settings for lam in lams[c] for seed in seeds),
        "choosing lambda",
    )
    keys = [(setting, stopping) for setting in settings for stopping in STOPPINGS]
    lam_of = {
        (c, s): max(lams[c], key=lambda lam: runner.score(c, first_lr, lam, seeds, f"{s}_val"))
        for c, s in keys
    }
    runner(
        (Run(*k[0], lr, lam_of[k], seed) for k in keys for lr in study.lrs for seed in seeds),
        "choosing the learning rate",
    )
    lr_of = {
        k: max(study.lrs, key=lambda lr: runner.score(k[0], lr, lam_of[k], seeds, f"{k[1]}_val"))
        for k in keys
    }
    return {key: (lr_of[key], lam_of[key]) for key in keys}


def run_study(
    study: Study,
    seeds: Sequence[int] = SEEDS,
    rates: Sequence[float] = RATES,
    num_epochs: int | None = None,
    num_workers: int = 1,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
) -> dict[str, Any]:
    """Tune and train everything.

    Args:
        study: what to compare
        seeds: of the noise, the first weights and the order of the samples, for the report
        rates: fractions of labels that are replaced
        num_epochs: of each training; the study's own by default
        num_workers: processes
        tuning_seeds: as the seeds, for choosing parameters

    Returns:
        what goes into the json file
    """
    num_epochs = num_epochs or study.num_epochs
    setting = study, num_epochs
    settings = {
        "title": study.title,
        "metric": study.metric,
        "higher_is_better": study.higher_is_better,
        "seeds": list(seeds),
        "tuning_seeds": list(tuning_seeds),
        "num_epochs": num_epochs,
        "lrs": study.lrs,
        "lambdas": study.lams,
        "num_processes": num_workers,
    }
    if num_workers == 1:
        _start(*setting)
        return settings | _compare(study, Runner(None), seeds, rates, tuning_seeds)
    with ProcessPoolExecutor(
        num_workers, get_context("spawn"), initializer=_start, initargs=setting
    ) as pool:
        return settings | _compare(study, Runner(pool), seeds, rates, tuning_seeds)


def _compare(
    study: Study,
    runner: Runner,
    seeds: Sequence[int],
    rates: Sequence[float],
    tuning_seeds: Sequence[int],
) -> dict[str, Any]:
    started = time.monotonic()
    taus = (None, *study.taus)
    settings = [Setting(task, tau, rate) for task in study.tasks for tau in taus for rate in rates]
    chosen = _tune(study, runner, settings, tuning_seeds)
    runner((Run(*key[0], *chosen[key], s) for key in chosen for s in seeds), "reported runs")
    sweep = [
        (setting, chosen[setting, "last"][0], lam)
        for setting in settings
        if study.sweep and setting.tau == study.sweep
        for lam in study.lams
    ]
    runner((Run(*setting, lr, lam, s) for setting, lr, lam in sweep for s in seeds), "lambda sweep")
    return {
        "num_trainings": len(runner.results),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "results": [_entry(runner, seeds, *key, *chosen[key]) for key in chosen],
        "sweep": [_entry(runner, seeds, setting, "last", lr, lam) for setting, lr, lam in sweep],
    }


def _entry(
    runner: Runner, seeds: Sequence[int], setting: Setting, stopping: str, lr: float, lam: float
) -> dict[str, Any]:
    scores = [runner.results[Run(*setting, lr, lam, seed)] for seed in seeds]
    return {
        "task": setting.task,
        "method": f"SuperLoss, {setting.tau}" if setting.tau else BASELINE,
        "rate": setting.rate,
        "epoch": stopping,
        "lr": lr,
        "lambda": lam if setting.tau else None,
        "test": [round(getattr(score, f"{stopping}_test"), 4) for score in scores],
        "last_mean_sigma": [round(score.mean_sigma, 4) for score in scores],
    }


def example_main(doc: str | None, study: Study) -> int:
    """The command line of an example; returns its exit code."""
    parser = tool_parser(doc)
    parser.add_argument("--output", required=True, help="folder for json, Markdown and picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="to report")
    parser.add_argument(
        "--tuning-seeds", type=int, nargs="+", default=TUNING_SEEDS, help="to choose parameters by"
    )
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="fractions of labels")
    parser.add_argument("--epochs", type=int, default=study.num_epochs, help="of a training")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")

    def main(args: argparse.Namespace) -> None:
        _check(args)
        output = Path(args.output)
        output.mkdir(parents=True, exist_ok=True)
        results = run_study(
            study, args.seeds, args.rates, args.epochs, args.workers, args.tuning_seeds
        )
        text = markdown(results)
        (output / f"{study.name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / f"{study.name}.md").write_text(text)
        draw(results, output / f"{study.name}.png")
        print(text)

    return run_tool(main, parser.parse_args())


def _check(args: argparse.Namespace) -> None:
    for name in ("epochs", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1; got {getattr(args, name)}")
    for rate in args.rates:
        if not 0 <= rate <= 1:
            raise ValueError(f"--rates must be in [0, 1]; got {rate}")
    both = set(args.seeds) & set(args.tuning_seeds)
    if both:
        raise ValueError(f"--seeds and --tuning-seeds must not share {sorted(both)}")
