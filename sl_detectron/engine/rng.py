"""The random states of a process: read, restored, and kept from what is drawn on the way."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["get_rng_state", "keep_rng_state", "set_rng_state"]


def get_rng_state() -> dict[str, Any]:
    """The random states of Python, numpy and torch, as what ``weights_only`` loading accepts."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`get_rng_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def keep_rng_state() -> Iterator[None]:
    """Leave with the random states as they were, whatever is drawn inside."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
