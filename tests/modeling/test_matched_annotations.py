"""Every sample knows its annotation, in all detectors; samples of one can share a confidence."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from helpers.detectors import (
    DETECTORS,
    NUM_CLASSES,
    build,
    make_batch,
    on_resnet_18,
    run_losses,
    small_config,
)
from sl_detectron.losses import SuperLoss, confidence, superloss
from sl_detectron.modeling import SuperLossTerm, superloss_roi_heads
from sl_detectron.modeling.matched_annotations import ids_by_target, with_annotation_ids

LOCAL = -2  # ids of a batch whose loader gave none count down from here


def detector_config(detector, superloss):
    cfg = small_config(detector, superloss)
    return cfg if detector.startswith("c4") else on_resnet_18(cfg)


def superloss_model(detector, *opts):
    cfg = detector_config(detector, superloss=True)
    cfg.merge_from_list(["MODEL.SUPERLOSS.BOX_REG.ENABLED", True, *opts])
    return build(cfg)


def number(batch, start=100):
    """Give every annotation of a batch an id, as the training loader does; {id: class}."""
    classes = {}
    for image in batch:
        labels = image["instances"].gt_classes
        image["instances"].gt_annotation_ids = torch.arange(start, start + len(labels))
        classes |= dict(enumerate(labels.tolist(), start))
        start += len(labels)
    return classes


def cls_terms(model):
    return [m for m in model.modules() if isinstance(m, SuperLossTerm) and m.name == "cls"]


def id_of(boxes, classes, batch):
    """The id of the annotation of the batch with this box and class; boxes are drawn at random."""
    (found,) = [
        int(target.gt_annotation_ids[k])
        for target in (image["instances"] for image in batch)
        for k in range(len(target))
        if torch.equal(target.gt_boxes.tensor[k], boxes) and target.gt_classes[k] == classes
    ]
    return found


def roi_rows(arguments, batch, sigmoid):
    """One by one what an observer should be told: (id, loss, probabilities)."""
    (scores, _), proposals = arguments
    scores = scores.detach().split([len(p) for p in proposals])
    for image_scores, p in zip(scores, proposals):
        for i in range(len(p)):
            label = int(p.gt_classes[i])
            if label == NUM_CLASSES:
                continue
            logits = image_scores[i]
            loss = -logits.log_softmax(0)[label]
            if sigmoid:
                target = F.one_hot(p.gt_classes[i], NUM_CLASSES).float()
                loss = F.binary_cross_entropy_with_logits(logits[:-1], target, reduction="sum")
            probabilities = logits[:-1].sigmoid() if sigmoid else logits[:-1].softmax(0)
            yield id_of(p.gt_boxes.tensor[i], label, batch), loss, probabilities


def anchor_rows(arguments, batch):
    _, logits, gt_labels, _, gt_boxes = arguments
    logits = torch.cat(logits, dim=1).detach()
    for image_logits, labels, boxes in zip(logits, gt_labels, gt_boxes):
        for i in ((labels >= 0) & (labels < NUM_CLASSES)).nonzero()[:, 0]:
            p, loss = image_logits[i].sigmoid(), 0.0
            for k in range(NUM_CLASSES):
                right = p[k] if k == labels[i] else 1 - p[k]
                alpha = 0.25 if k == labels[i] else 0.75
                loss = loss - alpha * (1 - right) ** 2 * right.log()
            yield id_of(boxes[i], labels[i], batch), loss, p


@pytest.mark.parametrize("objects", [(3, 1), (0, 4), (0, 0)])
@pytest.mark.parametrize("detector", DETECTORS)
def test_observers_see_the_matched_annotations(detector, objects):
    """Sample by sample against a loop: its annotation, its loss, confidence and class scores."""
    tau, lam = 0.9, 0.25
    model = superloss_model(detector, "MODEL.SUPERLOSS.CLS.TAU", f"'{tau}'")
    batch = make_batch(objects)
    classes = number(batch)
    seen, calls = [], []
    terms = cls_terms(model)
    for term in terms:
        term.observers.append(lambda *tensors: seen.append(tensors))
    for owner in [m for m in model.modules() if hasattr(m, "superloss_cls")]:
        owner.losses = lambda *args, losses=owner.losses: calls.append(args) or losses(*args)
    run_losses(model, batch)
    assert len(seen) == len(terms) == len(calls)
    for (ids, losses, sigma, probabilities, found), arguments in zip(seen, calls):
        if detector in ("retinanet", "standard_sigmoid"):
            assert found is None
        else:
            # The softmax cross-entropy of a class is that of an object and of the class of one.
            classes_of = torch.tensor([classes[i] for i in ids.tolist()], dtype=torch.int64)
            of_class = probabilities.gather(1, classes_of[:, None])[:, 0]
            torch.testing.assert_close(found * of_class, (-losses).exp(), rtol=1e-4, atol=1e-6)
        assert not any(t.requires_grad for t in (losses, sigma, probabilities))
        if detector == "retinanet":
            rows = [*anchor_rows(arguments, batch)]
        else:
            rows = [*roi_rows(arguments, batch, detector == "standard_sigmoid")]
        assert ids.tolist() == [row[0] for row in rows]
        expected = torch.tensor([row[1] for row in rows])
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sigma, confidence(expected, tau, lam), rtol=1e-4, atol=1e-6)
        assert probabilities.shape == (len(rows), NUM_CLASSES)
        for row, got in zip(rows, probabilities):
            torch.testing.assert_close(got, row[2], rtol=1e-4, atol=1e-6)
    if sum(objects):
        # Ground truth is among the proposals, and every annotation has its best anchor.
        assert set(seen[0][0].tolist()) == set(classes)


@pytest.mark.parametrize("detector", DETECTORS)
def test_gradients_know_nothing_of_ids_and_observers(detector):
    """With and without ids, and with an observer: the same losses bit for bit."""
    results = []
    for numbered, observed in ((False, False), (True, False), (True, True)):
        model, batch = superloss_model(detector), make_batch()
        if numbered:
            number(batch)
        if observed:
            for term in cls_terms(model):
                term.observers.append(lambda *_: None)
        results.append(run_losses(model, batch)[:2])
    for losses, gradients in results[1:]:
        assert losses == results[0][0]
        assert all(torch.equal(gradients[k], g) for k, g in results[0][1].items())


def test_numbering_keeps_ids_and_arguments():
    batch = make_batch((2, 0, 1))
    targets = [image["instances"] for image in batch]
    numbered = with_annotation_ids(targets)
    assert [t.gt_annotation_ids.tolist() for t in numbered] == [[LOCAL, LOCAL - 1], [], [LOCAL - 2]]
    assert not any(t.has("gt_annotation_ids") for t in targets)
    number(batch)
    assert with_annotation_ids(targets)[2].gt_annotation_ids.tolist() == [102]


def test_annotations_are_found_again():
    """Same box with another class, same class with another box, background and ignored ones."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [1, 1, 5, 5]])
    target = Instances((20, 20), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1, 1]))
    target.gt_annotation_ids = torch.tensor([7, 8, 9])
    labels = torch.tensor([1, 0, 1, NUM_CLASSES, -1, 1])
    matched = boxes[[1, 0, 2, 0, 0, 1]]
    ids = ids_by_target(labels, matched, NUM_CLASSES, target)
    assert ids.tolist() == [8, 7, 9, -1, -1, 8]
    assert ids_by_target(labels, matched, NUM_CLASSES, target[:0]).tolist() == [-1] * 6


