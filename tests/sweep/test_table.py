"""Tables of a sweep: arithmetic by hand, missing runs, one seed, published numbers."""

import csv
import dataclasses
import json
import re

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from helpers.grid_cases import AP50, RESULTS_GRID, F, R, run_here, write_results
from sl_detectron.sweep import make_tables, read_results
from sl_detectron.sweep.plots import _draw
from sl_detectron.sweep.statistics import seeds_needed
from sl_detectron.sweep.table import as_csv, latex, markdown


def rows(text, title):
    """{first column or two: runs} of the Markdown table under a title."""
    section = text.split(f"## {title}")[1].split("##")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[run.strip() for run in line.strip("|").split("|")] for line in lines]


def test_means(folder):
    text = markdown(read_results(folder))
    assert rows(text, "AP50 by") == [
        [R, "baseline", "52.0 ± 2.0", "43.0 ± 3.6"],
        ["", "(published)", "80.6 ± 0.2", "74.6 ± 0.6"],
        ["", "equal weight", "50.0 ± 0.0", "42.5 ± 2.1 (n = 2)"],
        ["", "τ_avg", "54.0 ± 3.0", "46.0 (n = 1)"],
        [F, "baseline", "61.0 ± 1.0", "–"],
        ["", "τ_avg", "–", "–"],
    ]
    assert rows(text, "AP by")[0] == [R, "baseline", "26.0 ± 1.0", "21.5 ± 1.8"]
    assert "over 3 seeds" in text
    assert "12 of 30 runs are missing" in text
    assert "Published: A. Author, 2020." in text


def test_differences_are_paired_by_seed(folder):
    """1, 2, 3 against the baseline: mean 2, error 1/sqrt(3), t(2) = 4.3027; all by hand."""
    text = markdown(read_results(folder))
    assert rows(text, "Differences in AP50") == [
        [
            R,
            "equal weight − baseline",
            "−2.0 ± 1.2 [−7.0, +3.0]",
            "−1.0 ± 2.0 [−26.4, +24.4] (n = 2)",
        ],
        ["", "τ_avg − baseline", "+2.0 ± 0.6 [−0.5, +4.5]", "−1.0 (n = 1)"],
        ["", "τ_avg − equal weight", "+4.0 ± 1.7 [−3.5, +11.5]", "+2.0 (n = 1)"],
        [F, "τ_avg − baseline", "–", "–"],
    ]


def test_what_is_lost_from_clean_beside_what_was_published(folder):
    """Baseline by seed: 10, 10, 7, so 9 and an error of 1; equal weight by seeds 0 and 2: 9, 6."""
    results = read_results(folder)
    assert rows(markdown(results), "Lost from 0 % in AP50, paired by seed") == [
        [R, "baseline", "52.0 ± 2.0", "+9.0 ± 1.0 [+4.7, +13.3]"],
        ["", "(published)", "80.6", "+6.0"],
        ["", "equal weight", "50.0 ± 0.0", "+7.5 ± 1.5 [−11.6, +26.6] (n = 2)"],
        ["", "τ_avg", "54.0 ± 3.0", "+11.0 (n = 1)"],
        [F, "baseline", "61.0 ± 1.0", "–"],
        ["", "τ_avg", "–", "–"],
    ]
    (line,) = (
        x for x in as_csv(results.lost).splitlines() if x.startswith(f"{R},baseline,0.4,AP50")
    )
    assert line == f"{R},baseline,0.4,AP50,3,9.0000,1.0000,4.6973,13.3027,0.0121,6.0000"


def test_what_is_recovered_of_the_loss_of_the_baseline(folder):
    """The baseline loses 10, 10, 7. Equal weight is 1 ahead of it in seed 0 and 3 behind in 2."""
    results = read_results(folder)
    assert rows(markdown(results), "Recovered of what noise costs the baseline in AP50") == [
        [R, "equal weight", "−12 % (−43 to 10) (n = 2)"],
        ["", "τ_avg", "−14 % (n = 1)"],
        [F, "τ_avg", "–"],
    ]
    (line,) = (
        x
        for x in as_csv(results.recovered).splitlines()
        if x.startswith(f"{R},equal weight,0.4,AP50")
    )
    assert line == f"{R},equal weight,0.4,AP50,2,-11.7647,-42.8571,10.0000"


