"""The digit examples: their noise and scores, a fair comparison, and that they run."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers.forked import ForPools, Program

EXAMPLES = Path(__file__).resolve().parents[2] / "tools" / "examples"
sys.path.insert(0, str(EXAMPLES))  # as Python does when an example is run

import digit_classification  # noqa: E402
import digit_pairs  # noqa: E402
import digit_regression  # noqa: E402
import report  # noqa: E402
from digits import NUM_CLASSES, Run, digit_splits, train  # noqa: E402
from study import example_main, run_study  # noqa: E402

NAMES = ["classification", "regression", "pairs"]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_splits_share_no_digit():
    splits = digit_splits()
    rows = [tuple(row) for data in splits.values() for row in data.inputs.tolist()]
    assert len(rows) == 1797
    assert len(set(rows)) == 1797
    assert all(data.inputs.max() == 1 and data.inputs.min() == 0 for data in splits.values())
    assert all(len(data.targets.unique()) == NUM_CLASSES for data in splits.values())


@pytest.mark.parametrize("keep_possible", [False, True])
def test_label_noise(keep_possible):
    labels = torch.arange(20_000) % NUM_CLASSES
    wrong = {
        rate: digit_classification.replace_labels(labels, rate, rng(), keep_possible) != labels
        for rate in (0.0, 0.3, 0.6)
    }
    expected = 0.6 * (1 - 1 / NUM_CLASSES if keep_possible else 1)
    assert not wrong[0.0].any()
    assert wrong[0.6].float().mean().item() == pytest.approx(expected, abs=0.02)
    assert wrong[0.6][wrong[0.3]].all()
    noisy = digit_classification.replace_labels(labels, 1.0, rng(), keep_possible)
    counts = torch.bincount((noisy - labels) % NUM_CLASSES, minlength=NUM_CLASSES)
    if not keep_possible:
        assert counts[0] == 0
        counts = counts[1:]
    assert counts.max() < 1.2 * counts.min()


def test_regression_and_pair_noise():
    digits = torch.zeros(20_000)
    noisy = digit_regression.replace_digits(digits, 0.5, rng())
    assert (noisy != 0).float().mean().item() == pytest.approx(0.45, abs=0.02)
    assert sorted(noisy.unique().tolist()) == list(range(10))
    same = torch.arange(20_000) % 2 == 0
    tossed = digit_pairs.toss_labels(same, 0.6, rng())
    assert (tossed != same).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(digit_pairs.toss_labels(same, 0.0, rng()), same)


def test_regression_scores_by_hand():
    outputs, digits = torch.tensor([[1.0], [5.0], [9.0]]), torch.tensor([1.0, 4.0, 0.0])
    assert digit_regression.mean_absolute_error(outputs, digits) == pytest.approx(10 / 3)
    assert digit_regression.truncated_accuracy(outputs, digits) == pytest.approx(-1)
    losses = digit_regression.per_sample(F.mse_loss, outputs, digits)
    assert losses.tolist() == [0, 1, 81]


def test_pairs_are_what_their_label_says():
    splits = digit_splits()
    data = digit_pairs.draw_pairs(splits["val"], 50, seed=3)
    digit_of = {tuple(x): y for x, y in zip(splits["val"].inputs.tolist(), splits["val"].targets)}
    for (first, second), same in zip(data.inputs.tolist(), data.targets):
        assert first != second
        assert (digit_of[tuple(first)] == digit_of[tuple(second)]) == same


def test_contrastive_loss_by_hand():
    embeddings = torch.tensor([[[0.0, 0.0], [0.3, 0.4]]]).repeat(3, 1, 1)
    embeddings[2] *= 2
    losses = digit_pairs.contrastive_losses(embeddings, torch.tensor([True, False, False]))
    torch.testing.assert_close(losses, torch.tensor([0.125, 0.02, 0.0]))
    equal = torch.ones(1, 2, 4, requires_grad=True)
    digit_pairs.contrastive_losses(equal, torch.tensor([False])).sum().backward()
    assert equal.grad.isfinite().all()


def test_retrieval_scores_equal_sklearn():
    generator = torch.Generator().manual_seed(0)
    digits = torch.arange(60) % 5
    embeddings = F.normalize(torch.randn(60, 4, generator=generator), dim=1)
    similarity = embeddings @ embeddings.T
    others = ~torch.eye(60, dtype=torch.bool)
    expected = [
        average_precision_score(digits[others[i]] == digits[i], similarity[i][others[i]])
        for i in range(60)
    ]
    value = digit_pairs.mean_average_precision(embeddings, digits)
    assert value == pytest.approx(100 * np.mean(expected))
    pairs = embeddings.reshape(30, 2, 4)
    same = torch.arange(30) % 3 == 0
    expected = roc_auc_score(same, -digit_pairs.distances(pairs))
    assert digit_pairs.rank_accuracy(pairs, same) == pytest.approx(100 * expected)


def run(tau: str | None = None, rate: float = 0.4, lam: float = 1.0, seed: int = 0) -> Run:
    return Run("any class", tau, rate, 1e-3, lam, seed)


def test_a_larger_loss_gains_nothing():
    """Without that, an advantage of the SuperLoss might be a larger step."""
    task = digit_classification.make_task(True)
    larger = task._replace(losses=lambda *x: 2.5 * task.losses(*x))
    plain, scaled = (train(t, run(), 3) for t in (task, larger))
    assert scaled.last_val == pytest.approx(plain.last_val, abs=0.51)
    assert scaled.last_test == pytest.approx(plain.last_test, abs=0.51)
    assert plain.mean_sigma == 1


def test_superloss_starts_like_the_baseline():
    task = digit_classification.make_task(True)
    assert train(task, run(), 1) == train(task, run(), 1)
    # lambda -> inf is the plain loss less a constant.
    large = train(task, run("ExpAvg", lam=1e6), 2)
    plain = train(task, run(), 2)
    assert large.last_test == pytest.approx(plain.last_test, abs=0.51)
    assert train(task, run("ExpAvg", lam=0.1), 2).mean_sigma != pytest.approx(1, abs=0.01)


def test_test_labels_choose_nothing():
    """The same parameters and epochs are chosen when test scores are garbage."""

    def study(test_score):
        study = digit_classification.STUDY
        make = {
            name: lambda make=make: make()._replace(test_score=test_score)
            for name, make in study.tasks.items()
        }
        return type(study)(
            **{**vars(study), "tasks": make, "taus": ("Avg",), "lams": (0.1, 1.0), "sweep": None}
        )

    noise = rng()
    results = [
        run_study(study(score), seeds=[0], rates=[0.4], num_epochs=2, tuning_seeds=[1])
        for score in (digit_classification.accuracy, lambda *_: noise.random())
    ]
    chosen = [[(e["lr"], e["lambda"], e["epoch"]) for e in r["results"]] for r in results]
    assert chosen[0] == chosen[1]
    assert results[0]["results"] != results[1]["results"]


def results_of(baseline: list[float], superloss: list[float], rate: float) -> dict:
    common = {"task": "t", "rate": rate, "lr": 0.1}
    return {
        "title": "T",
        "metric": "accuracy, %",
        "higher_is_better": True,
        "seeds": list(range(len(baseline))),
        "num_trainings": 4,
        "num_epochs": 2,
        "minutes": 0.1,
        "num_processes": 1,
        "sweep": [],
        "results": [
            {**common, "method": method, "lambda": lam, "test": test, "epoch": epoch}
            for epoch in report.EPOCHS
            for method, lam, test in (
                ("baseline", None, baseline),
                ("SuperLoss, Avg", 0.25, superloss),
            )
        ],
    }


def test_report_names_what_falls_short():
    worse = report.markdown(results_of([90.0, 92.0], [88.0, 91.0], 0.2))
    assert "| baseline          | 91.0 ± 1.4 |" in worse
    assert "| SuperLoss, Avg    | -1.50 ± 0.50 |" in worse
    assert "20 % noise or more: SuperLoss, Avg at 20 % (-1.50 ± 0.50)." in worse
    assert "0.1 / 0.25" in worse
    better = report.markdown(results_of([90.0, 92.0], [91.0, 92.0], 0.2))
    assert "20 % noise or more: none." in better
    clean = report.markdown(results_of([90.0, 92.0], [88.0, 91.0], 0.0))
    assert "20 % noise or more: none." in clean


TINY = ["--epochs", "1", "--seeds", "0", "1", "--tuning-seeds", "7", "--rates", "0", "0.4"]


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name, tmp_path):
    program = Program(
        EXAMPLES / f"digit_{name}.py", ["--output", str(tmp_path), *TINY], {**os.environ}
    )
    out, err = program.communicate()
    assert program.returncode == 0, err
    results = json.loads((tmp_path / f"{name}.json").read_text())
    study = {
        "classification": digit_classification,
        "regression": digit_regression,
        "pairs": digit_pairs,
    }[name].STUDY
    # (task, method, rate, epoch), each with one score a seed.
    num_cells = len(study.tasks) * (1 + len(study.taus)) * 2 * 2
    assert len(results["results"]) == num_cells
    assert len(results["sweep"]) == (len(study.tasks) * 2 * len(study.lams) if study.sweep else 0)
    assert all(len(entry["test"]) == 2 for entry in results["results"] + results["sweep"])
    text = (tmp_path / f"{name}.md").read_text()
    assert text.strip() in out
    assert text.count("SuperLoss, Avg") >= 3
    assert Image.open(tmp_path / f"{name}.png").size[0] > 500


def test_workers_change_nothing(monkeypatch):
    monkeypatch.setattr("study.get_context", lambda _: ForPools())
    few = replace(digit_pairs.STUDY, taus=("Avg",), lams=(0.1, 1.0), lrs=(1e-3,), sweep=None)

    def results(num_workers: int) -> list:
        done = run_study(
            few, seeds=[0], rates=[0.4], num_epochs=1, num_workers=num_workers, tuning_seeds=[1]
        )
        return done["results"]

    assert results(1) == results(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rates", "1.5"], "--rates must be in [0, 1]; got 1.5"),
        (["--epochs", "0"], "--epochs must be at least 1; got 0"),
        (["--seeds", "7"], "--seeds and --tuning-seeds must not share [7]"),
    ],
)
def test_bad_options(options, message, tmp_path, monkeypatch, capsys):
    arguments = ["digit_pairs.py", "--output", str(tmp_path / "new"), *TINY, *options]
    monkeypatch.setattr(sys, "argv", arguments)
    assert example_main(digit_pairs.__doc__, digit_pairs.STUDY) == 2
    assert capsys.readouterr().err.strip() == f"digit_pairs.py: error: {message}"
    assert not (tmp_path / "new").exists()
