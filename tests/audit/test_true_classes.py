"""From predictions and noisy labels to the true classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sl_detectron.audit.cross_fit import cross_fit
from sl_detectron.audit.few_classes import FewClasses
from sl_detectron.audit.true_classes import (
    LEAST_GAIN,
    correction_table,
    estimate_true_classes,
    infer_true_classes,
    predict_held_out,
)

NUM_CLASSES = 5


def noisy(true, rate, generator, pairs=False):
    """Labels of which a share is wrong: any other class, or the next one."""
    wrong = torch.rand(len(true), generator=generator) < rate
    shift = torch.randint(1, NUM_CLASSES, (len(true),), generator=generator)
    shift = torch.ones_like(shift) if pairs else shift
    return torch.where(wrong, (true + shift) % NUM_CLASSES, true)


def predictions_of(true, accuracy, generator):
    """Calibrated predictions of a classifier with this accuracy, confident by random degrees."""
    guess = noisy(true, 1 - accuracy, generator)
    one_hot = F.one_hot(guess, NUM_CLASSES).float()
    rest = (1 - accuracy) / (NUM_CLASSES - 1)
    return one_hot * (accuracy - rest) + rest


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6])
def test_rate_and_confusion_of_symmetric_noise(rate, generator):
    true = torch.randint(0, NUM_CLASSES, (4000,), generator=generator)
    labels = noisy(true, rate, generator)
    estimate = infer_true_classes(predictions_of(true, 0.9, generator), labels, 1.0)
    assert estimate.noise_rate == pytest.approx(rate, abs=0.03)
    expected = torch.full((NUM_CLASSES, NUM_CLASSES), rate / (NUM_CLASSES - 1))
    expected.fill_diagonal_(1 - rate)
    torch.testing.assert_close(estimate.confusion, expected, atol=0.04, rtol=0)
    # Calibrated: as many are right as the probabilities say.
    best = estimate.probabilities.max(dim=1)
    right = (best.indices == true).float().mean()
    assert right == pytest.approx(float(best.values.mean()), abs=0.02)
    assert right > 0.9


def test_confusable_pairs_are_learned(generator):
    """At 30 % from each class to the next one, a threshold of one probability is not enough."""
    true = torch.randint(0, NUM_CLASSES, (4000,), generator=generator)
    labels = noisy(true, 0.3, generator, pairs=True)
    predictions = predictions_of(true, 0.85, generator)
    estimate = infer_true_classes(predictions, labels, 1.0)
    torch.testing.assert_close(
        estimate.confusion,
        0.7 * torch.eye(NUM_CLASSES) + 0.3 * torch.eye(NUM_CLASSES).roll(1, dims=1),
        atol=0.04,
        rtol=0,
    )
    ours = (estimate.probabilities.argmax(dim=1) != true).sum()
    assert ours < 0.6 * (predictions.argmax(dim=1) != true).sum()
    assert ours < 0.3 * (labels != true).sum()


def test_rare_classes_survive(generator):
    """1 % of the objects, a class that most of its labels are wrong for."""
    true = (torch.rand(6000, generator=generator) < 0.01).long()
    labels = noisy(true, 0.4, generator)
    estimate = infer_true_classes(predictions_of(true, 0.95, generator), labels, 1.0)
    found = estimate.probabilities.argmax(dim=1)
    assert (labels == 1).sum() > 5 * (true == 1).sum()
    assert (found[true == 1] == 1).float().mean() > 0.5
    assert (true[found == 1] == 1).float().mean() > 0.3


def features_of(true, generator, spread=0.7):
    """Gaussian clusters, one for each class."""
    centers = torch.randn(NUM_CLASSES, 16, generator=generator)
    return centers[true] + spread * torch.randn(len(true), 16, generator=generator)


def test_cross_fitted_predictions_never_saw_the_label(generator):
    true = torch.randint(0, NUM_CLASSES, (1500,), generator=generator)
    features = features_of(true, generator)
    labels, groups = noisy(true, 0.4, generator), torch.arange(1500) // 3
    predictions = cross_fit(features, labels, groups, NUM_CLASSES)
    torch.testing.assert_close(predictions.sum(dim=1), torch.ones(1500), atol=1e-4, rtol=0)
    assert (predictions.argmax(dim=1) == true).float().mean() > 0.9
    # Another label of one group leaves the predictions for this group as they are.
    changed = labels.clone()
    changed[groups == 7] = (changed[groups == 7] + 1) % NUM_CLASSES
    again = cross_fit(features, changed, groups, NUM_CLASSES)
    assert torch.equal(again[groups == 7], predictions[groups == 7])
    assert not torch.equal(again, predictions)


def test_images_without_annotations_make_no_fold(generator):
    """As those that have crowds only, or cannot be read: a fold of them could not be fitted."""
    true = torch.randint(0, NUM_CLASSES, (12,), generator=generator)
    features, groups = features_of(true, generator), torch.arange(12) // 2
    predictions = cross_fit(features, true, groups, NUM_CLASSES)
    assert torch.equal(cross_fit(features, true, 50 * groups, NUM_CLASSES), predictions)
    with pytest.raises(ValueError, match="needs at least 5 images with annotations; got 1"):
        cross_fit(features[:1], true[:1], torch.tensor([90]), NUM_CLASSES)
    with pytest.raises(ValueError, match="got 0"):
        cross_fit(features[:0], true[:0], groups[:0], NUM_CLASSES)


def test_a_label_that_is_mostly_wrong(generator):
    """A rare class whose label most objects of a frequent one got by mistake."""
    shares = torch.tensor([0.5, 0.08, 0.14, 0.14, 0.14])
    true = torch.multinomial(shares, 1500, replacement=True, generator=generator)
    labels = torch.where((true == 0) & (torch.rand(1500, generator=generator) < 0.4), 1, true)
    assert (true[labels == 1] == 0).float().mean() > 0.6
    features, groups = features_of(true, generator, 2.0), torch.arange(1500)
    ours, gain = predict_held_out(features, labels, groups, NUM_CLASSES)
    assert gain > LEAST_GAIN
    held_out = cross_fit(features, labels, groups, NUM_CLASSES), ours
    plain, ours = (
        estimate_true_classes(predictions, labels).probabilities.argmax(dim=1) != true
        for predictions in held_out
    )
    assert ours.sum() < 0.75 * plain.sum()
    assert ours.sum() < 0.75 * (labels != true).sum()


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_correction_that_makes_labels_less_likely_is_left_out(rate, generator):
    true = torch.randint(0, NUM_CLASSES, (800,), generator=generator)
    labels, groups = noisy(true, rate, generator), torch.arange(800)
    features = features_of(true, generator, 2.5)
    plain = cross_fit(features, labels, groups, NUM_CLASSES)
    ours, _ = predict_held_out(features, labels, groups, NUM_CLASSES)
    wrong = [
        (estimate_true_classes(p, labels).probabilities.argmax(dim=1) != true).sum()
        for p in (ours, plain)
    ]
    assert wrong[0] <= 1.1 * wrong[1] + 8


@pytest.mark.parametrize("num_classes", [2, NUM_CLASSES, 30])
def test_features_that_tell_nothing(num_classes, generator, caplog):
    """EM would call most labels wrong."""
    labels = torch.randint(0, num_classes, (600,), generator=generator)
    features = torch.randn(600, 16, generator=generator)
    _, gain = predict_held_out(features, labels, torch.arange(600), num_classes)
    assert gain < LEAST_GAIN
    assert "do not predict the labels better" in caplog.text
    with pytest.raises(ValueError, match="at least two classes"):
        predict_held_out(features, 0 * labels, torch.arange(600), 1)


@pytest.mark.parametrize("seen", ["none", "all"])
def test_few_classes_estimate_as_all_of_them(seen, generator):
    """The candidates are all classes, also of a run that saw no annotation and a class without."""
    true = torch.randint(0, NUM_CLASSES - 1, (800,), generator=generator)
    labels = noisy(true, 0.4, generator).clamp_max(NUM_CLASSES - 2)
    held_out = cross_fit(features_of(true, generator, 2.5), labels, torch.arange(800), NUM_CLASSES)
    tracked = predictions_of(true, 0.7, generator)
    if seen == "none":
        tracked[:] = torch.nan
    dense = estimate_true_classes(held_out, labels, tracked)
    few = (FewClasses.of(p, labels, NUM_CLASSES - 1) for p in (held_out, tracked))
    of_few = estimate_true_classes(next(few), labels, next(few))
    assert dense.probabilities.isfinite().all()
    found = of_few.probabilities.dense()
    torch.testing.assert_close(found, dense.probabilities, atol=1e-4, rtol=0)


def test_cross_fit_is_of_any_scale_and_repeats(generator):
    true = torch.randint(0, NUM_CLASSES, (300,), generator=generator)
    features, groups = features_of(true, generator), torch.arange(300)
    predictions = cross_fit(features, true, groups, NUM_CLASSES)
    assert torch.equal(predictions, cross_fit(features, true, groups, NUM_CLASSES))
    scaled = cross_fit(1000 * features - 7, true, groups, NUM_CLASSES)
    torch.testing.assert_close(scaled, predictions, atol=1e-2, rtol=0)
    # A feature that is the same for all is no division by zero.
    constant = torch.cat([features, torch.ones(300, 1)], dim=1)
    assert cross_fit(constant, true, groups, NUM_CLASSES).isfinite().all()


def test_cross_fit_needs_images():
    with pytest.raises(ValueError, match="at least 5 images with annotations; got 4"):
        cross_fit(torch.ones(8, 2), torch.zeros(8).long(), torch.arange(8) // 2, NUM_CLASSES)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
def test_statistics_of_a_run_add_to_held_out_predictions(rate, generator):
    true = torch.randint(0, NUM_CLASSES, (3000,), generator=generator)
    labels, groups = noisy(true, rate, generator), torch.arange(3000)
    held_out = cross_fit(features_of(true, generator, 2.5), labels, groups, NUM_CLASSES)
    # A run that has memorised a part of the labels.
    given = F.one_hot(labels, NUM_CLASSES).float()
    tracked = 0.15 * given + 0.85 * predictions_of(true, 0.8, generator)
    tracked[:10] = torch.nan
    alone = estimate_true_classes(held_out, labels)
    both = estimate_true_classes(held_out, labels, tracked)
    assert both.probabilities.isfinite().all()
    assert both.noise_rate == pytest.approx(alone.noise_rate, abs=0.05)
    wrong = [int((e.probabilities.argmax(dim=1) != true).sum()) for e in (alone, both)]
    assert wrong[1] < wrong[0] < (labels != true).sum()


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 0.6])
@pytest.mark.parametrize(
    ("accuracy", "memorised"), [(0.8, 0.4), (0.5, 0.15), (0.3, 0.6), (0.2, 0.9)]
)
def test_statistics_of_a_run_that_memorised_labels_do_no_harm(rate, accuracy, memorised, generator):
    true = torch.randint(0, NUM_CLASSES, (3000,), generator=generator)
    labels, groups = noisy(true, rate, generator), torch.arange(3000)
    held_out = cross_fit(features_of(true, generator, 2.5), labels, groups, NUM_CLASSES)
    seen = predictions_of(true, accuracy, generator)
    tracked = memorised * F.one_hot(labels, NUM_CLASSES) + (1 - memorised) * seen
    estimates = (
        estimate_true_classes(held_out, labels),
        estimate_true_classes(held_out, labels, tracked),
    )
    wrong = [int((e.probabilities.argmax(dim=1) != true).sum()) for e in estimates]
    assert wrong[1] <= wrong[0] + 5


@pytest.mark.parametrize("few", [False, True])
def test_held_out_predictions_may_be_too_soft(few, generator):
    """They are calibrated before those of the run, which are not, are multiplied with them."""
    true = torch.randint(0, NUM_CLASSES, (3000,), generator=generator)
    labels = noisy(true, 0.4, generator)
    groups, tracked = torch.arange(3000), predictions_of(true, 0.7, generator)
    held_out = cross_fit(features_of(true, generator, 2.5), labels, groups, NUM_CLASSES)
    soft = (0.5 * held_out.log()).softmax(dim=1)
    if few:
        held_out, soft, tracked = (
            FewClasses.of(p, labels, NUM_CLASSES - 1) for p in (held_out, soft, tracked)
        )
    wanted, found = (
        estimate_true_classes(p, labels, tracked).probabilities for p in (held_out, soft)
    )
    wanted, found = (p.dense() if few else p for p in (wanted, found))
    assert (found.argmax(dim=1) != true).sum() <= 1.05 * (wanted.argmax(dim=1) != true).sum()
    # The temperatures to choose from are up to 1.33 times apart.
    torch.testing.assert_close(found, wanted, atol=0.25, rtol=0)


@pytest.mark.parametrize("few", [False, True])
def test_the_held_out_prediction_decides_where_the_run_saw_nothing(few, generator):
    true = torch.randint(0, NUM_CLASSES, (1000,), generator=generator).clamp_max(3)
    labels, groups = noisy(true, 0.4, generator), torch.arange(1000)
    held_out = cross_fit(features_of(true, generator, 2.5), labels, groups, NUM_CLASSES)
    tracked = predictions_of(true, 0.8, generator)
    tracked[::2] = torch.nan
    if few:
        held_out = FewClasses.of(held_out, labels, NUM_CLASSES - 1)
        tracked = FewClasses.of(tracked, labels, NUM_CLASSES - 1)
    alone, both = (
        e.probabilities.dense() if few else e.probabilities
        for e in (
            estimate_true_classes(held_out, labels),
            estimate_true_classes(held_out, labels, tracked),
        )
    )
    torch.testing.assert_close(both[::2], alone[::2], atol=1e-5, rtol=0)
    assert not torch.allclose(both[1::2], alone[1::2], atol=0.05)


def test_sigmoid_statistics_need_not_sum_to_one(generator):
    true = torch.randint(0, NUM_CLASSES, (500,), generator=generator)
    held_out, tracked = (predictions_of(true, 0.8, generator) for _ in range(2))
    whole = estimate_true_classes(held_out, true, tracked)
    half = estimate_true_classes(held_out, true, 0.25 * tracked)
    np.testing.assert_allclose(whole.probabilities, half.probabilities, atol=1e-4)


def test_few_classes_equal_all_where_all_are_kept(generator):
    true = torch.randint(0, NUM_CLASSES, (600,), generator=generator)
    labels = noisy(true, 0.4, generator)
    held_out, tracked = (
        p / p.sum(dim=1, keepdim=True)
        for p in (
            predictions_of(true, 0.8, generator) * torch.rand(600, NUM_CLASSES, generator=generator)
            for _ in range(2)
        )
    )
    few = [FewClasses.of(p, labels, num_kept=NUM_CLASSES - 1) for p in (held_out, tracked)]
    for wanted, found in (
        (infer_true_classes(held_out, labels, 0.6), infer_true_classes(few[0], labels, 0.6)),
        (
            estimate_true_classes(held_out, labels, tracked),
            estimate_true_classes(few[0], labels, few[1]),
        ),
        (estimate_true_classes(held_out, labels), estimate_true_classes(few[0], labels)),
    ):
        assert found.temperature == wanted.temperature
        assert found.noise_rate == pytest.approx(wanted.noise_rate, abs=1e-4)
        torch.testing.assert_close(
            found.probabilities.dense(), wanted.probabilities, atol=1e-3, rtol=0
        )
        torch.testing.assert_close(found.confusion, wanted.confusion, atol=1e-3, rtol=0)
        tables = [correction_table(e.probabilities, labels, "abcde") for e in (found, wanted)]
        assert tables[0] == tables[1]


def test_true_classes_of_many(generator):
    """More classes than are kept: held-out predictions and statistics find most wrong labels."""
    num_classes, num = 60, 3000
    true = torch.randint(0, num_classes, (num,), generator=generator)
    wrong = torch.rand(num, generator=generator) < 0.3
    moved = torch.randint(1, num_classes, (num,), generator=generator)
    labels = torch.where(wrong, (true + moved) % num_classes, true)
    centres = torch.randn(num_classes, 16, generator=generator)
    features = 2 * centres[true] + 0.5 * torch.randn(num, 16, generator=generator)
    held_out = cross_fit(features, labels, torch.arange(num), num_classes)
    assert isinstance(held_out, FewClasses)
    assert torch.equal(held_out.classes[:, 0], labels)
    logits = torch.randn(num, num_classes, generator=generator)
    logits[torch.arange(num), true] += 4
    tracked = FewClasses.of(logits.softmax(dim=1), labels)
    tracked.values[:10], tracked.rest[:10] = torch.nan, torch.nan
    estimate = estimate_true_classes(held_out, labels, tracked)
    assert estimate.noise_rate == pytest.approx(0.3, abs=0.05)
    found = estimate.probabilities.topk(1)[1][:, 0]
    assert (found == true).float().mean() > 0.9
    assert estimate.probabilities.dense().sum(dim=1).allclose(torch.ones(num), atol=1e-4)