def test_nothing_is_recovered_where_noise_costs_nothing(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RESULTS_GRID, sort_keys=False))
    values = {(R, "baseline", 0.0, 0): 50.0, (R, "baseline", 0.4, 0): 50.0}
    write_results(path, tmp_path / "output", {**values, (R, "τ_avg", 0.4, 0): 51.0})
    text = markdown(read_results(tmp_path / "output"))
    assert rows(text, "Recovered of what noise costs the baseline in AP50")[1] == [
        "",
        "τ_avg",
        "– (n = 1)",
    ]


def test_what_is_lost_without_a_shared_seed_is_said_to_be_unpaired(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RESULTS_GRID, sort_keys=False))
    values = {(R, "baseline", 0.0, 0): 50.0, (R, "baseline", 0.4, 1): 43.0}
    write_results(path, tmp_path / "output", values)
    text = markdown(read_results(tmp_path / "output"))
    assert rows(text, "Lost from 0 % in AP50")[0] == [
        *(R, "baseline", "50.0 (n = 1)", "+7.0 (unpaired)")
    ]


def test_without_noise_0_nothing_is_lost_from_it(folder):
    results = read_results(folder)
    grid = dataclasses.replace(results.grid, noise=(0.4,))
    assert "Lost" not in markdown(dataclasses.replace(results, grid=grid))


def test_a_difference_that_many_tests_leave_is_marked(tmp_path):
    """Differences of 5.0, 5.1, 5.2: p below 0.001; of 1, 2, 3: 0.07."""
    path = tmp_path / "grid.yaml"
    names = {name: {"config": "x"} for name in ("baseline", "sure", "open")}
    grid = {**RESULTS_GRID, "controls": [], "detectors": {R: names}}
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    values = {(R, "baseline", 0.0, seed): 50.0 + seed for seed in range(3)}
    values |= {(R, "sure", 0.0, seed): 55.0 + 1.1 * seed for seed in range(3)}
    values |= {(R, "open", 0.0, seed): 51.0 + 2 * seed for seed in range(3)}
    write_results(path, tmp_path / "output", values)
    text = markdown(read_results(tmp_path / "output"))
    sure, open_ = rows(text, "Differences in AP50")
    assert sure[2] == "+5.1 ± 0.1 [+4.9, +5.3] *"
    assert open_[2] == "+2.0 ± 0.6 [−0.5, +4.5]"
    assert "2 differences in AP50 are tested at once" in text
    # Pooled: sqrt((0.1^2 + 1^2) / 2) with two degrees of freedom each.
    (needed,) = rows(text, "Seeds that a difference in AP50 needs")
    std = (1.01 / 2) ** 0.5
    assert needed == [
        R,
        "0.7 (4 degrees of freedom)",
        *(str(seeds_needed(std, d)) for d in (1, 2, 5)),
    ]


def test_differences_of_the_same_methods_are_not_counted_as_independent(folder):
    """Clean: 2 x 2 of three methods and seeds, not 3 x 2; at 40 % one pair has two seeds."""
    results = read_results(folder)
    (power,) = results.power.query("metric == 'AP50'").itertuples()
    assert (power.detector, power.freedom) == (R, 5)
    # Variances by hand: clean 4 (of three seeds), 1 and 9, at 40 % 8 of two seeds.
    assert power.std == pytest.approx(((2 * 4 + 2 * 1 + 2 * 9 + 8) / 7) ** 0.5)


def test_no_pair_has_two_seeds(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RESULTS_GRID, sort_keys=False))
    values = {(R, "baseline", 0.0, 0): 50.0, (R, "τ_avg", 0.0, 0): 51.0}
    write_results(path, tmp_path / "output", values)
    results = read_results(tmp_path / "output")
    assert as_csv(results.power).splitlines() == [
        "detector,metric,std,freedom,seeds_for_1,seeds_for_2,seeds_for_5"
    ]
    assert "Seeds that a difference" not in markdown(results)
    assert "Seeds that a difference" not in latex(results)


