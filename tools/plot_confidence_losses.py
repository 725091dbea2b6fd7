#!/usr/bin/env python3
"""Draw the losses with a confidence side by side, as the SuperLoss paper does, and the SuperLoss.

First row: introspection, R2D2 reliability, DataParams and SuperLoss by confidence and score. Second
row: the magnitude of their gradient with respect to the score, which is what reaches the network.
Third row: confidence and value of the SuperLoss by (loss - tau) / lambda, for several lambda.

Examples:
  tools/plot_confidence_losses.py --output figure.png
  tools/plot_confidence_losses.py --output figure.pdf --lambdas 0.1 1 10
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sl_detectron.cli import run_tool, tool_parser
from sl_detectron.losses import confidence, data_params, introspection, r2d2_reliability, superloss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_LEVELS, NUM_COLOURS = 12, 48
LAMBDAS = (0.25, 0.5, 1.0, 2.0)


class LossPanel(NamedTuple):
    """One column of the figure: a loss over the confidence (x) and one score (y).

    Attributes:
        title: of the column
        score: label of the y axis
        sigmas: first and last confidence
        scores: first and last score
        loss: (confidence, score) of one shape to losses of that shape
        log: whether the logarithm of the loss is drawn
    """

    title: str
    score: str
    sigmas: tuple[float, float]
    scores: tuple[float, float]
    loss: Callable[[Tensor, Tensor], Tensor]
    log: bool = False


def _two_class_data_params(sigma: Tensor, difference: Tensor) -> Tensor:
    """DataParams of a sample of class 1 of two, whose logit is ahead by the difference."""
    logits = torch.stack([torch.zeros_like(difference), difference], dim=-1).reshape(-1, 2)
    labels = torch.ones(len(logits), dtype=torch.int64)
    return data_params(logits, labels, sigma.reshape(-1)).reshape(sigma.shape)


def _superloss_of_sigma(sigma: Tensor, distance: Tensor) -> Tensor:
    """SL before sigma is minimised out (eq. 6), lam = 1."""
    return sigma * distance + sigma.log().square()


# Confidences of 0 are outside the domain of three of the losses.
PANELS = (
    LossPanel(
        "introspection",
        "similarity s (y = 1)",
        (0.01, 5),
        (0, 1),
        lambda c, s: introspection(s, 1, c),
    ),
    LossPanel(
        "R2D2 reliability",
        "average precision",
        (0, 1),
        (0, 1),
        lambda c, ap: r2d2_reliability(ap, c),
    ),
    LossPanel(
        "DataParams (log of the loss)",
        "logit difference Δz",
        (0.01, 5),
        (-2, 2),
        _two_class_data_params,
        log=True,
    ),
    LossPanel("SuperLoss (λ = 1)", "loss - τ", (0.1, math.e), (-2, 2), _superloss_of_sigma),
)


def evaluate_panel(panel: LossPanel, num: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A loss and the size of its gradient on a grid.

    Args:
        panel: which loss and where
        num: grid points along each axis, at least 2

    Returns:
        confidences (num,), scores (num,), losses and |d loss / d score|, both (num, num) with one
        row for each score; float64
    """
    sigmas = torch.linspace(*panel.sigmas, num, dtype=torch.float64)
    scores = torch.linspace(*panel.scores, num, dtype=torch.float64)
    score_grid, sigma_grid = torch.meshgrid(scores, sigmas, indexing="ij")
    score_grid = score_grid.clone().requires_grad_()
    losses = panel.loss(sigma_grid, score_grid)
    (gradients,) = torch.autograd.grad(losses.sum(), score_grid)
    return sigmas, scores, losses.detach(), gradients.abs()


def plot_confidence_losses(
    path: str | Path, num: int = 200, lambdas: Sequence[float] = LAMBDAS
) -> None:
    """Draw Figure 1 of the supplementary: losses above, the size of their gradients below.

    Every gradient is that by the score on the y axis; black lines join equal values. A third row
    shows the SuperLoss with the best sigma over (loss - tau) / lambda.

    Args:
        path: the picture; its suffix chooses the format
        num: grid points along each axis, at least 2
        lambdas: for the third row, each above 0

    Raises:
        ValueError: ``num`` or a lambda out of range, or a path without a suffix that
            matplotlib knows
        ImportError: matplotlib is not installed
    """
    if num < 2:
        raise ValueError(f"num must be at least 2; got {num}")
    if Path(path).is_dir() or not Path(path).suffix:
        # matplotlib would write to another name beside it.
        raise ValueError(f"the picture needs a file name with a suffix such as .png; got {path!r}")
    # Figure, unlike pyplot, leaves the user's backend alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(PANELS), 9), layout="constrained")
    grid = figure.add_gridspec(3, len(PANELS))
    for column, panel in enumerate(PANELS):
        sigmas, scores, losses, gradients = evaluate_panel(panel, num)
        drawn = losses.log() if panel.log else losses
        axes = figure.add_subplot(grid[0, column], title=panel.title)
        _draw_map(axes, panel, sigmas, scores, drawn)
        axes = figure.add_subplot(grid[1, column], title="|gradient by the score|")
        _draw_map(axes, panel, sigmas, scores, gradients)
    half = len(PANELS) // 2
    sigma_axes, value_axes = (
        figure.add_subplot(grid[2, c]) for c in (slice(half), slice(half, None))
    )
    _draw_superloss(sigma_axes, value_axes, lambdas)
    figure.savefig(path, dpi=80)


def _draw_map(axes: "Axes", panel: LossPanel, x: Tensor, y: Tensor, values: Tensor) -> None:
    image = axes.contourf(x, y, values, levels=NUM_COLOURS, cmap="viridis")
    axes.contour(
        x, y, values, levels=NUM_LEVELS, colors="black", linewidths=0.7, linestyles="solid"
    )
    axes.set_xlabel("confidence σ")
    axes.set_ylabel(panel.score)
    axes.figure.colorbar(image, ax=axes)


def _draw_superloss(sigma_axes: "Axes", value_axes: "Axes", lambdas: Sequence[float]) -> None:
    beta = torch.linspace(-2, 8, 500, dtype=torch.float64)
    # sigma is the same for all: drawn ever thinner, so that it shows.
    for width, lam in zip(range(2 * len(lambdas), 0, -2), lambdas):
        label = f"λ = {lam:g}"
        sigma_axes.plot(beta, confidence(lam * beta, 0, lam), linewidth=width, label=label)
        value_axes.plot(beta, superloss(lam * beta, 0, lam), label=label)
    sigma_axes.axvline(-2 / math.e, color="grey", linestyle=":")
    sigma_axes.annotate("β = -2/e", (-2 / math.e, 0), (4, 4), textcoords="offset points")
    for axes, title in (
        (sigma_axes, "confidence σ* of the SuperLoss"),
        (value_axes, "SuperLoss SL*"),
    ):
        axes.set_title(title)
        axes.set_xlabel("β = (loss - τ) / λ")
        axes.grid(alpha=0.3)
        axes.legend()


def main(args: argparse.Namespace) -> None:
    plot_confidence_losses(args.output, lambdas=args.lambdas)
    print(f"picture: {args.output}")


def cli() -> int:
    parser = tool_parser(__doc__)
    parser.add_argument("--output", required=True, help="the picture: .png, .pdf or .svg")
    parser.add_argument(
        "--lambdas",
        type=float,
        nargs="+",
        default=LAMBDAS,
        help="values of lambda in the third row",
    )
    return run_tool(main, parser.parse_args())


if __name__ == "__main__":
    sys.exit(cli())
