"""Building millions of objects without Python's search for garbage in between."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["many_objects"]


@contextmanager
def many_objects() -> Iterator[None]:
    """Pause the collector of cycles, which looks through all records again and again as they grow.

    Also a decorator. Records hold no cycles, so that nothing is kept longer.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