@pytest.mark.parametrize("scope", ["all", "foreground"])
def test_instance_granularity_against_a_loop(scope):
    tau, lam = 0.8, 0.25
    term = SuperLossTerm("cls", SuperLoss(tau, lam), scope, granularity="instance")
    losses = torch.tensor([0.1, 2.0, 0.3, 0.9, 5.0], requires_grad=True)
    ids = torch.tensor([4, -1, 4, 2, -1])
    with EventStorage():
        value = term(losses, ids >= 0, 5, ids)
    instance, single = losses[[0, 2]].mean(), losses[3]
    background = losses[[1, 4]]
    expected = 2 * superloss(instance, tau, lam) + superloss(single, tau, lam)
    expected += (superloss(background, tau, lam) if scope == "all" else background).sum()
    torch.testing.assert_close(value, expected / 5)
    with EventStorage(), pytest.raises(ValueError, match="GRANULARITY 'instance' needs"):
        term(losses, ids >= 0, 5)


@pytest.mark.parametrize("detector", DETECTORS)
def test_instance_granularity_gives_an_annotation_one_confidence(detector):
    granularity = [f"MODEL.SUPERLOSS.{term}.GRANULARITY" for term in ("CLS", "BOX_REG")]
    model = superloss_model(detector, granularity[0], "instance", granularity[1], "instance")
    seen = []
    for term in cls_terms(model):
        term.observers.append(lambda *tensors: seen.append(tensors))
    for step in range(2):  # the second one meets a tau that is not its own mean
        seen.clear()
        run_losses(model, make_batch(seed=step))
        for ids, _, sigma, *_ in seen:
            for i in ids.unique():
                assert sigma[ids == i].unique().numel() == 1
        ids, losses, sigma, *_ = seen[0]
        assert sigma.unique().numel() > 1
        assert losses.unique().numel() > ids.unique().numel()


