"""Pictures side by side."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sl_detectron.visualization.boxes import LabelledBox
from sl_detectron.visualization.comparison import _draw


@pytest.mark.parametrize("top", [-1, 0, 3, 20])
def test_labels_stay_in_the_picture(top):
    figure = Figure(figsize=(4, 4))
    renderer = FigureCanvasAgg(figure).get_renderer()
    axis = figure.subplots()
    axis.imshow(np.zeros((128, 128, 3), np.uint8))
    _draw(axis, [LabelledBox(np.array([30, top, 60, 60]), "six (nine)", "red")], 0.05 * 128)
    figure.tight_layout()
    (text,) = axis.texts
    frame = text.get_window_extent(renderer)
    assert frame.y1 <= axis.get_window_extent().y1
    above = frame.y0 > axis.transData.transform((0, top))[1] - 1  # pixel
    assert above == (top == 20)
