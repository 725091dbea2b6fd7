"""Box predictors and detectors of other projects: classes made of them, and losses they restate."""

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.modeling import RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor

from .superloss_term import SuperLossTerm

__all__ = [
    "check_changed_losses",
    "check_num_outcomes",
    "check_restated_losses",
    "make_subclass",
]


# For each loss the methods of detectron2's class that make it, and the one that says what it is for
# each sample.
_MAKERS: dict[type, dict[str, tuple[tuple[str, ...], str]]] = {
    FastRCNNOutputLayers: {
        "loss_cls": (("losses", "sigmoid_cross_entropy_loss"), "classification_losses"),
        "loss_box_reg": (("losses", "box_reg_loss"), "foreground_box_losses"),
    },
    RetinaNet: {
        "loss_cls": (("losses",), "classification_losses"),
        "loss_box_reg": (("losses",), "foreground_box_losses"),
    },
}
_SAMPLES = {FastRCNNOutputLayers: ("RoI", "PerRoILosses"), RetinaNet: ("anchor", "PerAnchorLosses")}


def check_restated_losses(cls: type, extension: type, stock: type, key: str) -> bool:
    """Refuse to put the SuperLoss of detectron2's losses in the place of other losses.

    A class that overrides a method which makes a loss may make any other one of it: that its values
    equal detectron2's on one batch says nothing about the next.

    Args:
        cls: a subclass of ``extension`` and perhaps of custom classes
        extension: the class that replaces losses
        stock: the class of detectron2 that they extend
        key: the loss that the SuperLoss replaces

    Returns:
        whether the loss is detectron2's; False where a class says what it is for each sample

    Raises:
        TypeError: a custom class restates the loss, and neither it nor a class derived from it says
            what the loss is for each sample
    """
    makers, per_sample = _MAKERS[stock][key]
    sample, mixin = _SAMPLES[stock]
    for base in cls.__mro__[: cls.__mro__.index(stock)]:
        if per_sample in vars(base):
            return False
        if issubclass(base, extension):  # restates our losses, by its custom choice
            continue
        restated = [maker for maker in makers if maker in vars(base)]
        if restated:
            raise TypeError(
                f"{base.__name__}.{restated[0]}() restates {key}, so what it is for each {sample} "
                f"is not known. Give {base.__name__} a method {per_sample}() with the arguments of "
                f"sl_detectron.modeling.{mixin}.{per_sample}, or switch "
                f"{key.replace('loss', 'superloss')} off"
            )
    return True


def check_changed_losses(
    stock: type, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Refuse detectron2's class where its losses are no longer detectron2's: edited or patched.

    Args:
        stock: the class of detectron2
        expected: 0-d losses of a small batch as detectron2 makes them
        found: of the same batch by the class as it is

    Raises:
        TypeError: a loss differs by more than rounding
    """
    sample, mixin = _SAMPLES[stock]
    for key, value in expected.items():
        if abs(float(found[key]) - float(value)) <= 1e-6 + 1e-4 * abs(float(value)):
            continue
        makers, per_sample = _MAKERS[stock][key]
        names = " or ".join(f"{maker}()" for maker in makers)
        raise TypeError(
            f"{stock.__name__} does not make detectron2's {key}: on a small batch it is "
            f"{float(found[key]):.6g}, not {float(value):.6g}. {names}, or what they call, was "
            "edited or patched, and the SuperLoss would train on the loss without that change. "
            f"Make it in a subclass with a method {per_sample}() that says what the loss is for "
            f"each {sample} (see sl_detectron.modeling.{mixin}), or switch "
            f"{key.replace('loss', 'superloss')} off"
        )


def check_num_outcomes(term: SuperLossTerm | None, num_softmax_classes: int | None) -> None:
    """Refuse a tau that is the log of another number of outcomes than the classifier has.

    Args:
        term: whose tau may have the attribute ``num_outcomes``, as "logC" has it
        num_softmax_classes: number of foreground classes K; None where the loss is no softmax

    Raises:
        ValueError: the numbers differ, or there is no softmax
    """
    threshold = getattr(getattr(term, "superloss", None), "threshold", None)
    num_outcomes = getattr(threshold, "num_outcomes", None)
    if num_outcomes is None or term is None:
        return
    if num_softmax_classes is None:
        raise ValueError(
            f"the term {term.name!r} has tau 'logC', which is defined for softmax classification "
            "only: take 'Avg', 'ExpAvg' or a number"
        )
    choices = (num_softmax_classes + 1, num_softmax_classes)
    if num_outcomes not in choices:
        raise ValueError(
            f"the term {term.name!r} has tau 'logC' of num_outcomes={num_outcomes}, but the box "
            f"predictor has num_classes={num_softmax_classes}: num_outcomes must be {choices[0]}, "
            f"with background, or {choices[1]}"
        )


def make_subclass(
    factory: Callable[[Any], Any], extension: type, base: type, namespace: dict[str, Any]
) -> Any:
    """Make ``SuperLoss<Base>``, ``extension`` before ``base``, in a form that can be pickled.

    Args:
        factory: makes this class of ``base``; a function of a module, as a pickle calls it
        extension: whose methods come first
        base: whose name it extends
        namespace: further attributes
    """
    reduce = {"__reduce__": lambda self: (_rebuild, (factory, base), _state(self))}
    name, module = f"SuperLoss{base.__name__}", {"__module__": base.__module__}
    return type(name, (extension, base), {**module, **reduce, **namespace})


def _state(module: Any) -> Any:
    """What a pickle keeps of an object; its class may say so."""
    get = getattr(module, "__getstate__", None)  # every object has it from Python 3.11 on
    return get() if get else dict(vars(module))


def _rebuild(factory: Callable[[Any], Any], base: type) -> Any:
    cls = factory(base)
    return cls.__new__(cls)
