"""Numbers of a sweep as texts: the tables that Markdown and LaTeX show."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .grid import METRICS
from .results import SEEDS_FOR, Results
from .statistics import LEVEL
from .summary import NOTE, summarise

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "MISSING",
    "clean_means",
    "mean_text",
    "notes_of",
    "signed",
    "spread_text",
    "summary_rows",
    "tables",
]

MISSING = "–"

# A title, and a table whose first row is its head.
Table = tuple[str, list[list[str]]]


def notes_of(results: Results) -> list[str]:
    grid = results.grid
    num, missing = len(grid.seeds), len(grid.runs) - len(results.runs)
    notes = ["Percent, one seed: no standard deviation and no confidence interval."]
    if num > 1:
        notes = [
            f"Percent; mean ± standard deviation over {num} seeds of weights, data order and label "
            "noise. n: number of seeds where it is smaller."
        ]
    if grid.opts:
        pairs = ", ".join(map(" ".join, zip(grid.opts[::2], grid.opts[1::2])))
        notes.append(f"Options that are not in the grid's file: {pairs}.")
    if grid.scale != 1:
        notes.append(
            f"Every schedule is {grid.scale:g} times as long as in the configs: iterations, steps, "
            "warm-up and periods."
        )
    if num > 1 and grid.pairs:
        tested = int(results.differences.query("metric == 'AP50'")["p"].notna().sum())
        notes.append(
            f"{tested} differences in AP50 are tested at once: * marks those of a metric whose p "
            "of Student's paired t test is below 0.05 after Holm's correction over all of them. "
            "The intervals are not corrected."
        )
        if _several_detectors(results):
            notes.append(f"Differences over all detectors: {NOTE}")
    if results.class_names:
        notes.append(f"Mean over {', '.join(results.class_names)}.")
    if missing:
        notes.append(f"{missing} of {len(grid.runs)} runs are missing ({MISSING}).")
    if results.undefined:
        num, first = len(results.undefined), results.undefined[0]
        notes.append(f"{num} of them are finished, but without a number (NaN), first {first}.")
    if any(method.paper for method in grid.methods):
        notes.append(f"Published: {grid.source or 'see the grid file'}.")
    # A note is one line: of LaTeX it is a comment.
    return [" ".join(note.split()) for note in notes]


def _several_detectors(results: Results) -> bool:
    return len({method.detector for method in results.grid.methods}) > 1


def tables(results: Results) -> Iterator[Table]:
    num_seeds = len(results.grid.seeds)
    levels = [f"{100 * noise:g} %" for noise in results.grid.noise]
    for metric in METRICS:
        rows = []
        for (detector, name), method in _groups(results.means, metric, "method"):
            rows.append([detector, name, *_texts(method, mean_text, num_seeds)])
            if method["paper_mean"].notna().any():
                paper = map(spread_text, method["paper_mean"], method["paper_std"])
                rows.append([detector, "(published)", *paper])
        yield f"{metric} by wrong labels", [["detector", "method", *levels], *_once(rows)]
    yield from _lost_tables(results)
    yield from _recovered_tables(results)
    how = ", paired by seed: mean ± standard error [95 % confidence interval]"
    for metric in METRICS if results.grid.pairs else ():
        rows = [
            [detector, " − ".join(names), *_texts(pair, _difference, num_seeds)]
            for (detector, *names), pair in _groups(
                results.differences, metric, "method", "reference"
            )
        ]
        title = f"Differences in {metric}{how if num_seeds > 1 else ''}"
        yield title, [["detector", "difference", *levels], *_once(rows)]
    if not results.grid.pairs or num_seeds < 2:
        return
    if _several_detectors(results):
        yield "Differences in AP50 over all detectors", summary_rows(summarise([results]), "AP50")
    head = ["detector", "std of a difference", *(f"{n} AP50" for n in SEEDS_FOR.values())]
    power = results.power[results.power["metric"] == "AP50"]
    rows = [
        [row.detector, f"{row.std:.1f} ({row.freedom} degrees of freedom)", *_seeds_texts(row)]
        for row in power.itertuples()
    ]
    if rows:
        yield "Seeds that a difference in AP50 needs (two-sided 5 %, power 80 %)", [head, *rows]


def _lost_tables(results: Results) -> Iterator[Table]:
    """Clean numbers and what is lost from them, with the published ones below ours."""
    grid = results.grid
    num_seeds, clean = len(grid.seeds), clean_means(results)
    head = [f"lost at {100 * noise:g} %" for noise in grid.noise if noise]
    for metric in METRICS if len(results.lost) else ():
        rows = []
        for (detector, name), lost in _groups(results.lost, metric, "method"):
            first = clean[detector, name, metric]
            rows.append([detector, name, _counted(first, mean_text, num_seeds)])
            rows[-1] += [_lost(row, num_seeds) for row in lost.itertuples()]
            if lost["paper"].notna().any():
                rows.append([detector, "(published)", spread_text(first.paper_mean, math.nan)])
                rows[-1] += map(signed, lost["paper"])
        title = f"Lost from 0 % in {metric}, paired by seed"
        yield title, [["detector", "method", "0 %", *head], *_once(rows)]


def _recovered_tables(results: Results) -> Iterator[Table]:
    num_seeds = len(results.grid.seeds)
    head = [f"{100 * noise:g} %" for noise in results.grid.noise if noise]
    for metric in METRICS if len(results.recovered) else ():
        rows = [
            [*names, *_texts(won, _recovered, num_seeds)]
            for names, won in _groups(results.recovered, metric, "method")
        ]
        title = f"Recovered of what noise costs the baseline in {metric}"
        yield (
            f"{title} (lowest to highest of a seed)",
            [["detector", "method", *head], *_once(rows)],
        )


def _recovered(row: Any) -> str:
    if math.isnan(row.mean):
        return MISSING
    # Whole numbers, so that there is no negative zero.
    ends = ""
    if row.num_seeds > 1 and not math.isnan(row.lowest):
        ends = f" ({round(row.lowest)} to {round(row.highest)})"
    return f"{round(row.mean)} %{ends}".replace("-", "−")


def _lost(row: Any, num_seeds: int) -> str:
    if math.isnan(row.mean):
        return MISSING
    if not row.num_seeds:
        return f"{signed(round(row.mean, 1) + 0.0)} (unpaired)"
    count = f" (n = {row.num_seeds})" if row.num_seeds < num_seeds else ""
    return _difference(row) + count


def clean_means(results: Results) -> dict[tuple[str, str, str], Any]:
    rows = results.means.query("noise == 0").itertuples()
    return {(row.detector, row.method, row.metric): row for row in rows}


def summary_rows(frame: "DataFrame", metric: str) -> list[list[str]]:
    frame = frame[frame["metric"] == metric]
    levels = list(dict.fromkeys(frame["noise"]))
    rows = [["difference", "groups", *(f"{100 * level:g} %" for level in levels)]]
    for names, pair in frame.groupby(["method", "reference"], sort=False):
        texts = dict.fromkeys(levels, MISSING)
        for row in pair.rename(columns={"num_pairs": "num_seeds"}).itertuples():
            if row.num_seeds:
                better = f"{row.num_better} of {row.num_groups} above 0, n = {row.num_seeds}"
                texts[row.noise] = f"{_difference(row)} ({better})"
        rows.append([" − ".join(names), str(pair["num_groups"].max()), *texts.values()])
    return rows


def _seeds_texts(row: Any) -> list[str]:
    """Of a row of the power; a missing value is more seeds than anyone has."""
    texts = [str(getattr(row, column)) for column in SEEDS_FOR]
    return [text if text.isdigit() else MISSING for text in texts]


def _groups(frame: "DataFrame", metric: str, *names: str) -> Any:
    """The rows of each detector and names, by noise level; in the order of the grid."""
    return frame[frame["metric"] == metric].groupby(["detector", *names], sort=False)


def _texts(rows: "DataFrame", write: Callable[[Any], str], num_seeds: int) -> Iterator[str]:
    yield from (_counted(row, write, num_seeds) for row in rows.itertuples())


def _counted(row: Any, write: Callable[[Any], str], num_seeds: int) -> str:
    """With the number of its seeds where it is smaller than that of the grid."""
    count = f" (n = {row.num_seeds})" if row.num_seeds < num_seeds else ""
    return write(row) + count if row.num_seeds else MISSING


def _once(rows: list[list[str]]) -> list[list[str]]:
    """Each detector is named in its first row only."""
    firsts = {row[0]: i for i, row in reversed([*enumerate(rows)])}
    return [[row[0] if firsts[row[0]] == i else "", *row[1:]] for i, row in enumerate(rows)]


def mean_text(row: Any) -> str:
    return spread_text(row.mean, row.std)


def spread_text(mean: float, std: float) -> str:
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def _difference(row: Any) -> str:
    text = signed(round(row.mean, 1) + 0.0)  # no negative zero
    if row.num_seeds > 1:
        # Here −0.0 says that the interval includes 0.
        text += f" ± {row.standard_error:.1f} [{signed(row.ci95_low)}, {signed(row.ci95_high)}]"
        text += " *" if getattr(row, "p_holm", 1.0) < LEVEL else ""
    return text


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
