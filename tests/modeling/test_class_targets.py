"""Annotations that are trained as another class than they were given, or as several, or as none."""

import copy

import pytest
import torch
from torch import nn

from helpers.detectors import (
    DETECTORS,
    NUM_CLASSES,
    build,
    make_batch,
    run_losses,
    small_config,
)
from sl_detectron.losses import SuperLoss
from sl_detectron.modeling.class_targets import ClassTargets, attach_class_targets
from sl_detectron.modeling.superloss_term import SuperLossTerm

OBJECTS = (3, 1)
NUM = sum(OBJECTS)
# One annotation id of the dataset for each object, not in their order.
IDS = torch.tensor([5, 0, 3, 4])
PLAIN = ("MODEL.SUPERLOSS.CLS.ENABLED", False)


def numbered_batch(labels=None):
    """A batch whose annotations have ids, and perhaps other classes."""
    batch = make_batch(OBJECTS)
    labels = given_labels() if labels is None else labels
    for image, ids, classes in zip(batch, IDS.split(OBJECTS), labels.split(OBJECTS)):
        image["instances"].gt_annotation_ids = ids
        image["instances"].gt_classes = classes
    return batch


def given_labels():
    return torch.cat([image["instances"].gt_classes for image in make_batch(OBJECTS)])


def targets_of(labels):
    """Targets of seven annotations, of which the batch has four."""
    all_labels = torch.zeros(7, dtype=torch.int64)
    all_labels[IDS] = labels
    return ClassTargets(all_labels)


def detector(name, *opts):
    cfg = small_config(name, superloss=True)
    cfg.merge_from_list(list(opts))
    return build(cfg)


def losses_with(name, targets, *opts, labels=None):
    model = detector(name, *opts)
    assert attach_class_targets(model, targets) >= 1
    return run_losses(model, numbered_batch(labels))


def distributions(*rows):
    """(7, K) with these rows at the ids of the batch."""
    table = torch.full((7, NUM_CLASSES), 1.0 / NUM_CLASSES)
    table[IDS] = torch.stack([torch.as_tensor(row) for row in rows])
    return table


def mixture(first, second, share):
    row = torch.zeros(NUM_CLASSES)
    row[first], row[second] = share, 1 - share
    return row


@pytest.mark.parametrize("opts", [(), PLAIN], ids=["superloss", "plain"])
@pytest.mark.parametrize("name", DETECTORS)
def test_untouched_targets_change_nothing(name, opts):
    model = detector(name, *opts)
    keys = list(model.state_dict())
    losses, gradients, _ = run_losses(model, numbered_batch())
    with_targets, same, _ = losses_with(name, targets_of(given_labels()), *opts)
    if opts and name == "standard_sigmoid":
        # detectron2 sums all classes of all RoIs at once, which rounds otherwise.
        torch.testing.assert_close(losses, with_targets)
        torch.testing.assert_close(gradients, same)
    else:
        assert losses == with_targets
        assert all(torch.equal(value, same[key]) for key, value in gradients.items())
    attach_class_targets(model, targets_of(given_labels()))
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("opts", [(), PLAIN], ids=["superloss", "plain"])
@pytest.mark.parametrize("name", DETECTORS)
def test_other_classes_are_as_if_given(name, opts):
    right = (given_labels() + torch.tensor([1, 0, 2, 3])) % NUM_CLASSES
    expected, gradients, _ = run_losses(detector(name, *opts), numbered_batch(right))
    targets = targets_of(given_labels())
    targets.set_distributions(distributions(*torch.eye(NUM_CLASSES)[right]), hard=True)
    losses, ours, _ = losses_with(name, targets, *opts)
    assert losses == expected
    assert all(torch.equal(value, ours[key]) for key, value in gradients.items())


@pytest.mark.parametrize("name", ["standard", "standard_sigmoid", "c4", "cascade", "retinanet"])
def test_two_candidates_mix_their_losses(name):
    first, second = given_labels(), (given_labels() + 1) % NUM_CLASSES
    only_first, _, _ = losses_with(name, targets_of(first), *PLAIN)
    targets = targets_of(first)
    targets.set_distributions(distributions(*(mixture(a, b, 0.7) for a, b in zip(first, second))))
    mixed, _, _ = losses_with(name, targets, *PLAIN)
    other = targets_of(first)
    other.classes[IDS, 0] = second
    only_second, _, _ = losses_with(name, other, *PLAIN)
    for key in (k for k in mixed if "loss_cls" in k and "rpn" not in k):
        torch.testing.assert_close(mixed[key], 0.7 * only_first[key] + 0.3 * only_second[key])
        assert only_first[key] != only_second[key]
    for key in (k for k in mixed if "box_reg" in k):
        assert mixed[key] == only_first[key]


