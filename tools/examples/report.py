"""The results of a study as Markdown tables and a picture."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

__all__ = ["draw", "markdown"]

BASELINE = "baseline"
EPOCHS = {"last": "after the last epoch", "best": "at the best epoch on validation"}


def markdown(results: dict[str, Any]) -> str:
    """Tables of every task: scores, differences to the baseline, chosen parameters.

    Args:
        results: of :func:`study.run_study`
    """
    lines = [
        f"# {results['title']}",
        "",
        f"{results['metric']}; {'higher' if results['higher_is_better'] else 'lower'} is better. "
        f"Mean ± standard deviation over {len(results['seeds'])} seeds, clean test labels. "
        f"{results['num_trainings']} trainings of {results['num_epochs']} epochs took "
        f"{results['minutes']} minutes, one thread in each of {results['num_processes']} "
        "process(es).",
    ]
    for task in _unique(results["results"], "task"):
        for epoch, words in EPOCHS.items():
            entries = [e for e in results["results"] if (e["task"], e["epoch"]) == (task, epoch)]
            lines += ["", f"## {task}, {words}", "", _scores(entries), ""]
            lines += ["Paired difference to the baseline, mean ± standard error:", ""]
            lines += [_differences(entries), "", _below(entries, results["higher_is_better"])]
            lines += ["", "Learning rate / λ:", "", _parameters(entries)]
    for task in _unique(results["sweep"], "task"):
        entries = [e for e in results["sweep"] if e["task"] == task]
        lines += ["", f"## {task}, λ sweep of {entries[0]['method']}, after the last epoch", ""]
        lines += [_sweep(entries)]
    return "\n".join(lines) + "\n"


def _unique(entries: Iterable[dict[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(entry[key] for entry in entries))


def _spread(values: Any) -> str:
    """Mean ± standard deviation, three digits."""
    values = np.asarray(values)
    digits = 1 if np.abs(values).max() >= 10 else 2
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def _difference(values: np.ndarray) -> str:
    """Mean ± standard error, with a sign."""
    if len(values) == 1:
        return f"{values[0]:+.2f}"
    error = values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():+.2f} ± {error:.2f}"


def _table(corner: str, rows: dict[str, list[str]], columns: Iterable[str]) -> str:
    return tabulate(
        [[name, *cells] for name, cells in rows.items()],
        headers=[corner, *columns],
        tablefmt="github",
        disable_numparse=True,
    )


def _percent(rates: Iterable[float]) -> list[str]:
    return [f"{100 * rate:g} %" for rate in rates]


def _by_method(entries: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    methods = _unique(entries, "method")
    return {method: [e for e in entries if e["method"] == method] for method in methods}


def _scores(entries: list[dict[str, Any]]) -> str:
    rows = {m: [_spread(e["test"]) for e in of_m] for m, of_m in _by_method(entries).items()}
    return _table("replaced labels", rows, _percent(_unique(entries, "rate")))


def _against_baseline(entries: list[dict[str, Any]]) -> dict[str, dict[float, np.ndarray]]:
    """Differences of the SuperLoss methods by rate, seed by seed."""
    by_method = _by_method(entries)
    base = by_method.pop(BASELINE)
    return {
        method: {
            e["rate"]: np.subtract(e["test"], b["test"])
            for e, b in zip(of_method, base, strict=True)
        }
        for method, of_method in by_method.items()
    }


def _differences(entries: list[dict[str, Any]]) -> str:
    rows = {
        method: [_difference(difference) for difference in by_rate.values()]
        for method, by_rate in _against_baseline(entries).items()
    }
    return _table("replaced labels", rows, _percent(_unique(entries, "rate")))


def _below(entries: list[dict[str, Any]], higher_is_better: bool) -> str:
    """Where the bar, at or above the baseline from 20 % noise on, is missed."""
    sign = 1 if higher_is_better else -1
    missed = [
        f"{method} at {100 * rate:g} % ({_difference(difference)})"
        for method, by_rate in _against_baseline(entries).items()
        for rate, difference in by_rate.items()
        if rate >= 0.2 and sign * difference.mean() < 0
    ]
    return "Worse than the baseline at 20 % noise or more: " + ("; ".join(missed) or "none") + "."


def _parameters(entries: list[dict[str, Any]]) -> str:
    rows = {
        method: [f"{e['lr']:g}" + (f" / {e['lambda']:g}" if e["lambda"] else "") for e in of_method]
        for method, of_method in _by_method(entries).items()
    }
    return _table("replaced labels", rows, _percent(_unique(entries, "rate")))


def _sweep(entries: list[dict[str, Any]]) -> str:
    rates, lams = _unique(entries, "rate"), _unique(entries, "lambda")
    rows = {
        f"λ = {lam:g}": [_spread(e["test"]) for e in entries if e["lambda"] == lam] for lam in lams
    }
    return _table("replaced labels", rows, _percent(rates))


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a task and epoch over the noise, and one a task of the lambda sweep.

    Args:
        results: of :func:`study.run_study`
        path: of the PNG
    """
    from matplotlib.figure import Figure

    tasks = _unique(results["results"], "task")
    num_columns = len(EPOCHS) + bool(results["sweep"])
    size = (4.5 * num_columns, 3.4 * len(tasks))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(tasks), num_columns, squeeze=False)
    for row, task in zip(grid, tasks):
        for axes, (epoch, words) in zip(row, EPOCHS.items()):
            entries = [e for e in results["results"] if (e["task"], e["epoch"]) == (task, epoch)]
            for method, of_method in _by_method(entries).items():
                style = {"color": "black", "linestyle": "--"} if method == BASELINE else {}
                _line(axes, [100 * e["rate"] for e in of_method], of_method, method, **style)
            axes.set_title(f"{task}, {words}", fontsize=9)
            axes.set_xlabel("replaced labels, %")
        if results["sweep"]:
            entries = [e for e in results["sweep"] if e["task"] == task]
            for rate in _unique(entries, "rate"):
                of_rate = [e for e in entries if e["rate"] == rate]
                _line(row[-1], [e["lambda"] for e in of_rate], of_rate, f"{100 * rate:g} %")
            row[-1].set_title(f"{task}, {entries[0]['method']}, after the last epoch", fontsize=9)
            row[-1].set(xlabel="λ", xscale="log")
        for axes in row:
            axes.set_ylabel(results["metric"])
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=70)


def _line(
    axes: Any, x: list[float], entries: list[dict[str, Any]], label: str, **style: Any
) -> None:
    values = np.array([e["test"] for e in entries])
    deviation = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
    axes.errorbar(x, values.mean(axis=1), deviation, label=label, capsize=2, marker=".", **style)
