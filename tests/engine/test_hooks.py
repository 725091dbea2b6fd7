"""Hooks of the trainer."""

from types import SimpleNamespace

import pytest
from detectron2.utils import comm

from sl_detectron.engine.hooks import LogTau
from sl_detectron.losses import SuperLoss


@pytest.mark.parametrize(("iteration", "gathers"), [(9, False), (10, True)])
def test_no_collective_after_a_failed_training(monkeypatch, iteration, gathers):
    """detectron2 calls the hook after an exception too, and then on the failed rank only."""
    calls = []
    monkeypatch.setattr(comm, "gather", lambda data: calls.append(data) or [data])
    hook = LogTau()
    hook.trainer = SimpleNamespace(iter=iteration, max_iter=10, model=SuperLoss(1.5, 1.0))
    hook.after_train()
    assert calls == ([{"": 1.5}] if gathers else [])
