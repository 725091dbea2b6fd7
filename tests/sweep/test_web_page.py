"""The tables of a sweep as one page: content, forest plot, and sorting in a browser."""

import dataclasses
import re

import pytest

from helpers.browser import start
from helpers.grid_cases import F, R
from sl_detectron.sweep import make_tables, read_results
from sl_detectron.sweep.page import web_page
from sl_detectron.sweep.plots import forest_figure


def cells(page: str, caption_after: str) -> list[list[str]]:
    """Texts of the rows of the table of a section."""
    section = page.split(f"<h2>{caption_after}")[1].split("</section>")[0]
    body = section.split("<tbody>")[1]
    lines = re.findall(r"<tr>(.*?)</tr>", body)
    return [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines]


def test_every_mean_and_difference_is_a_row(folder):
    results = read_results(folder)
    page = web_page(results)
    means = cells(page, "Means over seeds")
    assert len(means) == len(results.means)
    assert [R, "baseline", "AP50", "0", "52.0 ± 2.0", "3 of 3", "80.6 ± 0.2"] in means
    assert [R, "τ_avg", "AP50", "40", "46.0", "1 of 3", "–"] in means
    assert [F, "τ_avg", "AP50", "0", "–", "0 of 3", "–"] in means
    differences = cells(page, "Paired differences")
    assert len(differences) == len(results.differences)
    row = [R, "τ_avg − baseline", "AP50", "0", "+2.0", "0.6", "−0.5", "+4.5"]
    assert [*row, "0.074", "0.297", "3"] in differences
    lost = cells(page, "Lost from 0 %")
    row = [R, "baseline", "AP50", "40", "52.0", "+9.0", "1.0", "+4.7", "+13.3", "3", "+6.0"]
    assert row in lost
    assert "12 of 30 runs are missing" in page


def test_the_forest_plot_has_a_point_per_difference_and_a_bar_per_interval(folder):
    results = read_results(folder)
    axes = forest_figure(results).axes
    assert [a.get_title() for a in axes] == [R]  # the other detector has no difference yet
    labels = [text.get_text() for text in axes[0].get_yticklabels()]
    assert labels[0] == "equal weight − baseline, 0 %"
    points = [line.get_xdata()[0] for line in axes[0].get_lines() if line.get_marker() == "o"]
    assert points == pytest.approx([-2.0, -1.0, 2.0, -1.0, 4.0, 2.0])
    # Two of the six have one seed, so no interval.
    (first, *_), num = axes[0].containers, len(axes[0].containers)
    assert num == 4
    (bar,) = first.lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([-6.968, 2.968], abs=1e-3)


def test_nothing_finished_is_a_page_without_a_forest_plot(folder):
    results = read_results(folder)
    empty = dataclasses.replace(results, runs=results.runs[:0])
    assert forest_figure(empty) is None
    assert "30 of 30 runs are missing" in web_page(empty)


def test_names_are_no_markup(folder):
    results = read_results(folder)
    evil = "<script>alert(1)</script>"
    methods = [dataclasses.replace(m, name=f"{m.name}{evil}") for m in results.grid.methods]
    grid = dataclasses.replace(results.grid, methods=tuple(methods))
    page = web_page(dataclasses.replace(results, grid=grid))
    assert evil not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    yield from start(tmp_path_factory.mktemp("profile"), tmp_path_factory.mktemp("downloads"))


def test_a_browser_sorts_by_numbers_and_loads_nothing(folder, chromium, tmp_path):
    make_tables(folder, tmp_path)
    chromium.get((tmp_path / "table.html").as_uri())
    assert chromium.execute_script("return document.documentElement.dataset.ready") == "true"
    column = (
        "return [...document.querySelector('table').tBodies[0].rows].map(r => r.cells[4].innerText)"
    )
    head = chromium.find_elements("css selector", "table th button")[4]
    before = chromium.execute_script(column)

    def key(text):
        return float(text.split()[0])

    known = [key(text) for text in before if text != "–"]
    for order in (sorted(known), sorted(known, reverse=True)):
        head.click()
        texts = chromium.execute_script(column)
        assert [key(text) for text in texts[: len(known)]] == order
        assert set(texts[len(known) :]) == {"–"}  # missing numbers are last either way
    sizes = chromium.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(sizes) == 2
    assert min(sizes) > 300
    assert [e for e in chromium.get_log("browser") if e["level"] == "SEVERE"] == []
    requests = [e for e in chromium.get_log("performance") if "requestWillBeSent" in e["message"]]
    assert not [e for e in requests if re.search(r'"url":"https?:', e["message"])]