def test_a_bound_just_below_0_shows_its_sign(tmp_path):
    """1.46, 2.46, 3.46: mean 2.46, low 2.46 - 4.3027 / sqrt(3) = -0.024, so 0 is included."""
    path = tmp_path / "grid.yaml"
    rows_of = {R: {"baseline": {"config": "x"}, "other": {"config": "x"}}}
    path.write_text(yaml.safe_dump({**RESULTS_GRID, "controls": [], "detectors": rows_of}))
    pairs = zip((50.0, 52.0, 54.0), (51.46, 54.46, 57.46))
    values = {
        (R, name, 0.0, seed): value
        for seed, pair in enumerate(pairs)
        for name, value in zip(("baseline", "other"), pair)
    }
    write_results(path, tmp_path / "output", values)
    (row,) = rows(markdown(read_results(tmp_path / "output")), "Differences in AP50")
    assert row[2:] == ["+2.5 ± 0.6 [−0.0, +4.9]", "–"]


def test_options_of_the_command_line_are_said_and_published_numbers_left_out(folder):
    """These are of another schedule."""
    (folder / "options.json").write_text('["SOLVER.MAX_ITER", "100", "SOLVER.GAMMA", "1"]')
    results = read_results(folder)
    for text in (markdown(results), latex(results)):
        assert re.search(r"not in the grid's file: SOLVER.MAX_ITER 100, SOLVER.GAMMA 1\.", text)
        assert "ublished" not in text
    (line,) = (
        x for x in as_csv(results.means).splitlines() if x.startswith(f"{R},baseline,0,AP50")
    )
    assert line.endswith(",52.0000,2.0000,,")


def test_a_bar_in_a_name_is_no_column(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        yaml.safe_dump(
            {**RESULTS_GRID, "controls": [], "detectors": {"a|b": RESULTS_GRID["detectors"][F]}}
        )
    )
    write_results(path, tmp_path / "output", {("a|b", "baseline", 0.0, 0): 50.0})
    text = markdown(read_results(tmp_path / "output"))
    assert "| a\\|b " in text
    assert "a|b" not in text


def test_files(folder, tmp_path):
    paths = make_tables(folder, tmp_path / "tables")
    names = ["table.md", "table.tex", "table.csv", "runs.csv", "differences.csv", "lost.csv"]
    names += ["recovered.csv", "power.csv"]
    assert [path.name for path in paths] == [*names, "table.html", "ap50.png", "ap50.pdf"]
    with open(tmp_path / "tables" / "runs.csv") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == sum(v is not None for row in AP50.values() for v in row)
    keys = ("detector", "method", "noise", "seed", "AP", "AP50", "AP75")
    assert [runs[0][k] for k in keys] == [
        *(R, "baseline", "0", "0"),
        "25.0000",
        "50.0000",
        "40.0000",
    ]
    with open(tmp_path / "tables" / "table.csv") as file:
        lines = {
            (r["detector"], r["method"], r["noise"], r["metric"]): r for r in csv.DictReader(file)
        }
    assert len(lines) == 5 * 2 * 3
    line = lines[R, "baseline", "0", "AP50"]
    assert [line[k] for k in ("num_seeds", "mean", "std")] == ["3", "52.0000", "2.0000"]
    assert (line["paper_mean"], line["paper_std"]) == ("80.6000", "0.2000")
    line = lines[R, "τ_avg", "0.4", "AP75"]
    assert [line[k] for k in ("num_seeds", "mean", "std", "paper_mean")] == ["1", "36.8000", "", ""]
    line = lines[F, "τ_avg", "0", "AP"]
    assert [line[k] for k in ("num_seeds", "mean", "std")] == ["0", "", ""]
    with open(tmp_path / "tables" / "differences.csv") as file:
        (line,) = (
            r
            for r in csv.DictReader(file)
            if (r["detector"], r["method"], r["reference"]) == (R, "τ_avg", "baseline")
            and (r["noise"], r["metric"]) == ("0", "AP50")
        )
    keys = ("num_seeds", "mean", "standard_error", "ci95_low", "ci95_high")
    assert [line[k] for k in keys] == ["3", "2.0000", "0.5774", "-0.4841", "4.4841"]
    # p of t(2) = 3.46; the smallest of the four that are tested.
    assert [line[k] for k in ("p", "p_holm")] == ["0.0742", "0.2967"]
    picture = Image.open(tmp_path / "tables" / "ap50.png")
    assert picture.size[0] > 800  # two panels
    assert len(picture.convert("RGB").getcolors(1 << 16)) > 50
    assert (tmp_path / "tables" / "ap50.png").stat().st_size < 150_000


