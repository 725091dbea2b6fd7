"""What noise did to a dataset, counted and tested for uniformity."""

import numpy as np
import pytest
from scipy import stats

from sl_detectron.data.formats.changes import Change
from sl_detectron.label_noise.stats import noise_statistics, statistics_table, uniformity_test


def test_statistics_by_hand():
    annotations = [{"category_id": c} for c in (0, 0, 1, 1)]
    annotations.append({"category_id": 1, "iscrowd": 1})
    changes = [
        Change("a", 0, "label", 0, 1),
        Change("a", 2, "missing", {"category_id": 1, "bbox": []}, None),
        Change("a", 3, "box", [], []),
        Change("a", 5, "spurious", None, {"category_id": 2, "bbox": []}),
    ]
    records = [{"image_id": "a", "annotations": annotations}]
    statistics = noise_statistics(records, changes, 3)
    assert statistics.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert statistics.counts == {"label": 1, "box": 1, "missing": 1, "spurious": 1}
    assert statistics.num_annotations == 4
    assert statistics.label_rate == 0.25
    np.testing.assert_array_equal(statistics.label_rate_per_class, [0.5, 0.0, np.nan])
    rows = [row.split("|")[1:-1] for row in statistics_table(statistics, "xyz").splitlines()[2:]]
    assert [[cell.strip() for cell in row][:5] for row in rows] == [
        ["x", "2", "1", "0", "0"],
        ["y", "2", "0", "1", "0"],
        ["z", "0", "0", "0", "1"],
        ["total", "4", "1", "1", "1"],
    ]


def test_uniformity_against_scipy():
    counts = np.random.default_rng(0).poisson(30, size=(6, 6))
    counts[4] = 0
    rows = [stats.chisquare(np.delete(counts[i], i)) for i in (0, 1, 2, 3, 5)]
    statistic, dof, p = uniformity_test(counts)
    assert statistic == pytest.approx(sum(row.statistic for row in rows))
    assert dof == 5 * 4
    assert p == pytest.approx(stats.chi2.sf(statistic, dof), rel=1e-9)


def test_uniformity_finds_a_class_that_is_never_drawn():
    """The mistake of ``randint(0, K - 1)``: the last class is out of reach."""
    rng = np.random.default_rng(0)
    confusion = np.zeros((20, 20), int)
    for true in range(20):
        others = [c for c in range(19) if c != true]
        confusion[true] = np.bincount(rng.choice(others, 200), minlength=20)
    assert uniformity_test(confusion)[2] < 1e-6


def test_uniformity_needs_three_classes():
    with pytest.raises(ValueError, match="at least 3 classes"):
        uniformity_test(np.ones((2, 2)))
    assert uniformity_test(np.eye(3)) == (0.0, 0, 1.0)
