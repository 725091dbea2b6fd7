"""Classes that are made at run time from a class that we do not know, and pickle all the same."""

from collections.abc import Callable
from typing import Any

__all__ = ["make_subclass"]


def make_subclass(
    factory: Callable[[Any], Any], extension: type, base: type, namespace: dict[str, Any]
) -> Any:
    """``SuperLoss<Base>``: ``extension`` before ``base`` in the method resolution order.

    Args:
        factory: what makes this class of ``base``; a function of a module, as a pickle calls it
        extension: whose methods come first
        base: whose name it extends
        namespace: further attributes
    """
    reduce = {"__reduce__": lambda self: (_rebuild, (factory, base), dict(vars(self)))}
    name, module = f"SuperLoss{base.__name__}", {"__module__": base.__module__}
    return type(name, (extension, base), {**module, **reduce, **namespace})


def _rebuild(factory: Callable[[Any], Any], base: type) -> Any:
    cls = factory(base)
    return cls.__new__(cls)