@pytest.mark.parametrize("opts", [(), PLAIN], ids=["superloss", "plain"])
@pytest.mark.parametrize("name", ["standard", "cascade", "retinanet"])
def test_an_ignored_annotation_is_neither_object_nor_background(name, opts):
    labels = given_labels()
    counted, _, _ = losses_with(name, targets_of(labels), *opts)
    ignored = []
    for shift in range(2):
        targets = targets_of(labels)
        rows = [mixture((a + shift) % NUM_CLASSES, (a + 2) % NUM_CLASSES, 0.6) for a in labels]
        targets.set_distributions(distributions(*rows), min_probability=0.61)
        ignored.append(losses_with(name, targets, *opts)[0])
    # As background it would have a loss that no class changes either, but a larger one.
    for key in (k for k in counted if "loss_cls" in k and "rpn" not in k):
        assert ignored[0][key] == ignored[1][key]
        if opts:
            assert ignored[0][key] < counted[key]
    for key in (k for k in counted if "box_reg" in k):
        assert ignored[0][key] == counted[key]


def test_ignored_rois_have_no_gradient_of_scores():
    model = detector("standard", *PLAIN)
    targets = targets_of(given_labels())
    targets.set_distributions(torch.zeros(7, NUM_CLASSES), min_probability=0.5)
    attach_class_targets(model, targets)
    seen = []

    def keep(module, inputs, output):
        output[0].retain_grad()
        seen.append(output[0])

    predictor = model.roi_heads.box_predictor
    predictor.register_forward_hook(keep)
    labels = []
    losses = predictor.losses

    def noting(predictions, proposals):
        labels.extend(p.gt_classes for p in proposals)
        return losses(predictions, proposals)

    predictor.losses = noting
    run_losses(model, numbered_batch())
    gradients, foreground = seen[0].grad, torch.cat(labels) < NUM_CLASSES
    assert foreground.any()
    assert not gradients[foreground].any()
    assert gradients[~foreground].any(dim=1).all()


def test_annotations_of_a_batch_alone_keep_their_class():
    """Ids that count down from -2, as a loader without ids has them."""
    targets = targets_of((given_labels() + 1) % NUM_CLASSES)
    model = detector("standard")
    expected, _, _ = run_losses(model, make_batch(OBJECTS))
    attach_class_targets(model, targets)
    assert run_losses(detector("standard"), make_batch(OBJECTS))[0] == expected


def test_weights_in_a_term():
    losses = torch.tensor([1.0, 2.0, 8.0], requires_grad=True)
    foreground = torch.ones(3, dtype=torch.bool)
    term = SuperLossTerm("cls", SuperLoss("ExpAvg", 0.25))
    weights = torch.tensor([1.0, 0.5, 0.0])
    value = term(losses, foreground, 2.0, weights=weights)
    # tau is the mean of the two that count.
    assert term.superloss.tau == 1.5
    parts = SuperLoss("1.5", 0.25).with_confidence(losses.detach())[0]
    torch.testing.assert_close(value.detach(), (parts[0] + 0.5 * parts[1]) / 2)
    value.backward()
    assert losses.grad[2] == 0


def test_candidates_without_weight_may_have_any_loss():
    targets = ClassTargets(torch.tensor([0]))
    table = torch.tensor([1.0, torch.inf])
    ids, labels = torch.tensor([0, -1]), torch.tensor([0, 0])
    targets.classes[0] = torch.tensor([0, 1])
    losses, weights = targets.expected_losses(lambda classes: table[classes], ids, labels)
    assert losses.tolist() == [1.0, 1.0]
    assert weights.tolist() == [1.0, 1.0]


def test_rows_that_keep_their_targets():
    targets = ClassTargets(torch.tensor([2, 1, 0]))
    table = torch.eye(3)[[0, 0, 1]]
    targets.set_distributions(table, where=torch.tensor([True, False, True]), hard=True)
    assert targets.classes[:, 0].tolist() == [0, 1, 1]
    assert targets.labels.tolist() == [2, 1, 0]


def test_state_and_copies():
    targets = ClassTargets(torch.tensor([2, 1]))
    targets.set_distributions(torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]))
    other = ClassTargets(torch.tensor([2, 1]))
    other.load_state_dict(targets.state_dict())
    assert torch.equal(other.classes, targets.classes)
    assert torch.equal(other.weights, targets.weights)
    model = detector("retinanet")
    attach_class_targets(model, targets)
    assert torch.equal(copy.deepcopy(model).class_targets.classes, targets.classes)
    attach_class_targets(model, None)
    assert model.class_targets is None


def test_what_cannot_take_targets():
    assert attach_class_targets(nn.Linear(1, 1), ClassTargets(torch.tensor([0]))) == 0
    with pytest.raises(ValueError, match="no annotation"):
        ClassTargets(torch.empty(0, dtype=torch.int64))