def test_equal_results_give_equal_files(folder, tmp_path):
    first, second = (make_tables(folder, tmp_path / name) for name in ("first", "second"))
    for one, other in zip(first, second):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_latex_escapes_and_balances(folder):
    text = latex(read_results(folder))
    assert text.isascii()
    assert r"$\tau$\_avg" in text
    assert r"52.0 $\pm$ 2.0" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 14
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)%", body)
    for table in body.split(r"\end{table}")[:-1]:
        columns = re.search(r"begin{tabular}{(l+)}", table)[1]
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") for line in lines} == {len(columns) - 1}


def test_one_seed_has_neither_deviation_nor_interval(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**RESULTS_GRID, "seeds": [0]}, sort_keys=False))
    values = {(R, "baseline", 0.0, 0): 50.0, (R, "τ_avg", 0.0, 0): 53.0}
    write_results(path, tmp_path / "output", values)
    text = markdown(read_results(tmp_path / "output"))
    assert "one seed: no standard deviation and no confidence interval" in text
    assert rows(text, "AP50 by")[0] == [R, "baseline", "50.0", "–"]
    assert rows(text, "Differences in AP50")[1] == ["", "τ_avg − baseline", "+3.0", "–"]
    assert "[" not in text


def test_a_folder_that_is_no_sweep(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no grid\.yaml"):
        make_tables(tmp_path, tmp_path)


def test_a_result_without_ap75(folder):
    (path,) = folder.glob("retinanet/baseline/noise_0/seed_0/result.json")
    path.write_text('{"fingerprint": "x", "metrics": {"AP": 1, "AP50": 1}}')
    with pytest.raises(ValueError, match=r"seed_0 has no 'AP75'"):
        read_results(folder)


def test_means_over_chosen_classes(folder):
    for path in folder.glob("*/*/*/*/result.json"):
        result = json.loads(path.read_text())
        for metric, value in list(result["metrics"].items()):
            # 1 more and 3 less than the mean over all, and one class that is not asked for.
            result["metrics"] |= {
                f"{metric}-cat": value + 1,
                f"{metric}-dog": value - 3,
                f"{metric}-cow": float("nan"),
            }
        path.write_text(json.dumps(result))
    text = markdown(read_results(folder, ["cat", "dog"]))
    assert "Mean over cat, dog." in text
    assert rows(text, "AP50 by")[0] == [R, "baseline", "51.0 ± 2.0", "42.0 ± 3.6"]
    done = run_here("make_table", folder, "--classes", "cat, dog")
    assert done.returncode == 0, done.stderr
    assert (folder / "table.md").read_text() == text
    assert run_here("make_table", folder, "--classes", "cat,").returncode == 2
    with pytest.raises(ValueError, match="seed_0 has no 'AP-gnu'"):
        read_results(folder, ["gnu"])


def test_published_numbers_are_no_means_over_chosen_classes(folder):
    for path in folder.glob("*/*/*/*/result.json"):
        result = json.loads(path.read_text())
        result["metrics"] |= {f"{m}-cat": v for m, v in list(result["metrics"].items())}
        path.write_text(json.dumps(result))
    assert "(published)" in markdown(read_results(folder))
    results = read_results(folder, ["cat"])
    assert "ublished" not in markdown(results)
    assert "80.6" not in as_csv(results.means)


def test_a_run_without_a_number_is_missing_and_said(folder):
    (path,) = folder.glob("retinanet/baseline/noise_0/seed_0/result.json")
    result = json.loads(path.read_text())
    result["metrics"]["AP75"] = float("nan")
    path.write_text(json.dumps(result))
    text = markdown(read_results(folder))
    assert rows(text, "AP50 by")[0][2] == "53.0 ± 1.4 (n = 2)"
    assert "1 of them are finished, but without a number (NaN), first RetinaNet, baseline" in text
    result["metrics"]["AP75"] = None
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="seed_0 has a metric that is no number"):
        read_results(folder)


