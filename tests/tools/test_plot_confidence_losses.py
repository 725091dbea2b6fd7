"""The figure of the confidence-aware losses: what it shows, and that it is drawn."""

import math
import os
import runpy
import sys

import pytest
import torch
from PIL import Image

from helpers import REPO
from helpers.forked import Program
from tools.plot_confidence_losses import PANELS, evaluate_panel, plot_confidence_losses

BY_TITLE = {panel.title.split()[0]: panel for panel in PANELS}


@pytest.mark.parametrize("name", ["introspection", "R2D2", "SuperLoss"])
def test_gradient_grows_with_confidence(name):
    sigmas, _, _, gradients = evaluate_panel(BY_TITLE[name], num=101)
    assert (gradients.diff(dim=1) > 0).all()
    # Of these three it is the confidence itself.
    torch.testing.assert_close(gradients, sigmas.expand_as(gradients))


def test_gradient_of_data_params_grows_with_confidence_but_locally():
    sigmas, differences, _, gradients = evaluate_panel(BY_TITLE["DataParams"], num=201)
    grows = gradients.diff(dim=1) > 0
    wrong = differences <= 0
    assert grows[wrong].all()
    # Ahead by d, sigma / (1 + exp(sigma * d)) has its top where exp(-u) = u - 1, u = sigma * d.
    top = 1.2784645427610738
    product = sigmas * differences[~wrong][:, None]
    assert grows[~wrong][product[:, 1:] < top].all()
    assert not grows[~wrong][product[:, :-1] > top].any()
    assert not grows[~wrong].all()


@pytest.mark.parametrize("name", sorted(BY_TITLE))
def test_losses_of_the_grid(name):
    """A few points by hand: sigma right, score up."""
    panel = BY_TITLE[name]
    sigmas, scores, losses, _ = evaluate_panel(panel, num=5)
    assert (sigmas[0], sigmas[-1]) == pytest.approx(panel.sigmas)
    sigma, score = sigmas[3].item(), scores[1].item()
    expected = {
        "introspection": math.log((math.exp(sigma) - 1) / sigma) - sigma * score,
        "R2D2": sigma * (1 - score) + (1 - sigma) / 2,
        "DataParams": math.log(1 + math.exp(-sigma * score)),
        "SuperLoss": sigma * score + math.log(sigma) ** 2,
    }
    assert losses[1, 3].item() == pytest.approx(expected[name])


def test_grid_has_a_row_for_each_score():
    _, _, losses, gradients = evaluate_panel(BY_TITLE["R2D2"], num=3)
    assert losses[0].tolist() == [0.5, 0.75, 1.0]
    assert gradients[0].tolist() == [0.0, 0.5, 1.0]


def test_all_pictures_are_drawn(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    plot_confidence_losses(tmp_path / "figure.png", num=20, lambdas=[0.5, 2.0])
    titles = [axes.get_title() for axes in figures[0].axes]
    assert [title for title in titles if title in {panel.title for panel in PANELS}] == [
        panel.title for panel in PANELS
    ]
    assert sum("gradient" in title for title in titles) == len(PANELS)
    sigma_axes, value_axes = (a for a in figures[0].axes if "β" in a.get_xlabel())
    curves = [line.get_ydata() for line in sigma_axes.lines if len(line.get_xdata()) > 2]
    # One curve for every lambda, and all the same: sigma knows only (loss - tau) / lambda.
    torch.testing.assert_close(*map(torch.as_tensor, curves))
    values = [torch.as_tensor(line.get_ydata()) for line in value_axes.lines]
    torch.testing.assert_close(4 * values[0], values[1])


def test_tool(tmp_path):
    path = tmp_path / "figure.png"
    tool = REPO / "tools" / "plot_confidence_losses.py"
    program = Program(tool, ["--output", str(path)], {**os.environ})
    _, err = program.communicate()
    assert program.returncode == 0, err
    assert Image.open(path).size[0] > 800


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "figure.png", "--lambdas", "0"], "lam must be above 0"),
        (["--output", "figure.abc"], "Format 'abc' is not supported"),
        (["--output", "no/figure.png"], "No such file or directory"),
        (["--output", "."], "needs a file name with a suffix"),
        (["--output", ""], "needs a file name with a suffix"),
    ],
)
def test_errors_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tool = str(REPO / "tools" / "plot_confidence_losses.py")
    monkeypatch.setattr(sys, "argv", [tool, *options])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(tool, run_name="__main__")
    assert done.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert message in error