@ROI_HEADS_REGISTRY.register()
class ForgetfulROIHeads(StandardROIHeads):
    """Sampling that passes on classes and boxes only, as that of rotated heads."""

    def label_and_sample_proposals(self, proposals, targets):
        sampled = super().label_and_sample_proposals(proposals, targets)
        for proposal in sampled:
            if proposal.has("gt_annotation_ids"):
                self.expected.append(proposal.gt_annotation_ids)
                proposal.remove("gt_annotation_ids")
        return sampled


def test_ids_are_found_again_where_sampling_drops_them():
    superloss_roi_heads(ForgetfulROIHeads)
    cfg = detector_config("standard", superloss=False)
    cfg.MODEL.ROI_HEADS.NAME = "SuperLossForgetfulROIHeads"
    cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = "instance"
    model = build(cfg)
    model.roi_heads.expected = []
    seen = []
    (term,) = cls_terms(model)
    term.observers.append(lambda ids, *_: seen.append(ids))
    batch = make_batch((3, 0))
    number(batch)
    run_losses(model, batch)
    (ids,), (expected,) = seen, model.roi_heads.expected
    # Foreground comes first in what detectron2 samples.
    assert len(ids) > 3
    assert torch.equal(ids, expected[: len(ids)])


@pytest.mark.parametrize("detector", ["standard", "cascade", "retinanet"])
def test_warm_up_trains_on_the_plain_loss_while_tau_learns(detector):
    opts = ("MODEL.SUPERLOSS.WARMUP_ITERS", 2)
    stock = build(detector_config(detector, superloss=False))
    model = superloss_model(detector, *opts)
    for iteration, is_stock in ((0, True), (1, True), (2, False)):
        # Side by side, as RetinaNet's normalizer moves with every step.
        stock_losses, _, _ = run_losses(stock, make_batch(seed=iteration))
        before = [t.superloss.tau.clone() for t in cls_terms(model)]
        losses, _, _ = run_losses(model, make_batch(seed=iteration), start_iter=iteration)
        for key, value in stock_losses.items():
            if key.startswith(("loss_cls", "loss_box_reg")) and not is_stock:
                assert abs(losses[key] - value) > 1e-3
            else:
                torch.testing.assert_close(losses[key], value)
        assert all(not torch.equal(a, t.superloss.tau) for a, t in zip(before, cls_terms(model)))


