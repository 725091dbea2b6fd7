"""The parts of the loss path, each as a call that may make no trip to the host, on any device."""

from collections.abc import Callable
from itertools import product

import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from helpers.loss_cases import CASES, LAM, TAUS, make_inputs
from sl_detectron import losses as sl
from sl_detectron.audit.tracker import AnnotationTracker
from sl_detectron.modeling import SuperLossTerm
from sl_detectron.modeling.class_targets import ClassTargets
from sl_detectron.modeling.superloss_term import GRANULARITIES, SCOPES

Call = Callable[[], None]
NUM = 100


def loss(name: str, device: str) -> Call:
    function, inputs = CASES[name].build(), make_inputs(name, NUM, torch.float32)
    inputs = [x.detach().to(device).requires_grad_(x.requires_grad) for x in inputs]
    if isinstance(function, nn.Module) and device != "cpu":  # fake parameters refuse a .to()
        function = function.to(device)
    return lambda: function(*inputs).sum().backward()


def numbers_as_arguments(device: str) -> Call:
    """They are filled in on the device."""
    scores = torch.rand(NUM, device=device, requires_grad=True)
    logits = torch.rand(NUM, 3, device=device, requires_grad=True)
    labels = torch.ones(NUM, dtype=torch.int64, device=device)

    def call() -> None:
        sl.introspection(scores, 1, 2.0).sum().backward()
        sl.r2d2_reliability(scores, 0.5).sum().backward()
        sl.data_params(logits, labels, 0.5, lam=0.1).sum().backward()
        sl.superloss(scores, 1.0, 0.25).sum().backward()
        sl.superloss(scores, scores.detach().mean(), scores.detach().sum()).sum().backward()

    return call


def term(tau: str, scope: str, granularity: str, weighted: bool, device: str) -> Call:
    """Three steps, two of them of a warm-up; tau and the mean weight move."""
    superloss = sl.SuperLoss(TAUS[tau](), LAM, normalize=weighted)
    module = SuperLossTerm("cls", superloss, scope, granularity, 2).to(device)
    shape = (NUM, 4) if granularity == "class" else (NUM,)
    losses = torch.rand(shape, device=device, requires_grad=True)
    foreground = torch.rand(shape, device=device) < 0.3
    ids = torch.randint(-1, 20, (NUM,), device=device)
    weights = torch.rand(NUM, device=device) if weighted else None

    def call() -> None:
        for _ in range(3):
            module(losses, foreground, NUM, ids, None, weights).backward()

    return call


def tracker(device: str) -> Call:
    module = AnnotationTracker(num_annotations=50, num_classes=5).to(device)
    ids = torch.randint(-2, 60, (NUM,), device=device)
    losses, sigma = torch.rand(2, NUM, device=device)
    probabilities = torch.rand(NUM, 5, device=device).softmax(dim=1)

    def call() -> None:
        module(ids, losses, sigma, probabilities)
        module(ids, losses, sigma, probabilities, begins_step=False)

    return call


def class_targets(device: str) -> Call:
    targets = ClassTargets(torch.randint(5, (50,), device=device))
    probabilities = torch.rand(50, 5, device=device).softmax(dim=1)
    where = torch.rand(50, device=device) < 0.5
    logits = torch.rand(NUM, 5, device=device, requires_grad=True)
    instances = Instances((10, 10), gt_boxes=Boxes(torch.rand(NUM, 4, device=device)))
    instances.gt_classes = labels = torch.randint(5, (NUM,), device=device)
    instances.gt_annotation_ids = ids = torch.randint(-2, 60, (NUM,), device=device)

    def call() -> None:
        targets.set_distributions(probabilities, where, hard=True, min_probability=0.3)
        targets.relabel([instances])
        losses, weights = targets.expected_losses(
            lambda c: nn.functional.cross_entropy(logits, c, reduction="none"), ids, labels
        )
        (losses * weights).sum().backward()

    return call


# Each makes its call for a device: what it needs is there before.
PARTS: dict[str, Callable[[str], Call]] = {
    **{f"loss {name}": lambda device, name=name: loss(name, device) for name in CASES},
    "numbers as arguments": numbers_as_arguments,
    **{
        f"term {tau} {scope} {granularity}{' weighted' * weighted}": (
            lambda device, form=(tau, scope, granularity, weighted): term(*form, device)
        )
        for tau, scope, granularity, weighted in product(TAUS, SCOPES, GRANULARITIES, (False, True))
    },
    "tracker": tracker,
    "class targets": class_targets,
}
