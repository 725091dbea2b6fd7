"""Results of a sweep as one self-contained page."""

import math
from typing import Any

from ..visualization.report_page import Cell, figure_part, html_page, section, table_part
from .plots import ap50_figure, forest_figure
from .results import Results
from .text_tables import (
    MISSING,
    clean_means,
    mean_text,
    notes_of,
    signed,
    spread_text,
)

__all__ = ["web_page"]


def web_page(results: Results) -> str:
    """All tables, AP50 against noise and the differences of AP50, as one self-contained page."""
    notes = notes_of(results)
    parts = [
        section(
            "AP50 by wrong labels",
            "Bands: one standard deviation over seeds. Dotted: published numbers.",
            figure_part(ap50_figure(results), "AP50 of each method against the share of noise"),
        )
    ]
    forest = forest_figure(results)
    if forest is not None:
        parts.append(
            section(
                "Differences in AP50, paired by seed",
                "Points: means over seeds. Bars: 95 % confidence intervals, where there are two or "
                "more seeds; one that crosses 0 leaves the sign open.",
                figure_part(forest, "Paired differences in AP50 with confidence intervals"),
            )
        )
    parts.append(section("Means over seeds, %", "", _means_part(results)))
    if len(results.lost):
        text = "A method's own number without noise, minus its number at a level; paired by seed."
        parts.append(section("Lost from 0 %", text, _lost_part(results)))
    if results.grid.pairs:
        parts.append(section("Paired differences, %", "", _differences_part(results)))
    return html_page("Results of a sweep", " ".join(notes), parts)


def _means_part(results: Results) -> str:
    num_seeds = len(results.grid.seeds)
    head = ["detector", "method", "metric", "wrong labels, %", "mean ± std", "seeds", "published"]
    rows = [
        [
            *(row.detector, row.method, row.metric, Cell(f"{100 * row.noise:g}", row.noise)),
            _cell(row, mean_text(row)),
            Cell(f"{row.num_seeds} of {num_seeds}", row.num_seeds),
            Cell(MISSING)
            if math.isnan(row.paper_mean)
            else Cell(spread_text(row.paper_mean, row.paper_std), row.paper_mean),
        ]
        for row in results.means.astype({"paper_mean": float, "paper_std": float}).itertuples()
    ]
    return table_part(head, rows, "A click on the head of a column sorts by it.")


def _differences_part(results: Results) -> str:
    head = ["detector", "difference", "metric", "wrong labels, %", "mean", "standard error"]
    head += ["95 % from", "to", "p", "p, Holm", "seeds"]
    rows = [
        [
            *(row.detector, f"{row.method} − {row.reference}", row.metric),
            Cell(f"{100 * row.noise:g}", row.noise),
            *(
                _number(value, with_sign)
                for value, with_sign in (
                    *((row.mean, True), (row.standard_error, False)),
                    *((row.ci95_low, True), (row.ci95_high, True)),
                )
            ),
            *(_number(value, with_sign=False, form=".3f") for value in (row.p, row.p_holm)),
            Cell(str(row.num_seeds), row.num_seeds),
        ]
        for row in results.differences.itertuples()
    ]
    return table_part(head, rows, "A click on the head of a column sorts by it.")


def _lost_part(results: Results) -> str:
    head = ["detector", "method", "metric", "wrong labels, %", "at 0 %", "lost", "standard error"]
    head += ["95 % from", "to", "seeds", "published: lost"]
    clean = clean_means(results)
    rows = [
        [
            *(row.detector, row.method, row.metric, Cell(f"{100 * row.noise:g}", row.noise)),
            _number(clean[row.detector, row.method, row.metric].mean, with_sign=False),
            _number(row.mean, with_sign=True),
            _number(row.standard_error, with_sign=False),
            *(_number(value, with_sign=True) for value in (row.ci95_low, row.ci95_high)),
            Cell(str(row.num_seeds), row.num_seeds),
            _number(row.paper, with_sign=True),
        ]
        for row in results.lost.itertuples()
    ]
    return table_part(head, rows, "A click on the head of a column sorts by it.")


def _number(value: float | None, with_sign: bool, form: str = ".1f") -> Cell:
    if value is None or math.isnan(value):
        return Cell(MISSING)
    return Cell(signed(value) if with_sign else f"{value:{form}}", value)


def _cell(row: Any, text: str) -> Cell:
    return Cell(text, row.mean) if row.num_seeds else Cell(MISSING)