def test_notes_and_names_are_one_line(tmp_path):
    path = tmp_path / "grid.yaml"
    names = {"a\n$\\bad{$": {"config": "x", "paper": {"AP50": [1, 2]}}}
    grid = {**RESULTS_GRID, "source": "one\ntwo & 5 %", "detectors": {R: names}}
    del grid["baseline"], grid["controls"]
    path.write_text(yaml.safe_dump({**grid, "noise": [0.4, 0.0]}, sort_keys=False))
    write_results(path, tmp_path / "output", {(R, "a $\\bad{$", 0.4, 0): 50.0})
    make_tables(tmp_path / "output", tmp_path / "output")  # the plot as well
    assert "% Published: one two & 5 %." in (tmp_path / "output" / "table.tex").read_text()


def test_a_line_goes_through_the_levels_in_order(folder):
    results = read_results(folder)
    grid = dataclasses.replace(results.grid, noise=(0.4, 0.0))
    axes = Figure().subplots()
    _draw(axes, dataclasses.replace(results, grid=grid), 0, grid.methods[0])
    ours, published = axes.get_lines()
    assert list(ours.get_xdata()) == [0.0, 40.0]
    assert list(ours.get_ydata()) == [52.0, 43.0]
    assert list(published.get_ydata()) == [74.6, 80.6]


@pytest.mark.parametrize("seeds", [(0, 1), (1, 0)])
def test_no_range_of_what_is_recovered_where_noise_costs_nothing_in_a_seed(seeds, tmp_path):
    """The baseline loses 10 and -1, of which 5 and 1 are won back: 6 of 9, but of -1 no share."""
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RESULTS_GRID, sort_keys=False))
    values = {}
    for seed, noisy, ours in zip(seeds, (40.0, 51.0), (45.0, 52.0)):
        values |= {(R, "baseline", 0.0, seed): 50.0, (R, "baseline", 0.4, seed): noisy}
        values[R, "τ_avg", 0.4, seed] = ours
    write_results(path, tmp_path / "output", values)
    results = read_results(tmp_path / "output")
    recovered = rows(markdown(results), "Recovered of what noise costs the baseline in AP50")
    assert recovered[1] == ["", "τ_avg", "67 % (n = 2)"]
    (line,) = (
        x for x in as_csv(results.recovered).splitlines() if x.startswith(f"{R},τ_avg,0.4,AP50")
    )
    assert line == f"{R},τ_avg,0.4,AP50,2,66.6667,,"


def test_a_share_just_below_0_is_no_negative_zero(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**RESULTS_GRID, "seeds": [0]}, sort_keys=False))
    values = {(R, "baseline", 0.0, 0): 50.0, (R, "baseline", 0.4, 0): 40.0}
    write_results(path, tmp_path / "output", {**values, (R, "τ_avg", 0.4, 0): 39.99})
    text = markdown(read_results(tmp_path / "output"))
    assert rows(text, "Recovered of what noise costs the baseline in AP50")[1][2] == "0 %"


def test_a_control_is_no_baseline(folder):
    """Without a baseline nothing is recovered of what the noise costs it."""
    path = folder / "grid.yaml"
    path.write_text(path.read_text().replace("baseline: baseline\n", "", 1))
    results = read_results(folder)
    assert results.grid.references == ("equal weight",)
    assert results.recovered.empty
    assert "Recovered" not in markdown(results)


def test_fewer_seeds_are_said_in_every_table(folder):
    """Of equal weight without noise seeds 1 and 2 are left: differences of 4 and 7."""
    next(folder.glob("retinanet/equal_weight/noise_0/seed_0/result.json")).unlink()
    text = markdown(read_results(folder))
    assert rows(text, "Lost from 0 % in AP50")[2][2] == "50.0 ± 0.0 (n = 2)"
