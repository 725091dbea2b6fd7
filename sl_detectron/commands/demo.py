"""Baseline and SuperLoss side by side on the toy set with noisy labels."""

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from ..engine.launch import iterations_done, metrics_stamp, setup_job
from ..engine.setup import setup_cfg
from ..engine.trainer import SuperLossTrainer, build_predictor
from ..files import write_json
from ..label_noise import noisy_dataset_dicts
from ..model_zoo import get_config_file
from ..sweep.grid import METRICS
from ..sweep.statistics import paired_difference
from ..visualization.comparison import draw_comparison
from .demo_report import write_demo_report

__all__ = ["METHODS", "REPORT", "run_demo"]

METHODS = {"baseline": "Toy/faster_rcnn.yaml", "SuperLoss": "Toy/faster_rcnn_superloss.yaml"}
SCORE_THRESHOLD = 0.5
REPORT = "report.html"

Key = tuple[str, int]  # (method, seed)


def run_demo(
    output: str | os.PathLike, seeds: list[int], opts: list[str], report: bool = False
) -> str:
    """Train both methods once per seed, compare them and draw what they detect.

    Args:
        output: folder for checkpoints, logs, ``demo.png`` and ``demo.json``, a list of
            {"method", "seed", "metrics": {"AP", "AP50", "AP75", ...} in percent}
        seeds: of the weights, the data order and the label noise, one pair of runs each
        opts: config options for all runs, ``[KEY, VALUE, ...]``
        report: whether to write :data:`REPORT` as well, a page of all that the first pair shows

    Returns:
        a table of AP, AP50 and AP75 in percent: mean and standard deviation over seeds; with two or
        more also the SuperLoss minus the baseline, paired by seed, with its standard error
    """
    output, seeds = Path(output), list(dict.fromkeys(seeds))
    runs = {
        (method, seed): _config(config, output / f"{method}_seed{seed}".lower(), seed, opts)
        for seed in seeds
        for method, config in METHODS.items()
    }
    results: dict[Key, dict[str, float]] = {}
    total = sum(cfg.SOLVER.MAX_ITER for cfg in runs.values())
    with tqdm(total=total, desc="training", unit="it", dynamic_ncols=True) as bar:
        for seed in seeds:
            results |= _train_pair({(m, seed): runs[m, seed] for m in METHODS}, bar)
    rows = [{"method": m, "seed": seed, "metrics": r} for (m, seed), r in results.items()]
    write_json(output / "demo.json", rows, indent=1)
    first = {method: runs[method, seeds[0]] for method in METHODS}
    # The runs of one seed share the training set and its noise.
    cfg = first["baseline"]
    name = cfg.DATASETS.TRAIN[0]
    records, classes = noisy_dataset_dicts(cfg)[name], MetadataCatalog.get(name).thing_classes
    _draw(first, records, classes, output / "demo.png")
    if report:
        write_demo_report(output / REPORT, first, results, records, classes)
    return _table(results, seeds)


def _config(name: str, output: Path, seed: int, opts: list[str]) -> CfgNode:
    # Checks the toy set, and so makes it before several processes would.
    seeds = ["SEED", str(seed), "DATASETS.LABEL_NOISE.SEED", str(seed)]
    return setup_cfg(get_config_file(name), [*opts, *seeds, "OUTPUT_DIR", str(output)])


def _train_pair(pair: dict[Key, CfgNode], bar: tqdm) -> dict[Key, dict[str, float]]:
    """Train both methods at once: two runs of one thread are faster than one of two threads.

    Each has a process: detectron2's loggers write to all files that a process has ever given them.
    """
    outputs = {cfg.OUTPUT_DIR: metrics_stamp(cfg.OUTPUT_DIR) for cfg in pair.values()}
    done_before = bar.n
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(pair), mp_context=context) as pool:
        futures = {key: pool.submit(_train, cfg) for key, cfg in pair.items()}
        while not all(future.done() for future in futures.values()):
            time.sleep(1)
            done = sum(iterations_done(folder, before) for folder, before in outputs.items())
            bar.update(done_before + done - bar.n)
        results = {key: future.result() for key, future in futures.items()}
    bar.update(done_before + sum(cfg.SOLVER.MAX_ITER for cfg in pair.values()) - bar.n)
    return results


def _train(cfg: CfgNode) -> dict[str, float]:
    """One run in its own process; its log goes to the run's log.txt only."""
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    setup_job(cfg)
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.train()["bbox"]


def _draw(
    runs: dict[str, CfgNode], records: list[dict[str, Any]], classes: list[str], path: Path
) -> None:
    predictors = {
        method: build_predictor(cfg, Path(cfg.OUTPUT_DIR, "model_final.pth"), SCORE_THRESHOLD)
        for method, cfg in runs.items()
    }
    draw_comparison(records, classes, predictors, path)


def _table(results: dict[Key, dict[str, float]], seeds: list[int]) -> str:
    rows = [[method] for method in (*METHODS, "difference, paired ± standard error")]
    for metric in METRICS:
        by_method = [[results[method, seed][metric] for seed in seeds] for method in METHODS]
        for row, values in zip(rows, by_method):
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(seeds) > 1 else ""
            row.append(f"{np.mean(values):.1f}{spread}")
        baseline, superloss = (dict(zip(seeds, values)) for values in by_method)
        difference = paired_difference(superloss, baseline)
        if difference is not None and difference.error is not None:
            rows[-1].append(f"{difference.mean:+.1f} ± {difference.error:.1f}")
    rows = rows if len(seeds) > 1 else rows[:-1]
    return tabulate(rows, headers=["toy set", *METRICS], disable_numparse=True)
