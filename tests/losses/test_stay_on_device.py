"""No loss reads a value back from its device: on "meta" there is none to read."""

import pytest
import torch

from sl_detectron.losses import (
    CLASSIFICATION_LOSSES,
    DataParams,
    MultitaskLoss,
    data_params,
    introspection,
    multitask,
    r2d2_reliability,
)


def losses(device: str) -> dict:
    """Every loss of this package but the SuperLoss, by name, on random inputs of a device."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator).to(device).requires_grad_()
    labels = torch.randint(4, (6,), generator=generator).to(device)
    unit = torch.rand(6, generator=generator).to(device).requires_grad_()
    module = DataParams(num_samples=5, num_classes=4, lam=0.1).to(device)
    return {
        **{name: lambda f=f: f(logits, labels) for name, f in CLASSIFICATION_LOSSES.items()},
        "data_params": lambda: data_params(logits, labels, unit, lam=0.1),
        "DataParams": lambda: module(logits, labels, labels - 1),
        "introspection": lambda: introspection(unit, 1, 5 * unit),
        "r2d2_reliability": lambda: r2d2_reliability(unit, 0.5),
        "multitask": lambda: multitask(unit, unit),
        "MultitaskLoss": lambda: MultitaskLoss(6).to(device)(unit),
    }


NAMES = sorted(losses("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_read_back(name):
    value = losses("meta")[name]()
    value.sum().backward()
    assert value.is_meta


@pytest.mark.parametrize("name", [name for name in NAMES if name != "MultitaskLoss"])
def test_one_graph_under_compile(name):
    torch._dynamo.reset()
    loss = losses("cpu")[name]
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(), loss())
