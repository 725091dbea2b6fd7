"""One term of a detector's loss under the SuperLoss: which samples, which divisor, what is logged.

Shape legend: (...) any shape, one entry per sample (RoI, anchor or box).
"""

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import nn

from ..losses import SuperLoss

__all__ = ["SuperLossTerm", "superloss_terms_from_config"]

SCOPES = ("foreground", "all")
TAU_NAMES = ("logC", "Avg", "ExpAvg")
# As detectron2's PeriodicWriter: values of the iterations between are never looked at.
LOG_PERIOD = 20


class SuperLossTerm(nn.Module):
    """Reduce per-sample losses to ``sum(SL(l)) / divisor``, detectron2's divisor kept.

    Args:
        name: scalars are logged as ``superloss_{name}/...``
        superloss: the per-sample loss with its running tau
        scope: "foreground": background keeps its plain loss and does not count in tau; "all":
            every sample goes through the SuperLoss

    Raises:
        ValueError: unknown ``scope``
    """

    def __init__(self, name: str, superloss: SuperLoss, scope: str = "foreground"):
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"SCOPE must be one of {SCOPES}; got {scope!r}")
        self.name = name
        self.superloss = superloss
        self.scope = scope

    def forward(
        self, losses: torch.Tensor, foreground: torch.Tensor, divisor: float | torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            losses: (...) the samples' losses in nats (or the unit of the box loss)
            foreground: (...) bool, samples that are matched to an annotation
            divisor: what the stock loss divides its sum by

        Returns:
            0-d tensor; 0 with a gradient for an empty batch
        """
        mask = foreground if self.scope == "foreground" else None
        storage = get_event_storage()
        logs = (storage.iter + 1) % LOG_PERIOD == 0
        # A copy, before the batch moves it: this is the tau that the batch meets.
        scalars = {"tau": self.superloss.tau.clone()} if logs else {}
        superlosses, sigma = self.superloss.with_confidence(losses, mask)
        reduced = superlosses.sum() / divisor
        if logs:
            with torch.no_grad():
                scalars["superloss"] = reduced
                scalars |= self._scalars(losses, sigma, foreground, mask, divisor)
                # The one host round trip, once a period: all scalars in a single copy.
                values = torch.stack([v.detach().double() for v in scalars.values()]).tolist()
            for key, value in zip(scalars, values):
                if not math.isnan(value):
                    storage.put_scalar(f"superloss_{self.name}/{key}", value, smoothing_hint=False)
        return reduced

    @staticmethod
    def _scalars(
        losses: torch.Tensor,
        sigma: torch.Tensor,
        foreground: torch.Tensor,
        mask: torch.Tensor | None,
        divisor: float | torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Summary of a batch; the mean over no sample is nan."""

        def mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            return torch.where(where, values, 0).sum(dtype=torch.float64) / where.sum()

        in_scope = torch.ones_like(foreground) if mask is None else mask
        capped = (sigma > math.e * (1 - 1e-5)).to(sigma.dtype)
        return {
            "raw_loss": losses.sum() / divisor,
            "sigma_foreground": mean(sigma, foreground),
            "sigma_background": mean(sigma, ~foreground),
            "capped_share": mean(capped, in_scope),
        }


def superloss_terms_from_config(
    cfg: CfgNode, num_softmax_classes: int | None
) -> dict[str, SuperLossTerm | None]:
    """Build the terms that ``MODEL.SUPERLOSS`` asks for.

    Args:
        cfg: a config with the keys of :func:`~sl_detectron.add_superloss_config`
        num_softmax_classes: number of foreground classes K of a softmax classifier; None where
            classification is not a softmax, so that tau "logC" is undefined

    Returns:
        ``superloss_cls`` and ``superloss_box_reg``, None for a term that is off

    Raises:
        KeyError: the config lacks the keys
        ValueError: a bad value; the message names key, value and choices
    """
    if "SUPERLOSS" not in cfg.MODEL:
        raise KeyError(
            "the config has no MODEL.SUPERLOSS: call sl_detectron.add_superloss_config(cfg) "
            "right after get_cfg()"
        )
    node = cfg.MODEL.SUPERLOSS
    _check(0 <= node.MOMENTUM < 1, "MOMENTUM", node.MOMENTUM, "a number in [0, 1)")
    num_outcomes = _num_outcomes(node.CLS, num_softmax_classes)
    return {
        "superloss_cls": _build_term("cls", node.CLS, node.MOMENTUM, num_outcomes),
        "superloss_box_reg": _build_term("box_reg", node.BOX_REG, node.MOMENTUM, None),
    }


def _check(ok: bool, key: str, value: Any, accepted: str) -> None:
    if not ok:
        raise ValueError(f"MODEL.SUPERLOSS.{key} must be {accepted}; got {value!r}")


def _num_outcomes(node: CfgNode, num_softmax_classes: int | None) -> int | None:
    choices = ("K+1", "K")
    _check(node.NUM_OUTCOMES in choices, "CLS.NUM_OUTCOMES", node.NUM_OUTCOMES, f"one of {choices}")
    if num_softmax_classes is None:
        return None
    return num_softmax_classes + (node.NUM_OUTCOMES == "K+1")


def _build_term(
    name: str, node: CfgNode, momentum: float, num_outcomes: int | None
) -> SuperLossTerm | None:
    key = name.upper()
    names = TAU_NAMES if num_outcomes else TAU_NAMES[1:]
    accepted = f'one of {names} or a quoted number such as "1.5"'
    if not num_outcomes:
        accepted += " (logC is defined for softmax classification only)"
    _check(node.TAU in names or _is_number(node.TAU), f"{key}.TAU", node.TAU, accepted)
    lam = node.LAMBDA
    _check(0 < lam < math.inf, f"{key}.LAMBDA", lam, "a finite number above 0")
    _check(node.SCOPE in SCOPES, f"{key}.SCOPE", node.SCOPE, f"one of {SCOPES}")
    if not node.ENABLED:
        return None
    superloss = SuperLoss(node.TAU, lam, num_outcomes=num_outcomes, momentum=momentum)
    return SuperLossTerm(name, superloss, node.SCOPE)


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
