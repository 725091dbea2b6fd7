"""Classes made of box predictors and heads of other projects at run time."""

from collections.abc import Callable
from typing import Any

__all__ = ["make_subclass"]


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
    """The state of an object that a pickle keeps; its class may define it."""
    get = getattr(module, "__getstate__", None)  # every object has it from Python 3.11 on
    return get() if get else dict(vars(module))


def _rebuild(factory: Callable[[Any], Any], base: type) -> Any:
    cls = factory(base)
    return cls.__new__(cls)
