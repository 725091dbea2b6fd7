"""Baseline and SuperLoss side by side on the toy set with wrong labels."""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate
from tqdm import tqdm

from ..data import make_toy_dataset, register_toy_datasets
from ..model_zoo import get_config
from .comparison import draw_comparison
from .setup import setup_job
from .trainer import SuperLossTrainer

__all__ = ["METHODS", "run_demo"]

METHODS = {"baseline": "Toy/faster_rcnn.yaml", "SuperLoss": "Toy/faster_rcnn_superloss.yaml"}
METRICS = ("AP", "AP50", "AP75")
# Every run has one thread: two runs side by side are faster than one after the other on two.
NUM_WORKERS = 2


def run_demo(output: str | os.PathLike, seeds: list[int], opts: list[str]) -> str:
    """Train both methods once a seed, compare them and draw what they detect.

    Args:
        output: folder for the toy set, checkpoints, logs and ``demo.png``
        seeds: of the weights, the data order and the label noise, one pair of runs each
        opts: config options for all runs, ``[KEY, VALUE, ...]``

    Returns:
        a table of AP, AP50 and AP75 in percent; mean and standard deviation over seeds
    """
    output = Path(output)
    toy_root = output / "toy_digits"
    if not toy_root.exists():
        make_toy_dataset(toy_root)
    runs = {
        (method, seed): _config(config, output / f"{method}_seed{seed}".lower(), seed, opts)
        for seed in seeds
        for method, config in METHODS.items()
    }
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(NUM_WORKERS, len(runs)), mp_context=context) as pool:
        futures = {run: pool.submit(_train, cfg, toy_root) for run, cfg in runs.items()}
        _show_progress(futures, runs)
        results = {run: future.result() for run, future in futures.items()}
    _register(toy_root)
    draw_comparison({method: runs[method, seeds[0]] for method in METHODS}, output / "demo.png")
    return _table(results, seeds)


def _config(name: str, output: Path, seed: int, opts: list[str]) -> CfgNode:
    cfg = get_config(name)
    cfg.merge_from_list(opts)
    cfg.SEED = cfg.DATASETS.LABEL_NOISE.SEED = seed
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("demo_train",), ("demo_test",)
    cfg.OUTPUT_DIR = str(output)
    cfg.freeze()
    return cfg


def _register(toy_root: Path) -> None:
    if "demo_train" not in DatasetCatalog:
        register_toy_datasets(toy_root, prefix="demo")


def _train(cfg: CfgNode, toy_root: Path) -> dict[str, float]:
    """One run in a process of its own; its log goes to the run's log.txt only."""
    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    _register(toy_root)
    setup_job(cfg)
    trainer = SuperLossTrainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer.train()["bbox"]


def _show_progress(futures: dict[Any, Future], runs: dict[Any, CfgNode]) -> None:
    started = time.time()
    total = sum(cfg.SOLVER.MAX_ITER for cfg in runs.values())
    with tqdm(total=total, desc="training", unit="it", dynamic_ncols=True) as bar:
        while not all(future.done() for future in futures.values()):
            time.sleep(1)
            bar.update(sum(_iteration(cfg, started) for cfg in runs.values()) - bar.n)
        bar.update(total - bar.n)


def _iteration(cfg: CfgNode, started: float) -> int:
    """The last iteration that a run has written to its metrics file since ``started``."""
    path = Path(cfg.OUTPUT_DIR) / "metrics.json"
    if not path.exists() or path.stat().st_mtime < started:
        return 0
    try:
        return int(json.loads(path.read_text().splitlines()[-1])["iteration"]) + 1
    except (ValueError, IndexError):  # caught in the middle of a write
        return 0


def _table(results: dict[tuple[str, int], dict[str, float]], seeds: list[int]) -> str:
    rows = []
    for method in METHODS:
        values = np.array([[results[method, seed][m] for m in METRICS] for seed in seeds])
        cells = [f"{v:.1f}" for v in values.mean(axis=0)]
        if len(seeds) > 1:
            spread = values.std(axis=0, ddof=1)
            cells = [f"{cell} ± {s:.1f}" for cell, s in zip(cells, spread)]
        rows.append([method, *cells])
    return tabulate(rows, headers=["toy set", *METRICS], disable_numparse=True)
