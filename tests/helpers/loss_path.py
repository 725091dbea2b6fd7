"""The parts of the loss path, each as a call that may make no trip to the host, on any device."""

from collections.abc import Callable
from functools import partial
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
from sl_detectron.rivals import Method
from sl_detectron.rivals.ca_bbc import soft_labels
from sl_detectron.rivals.clc import CLC
from sl_detectron.rivals.co_teaching import CoTeaching
from sl_detectron.rivals.sd_locnet import SDLocNet
from sl_detectron.rivals.soft_targets import SoftTargets

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


def _samples(device: str) -> tuple[list[Instances], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets of two images with 5 classes; ids, labels and logits of samples."""
    targets = []
    for i, num in enumerate((4, 3)):
        target = Instances((10, 10), gt_boxes=Boxes(torch.rand(num, 4, device=device)))
        target.gt_classes = torch.randint(5, (num,), device=device)
        target.gt_annotation_ids = torch.arange(4 * i, 4 * i + num, device=device)
        targets.append(target)
    ids, labels = (torch.randint(*ends, (NUM,), device=device) for ends in ((-1, 7), (0, 6)))
    return targets, ids, labels, torch.rand(NUM, 6, device=device, requires_grad=True)


def _class_term(method: Method, samples: tuple) -> torch.Tensor:
    _, ids, labels, logits = samples
    losses, weights = method.expected_losses(
        partial(nn.functional.cross_entropy, logits, reduction="none"),
        *(ids, labels, lambda: logits[:, :5].softmax(dim=1)),
    )
    return (losses * weights).sum()


def method(build: Callable[[], Method], device: str) -> Call:
    """A step in which it is active, and has seen one before."""
    module, samples = build().to(device), _samples(device)
    given = torch.rand(2, 7, 6, device=device).softmax(dim=2)

    def call() -> None:
        for step in range(2):
            module.begin_step(step)
            if isinstance(module, SoftTargets):
                classes = torch.cat([target.gt_classes for target in samples[0]])
                module.table = soft_labels(classes, *given, temperature=0.4, num_classes=5)
            module.relabel(samples[0])
            _class_term(module, samples).backward()

    return call


def co_teaching(num_groups: int, device: str) -> Call:
    module = CoTeaching(0.4, 0, num_groups).to(device)
    all_samples = {side: _samples(device) for side in (module.first, module.second)}

    def call() -> None:
        for _ in range(2):
            losses = {}
            for i, (side, samples) in enumerate(all_samples.items()):
                side.relabel(samples[0])
                losses[str(i)] = side.settle(partial(_class_term, side, samples))
            sum(module.exchanged(losses).values()).backward()

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
    "method CLC": partial(method, partial(CLC, 5)),
    "method CLC, relabelled": partial(method, partial(CLC, 5, "relabel")),
    "method SDLocNet": partial(method, partial(SDLocNet, 7, 5)),
    "method with soft targets": partial(method, SoftTargets),
    "method CoTeaching": partial(co_teaching, 1),
    "method CoTeaching, by class": partial(co_teaching, 5),
}
