"""Checkpoints that are whole or absent, and that are data, never code."""

from .checkpointer import SafeCheckpointer, atomic_write, last_checkpoint
from .reading import check_checkpoint, read_checkpoint

__all__ = [
    "SafeCheckpointer",
    "atomic_write",
    "check_checkpoint",
    "last_checkpoint",
    "read_checkpoint",
]