def test_a_term_works_without_a_training_loop():
    """No event storage: nothing is logged, and the warm-up counts the steps that train."""
    term = SuperLossTerm("cls", SuperLoss(0.5, 0.25), "all", warmup_iters=2)
    losses = torch.tensor([0.1, 2.0], requires_grad=True)
    foreground = torch.tensor([True, True])
    plain, warm = losses.sum() / 2, superloss(losses, 0.5, 0.25).sum() / 2
    with torch.no_grad():
        assert term(losses, foreground, 2) == plain  # of validation: no step
    values = [term(losses, foreground, 2) for _ in range(3)]
    torch.testing.assert_close(torch.stack(values), torch.stack([plain, plain, warm]))
    # A resume goes on with the warm-up where it stopped.
    resumed = SuperLossTerm("cls", SuperLoss(0.5, 0.25), "all", warmup_iters=4)
    resumed.load_state_dict(term.state_dict())
    assert resumed(losses, foreground, 2) == plain
    torch.testing.assert_close(resumed(losses, foreground, 2), warm)


def test_only_a_step_that_trains_is_observed_logged_and_counted():
    """Not an evaluation of the loss, nor a forward in training mode under no_grad."""
    term = SuperLossTerm("cls", SuperLoss(0.5, 0.25), "all", warmup_iters=2)
    seen = []
    term.observers.append(lambda ids, _, sigma, *__: seen.append((ids.tolist(), sigma.tolist())))
    losses, ids = torch.tensor([0.1, 2.0], requires_grad=True), torch.tensor([3, -1])
    arguments = losses, ids >= 0, 2, ids, lambda: torch.rand(2, 4)
    with EventStorage(19) as storage:  # of an iteration that is logged
        term.eval()(*arguments)
        with torch.no_grad():
            term.train()(*arguments)
        assert not seen
        assert not storage.latest()
        assert term.num_steps == 0
        term(*arguments)
        assert seen == [([3], [1.0])]  # in the warm-up every sample has its plain loss
        assert storage.latest()
        assert term.num_steps == 1


def test_of_a_dense_loss_an_observer_gets_anchors():
    """The sum of an anchor's losses over the classes, and the mean of their confidences."""
    term = SuperLossTerm("cls", SuperLoss(0.5, 0.25), "all", granularity="class")
    seen = []
    term.observers.append(lambda *tensors: seen.append(tensors))
    losses = torch.tensor([[0.1, 2.0, 0.4], [0.2, 0.2, 0.9], [0.6, 0.1, 0.0]])
    ids, scores = torch.tensor([4, -1, 2]), torch.rand(3, 3)
    foreground = (ids >= 0)[:, None].expand_as(losses)
    value = term(losses.clone().requires_grad_(), foreground, 3, ids, lambda: scores)
    torch.testing.assert_close(value.detach(), superloss(losses, 0.5, 0.25).sum() / 3)
    ((told_ids, told_losses, sigma, probabilities, _),) = seen
    assert told_ids.tolist() == [4, 2]
    torch.testing.assert_close(told_losses, torch.tensor([2.5, 0.7]))
    torch.testing.assert_close(sigma, confidence(losses, 0.5, 0.25)[[0, 2]].mean(dim=1))
    assert torch.equal(probabilities, scores[[0, 2]])


def test_without_a_warm_up_no_key_joins_the_checkpoint():
    assert not list(SuperLossTerm("cls", SuperLoss(0.5, 0.25)).state_dict())


@pytest.mark.parametrize("superloss", [True, False])
@pytest.mark.parametrize("detector", ["standard", "cascade", "c4_masks", "retinanet"])
def test_a_class_beyond_the_detectors_is_refused(detector, superloss):
    """Stock would train it as background. Also with any loader, and with the terms off."""
    cfg = detector_config(detector, superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.ENABLED = superloss
    model, batch = build(cfg), make_batch()
    batch[0]["instances"].gt_classes[-1] = NUM_CLASSES
    with pytest.raises(RuntimeError, match=f"class above {NUM_CLASSES - 1}, which .* background"):
        run_losses(model, batch)
