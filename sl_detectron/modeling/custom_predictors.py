"""Box predictors of other projects: classes made of them at run time, and losses they restate."""

from collections.abc import Callable
from typing import Any

from detectron2.modeling.roi_heads import FastRCNNOutputLayers

__all__ = ["check_restated_losses", "make_subclass"]


# For each loss the methods of FastRCNNOutputLayers that make it, and the one of PerRoILosses.
_MAKERS = {
    "loss_cls": (("losses", "sigmoid_cross_entropy_loss"), "classification_losses"),
    "loss_box_reg": (("losses", "box_reg_loss"), "foreground_box_losses"),
}


def check_restated_losses(predictor: type, extension: type, key: str) -> None:
    """Refuse to put the SuperLoss of detectron2's losses in the place of other losses.

    A class that overrides a method which makes a loss may make any other one of it: that its values
    equal detectron2's on one batch says nothing about the next.

    Args:
        predictor: a subclass of ``extension`` and perhaps of custom predictors
        extension: the class that replaces losses
        key: the loss that the SuperLoss replaces

    Raises:
        TypeError: a custom class restates the loss, and neither it nor a class derived from it says
            what the loss is for each RoI
    """
    makers, per_roi = _MAKERS[key]
    for cls in predictor.__mro__[: predictor.__mro__.index(FastRCNNOutputLayers)]:
        if issubclass(cls, extension):
            continue
        if per_roi in vars(cls):
            return
        restated = [maker for maker in makers if maker in vars(cls)]
        if restated:
            raise TypeError(
                f"{cls.__name__}.{restated[0]}() restates {key}, so what it is for each RoI is not "
                f"known. Give {cls.__name__} a method {per_roi}() with the arguments of "
                f"sl_detectron.modeling.PerRoILosses.{per_roi}, or switch "
                f"{key.replace('loss', 'superloss')} off"
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
