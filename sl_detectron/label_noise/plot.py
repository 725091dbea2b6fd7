"""A picture of what label noise did."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .stats import NoiseStatistics

__all__ = ["plot_confusion"]


def plot_confusion(
    statistics: NoiseStatistics, class_names: Sequence[str], path: str | Path
) -> None:
    """Write the confusion matrix as a picture: share of each clean class, in percent.

    Args:
        statistics: from :func:`~sl_detectron.label_noise.stats.noise_statistics`
        class_names: K names
        path: of the PNG
    """
    # matplotlib takes a second to import and only this picture needs it; Figure, unlike pyplot,
    # leaves the user's backend alone.
    from matplotlib.figure import Figure

    counts = statistics.confusion[:-1].astype(float)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    num_rows, num_columns = percent.shape
    side = 2.5 + 0.35 * num_columns
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="viridis", vmin=0, vmax=100)
    axes.set_xticks(range(num_columns), [*class_names, "missing"], rotation=90)
    axes.set_yticks(range(num_rows), class_names)
    axes.set_xlabel("noisy label")
    axes.set_ylabel("clean label")
    if num_rows <= 30:
        for row, column in np.argwhere(percent >= 0.5):
            value = percent[row, column]
            color = "black" if value > 60 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, size=7)
    figure.colorbar(image, label="% of the clean class", shrink=0.7)
    axes.set_title(f"{100 * statistics.label_rate:.1f} % of labels are wrong")
    figure.savefig(path, dpi=120)
