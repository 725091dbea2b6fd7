"""DataParams: cross-entropy whose temperature is learned for every sample or class.

Saxena, Tuzel and DeCoste, "Data parameters", NeurIPS 2019. sigma is the confidence, the inverse of
their temperature. Shape legend: R samples of a batch, C classes, N samples of the training set.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .domain import check_domain, check_logits, widen

__all__ = ["DataParams", "data_params"]

# The temperatures of the authors' code stay in [1 / 20, 20].
LARGEST_LOG_TEMPERATURE = math.log(20)


def data_params(logits: Tensor, labels: Tensor, sigma: Tensor | float, lam: float = 0.0) -> Tensor:
    """-log(exp(sigma * z_y) / sum_j exp(sigma * z_j)) + lam * log(sigma)^2 (eq. 3).

    For sigma -> inf the first term goes to 0 where z_y is the only largest logit, to log(n) where
    it is one of n, and to inf elsewhere (eq. 4); for sigma -> 0 it goes to log C.

    Args:
        logits: (R, C) floating point; computed in float32 at least
        labels: (R,) int64 in [0, C)
        sigma: confidence above 0, a number or (R,)
        lam: regularisation of log(sigma), at least 0

    Returns:
        (R,) losses in nats, with a gradient for the logits and for sigma

    Raises:
        ValueError: a number out of range; wrong shape or dtype
        RuntimeError: an entry of a sigma tensor is not above 0

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
        >>> data_params(logits, torch.tensor([0, 1]), sigma=torch.tensor([1.0, 0.5]), lam=0.1)
        tensor([0.1269, 1.3613])
    """
    check_logits(logits, labels)
    check_domain("lam", lam, not 0 <= lam < math.inf, "finite and at least 0")
    check_domain("labels", labels, labels < 0, "at least 0")  # -100 would be left out silently
    check_domain("sigma", sigma, sigma <= 0, "above 0")
    (wide,) = widen(logits)
    if isinstance(sigma, Tensor):
        sigma = sigma.to(wide.device, wide.dtype)
    else:
        sigma = torch.full((), sigma, dtype=wide.dtype, device=wide.device)
    if sigma.shape not in ((), labels.shape):
        raise ValueError(
            f"sigma must be a number or of shape {tuple(labels.shape)}; got {tuple(sigma.shape)}"
        )
    # The softmax does not see the shift; without it a large sigma gives inf - inf.
    shifted = wide - wide.detach().amax(dim=1, keepdim=True)
    losses = F.cross_entropy(sigma.reshape(-1, 1) * shifted, labels, reduction="none")
    return losses if lam == 0 else losses + lam * sigma.log().square()


class DataParams(nn.Module):
    """:func:`data_params` with log temperatures that are learned beside the model.

    sigma = 1 / temperature; with both kinds of parameters the temperature of a sample is the sum of
    its own and its class's, as in the paper. The temperatures change training only: they are no
    part of the model that predicts.

    Args:
        num_samples: N, one parameter for every training sample; None for none
        num_classes: C, one parameter for every class; None for none
        lam: regularisation of the log of each temperature, at least 0. The authors' weight decay
            is the sum of 0.5 * decay * log(temperature)^2 over a batch of B beside the mean loss:
            lam = 0.5 * decay * B; their default is 0.
        init_temperature: in [1/20, 20]. All samples start equal, with plain cross-entropy at 1 (at
            0.5 if both kinds are learned).

    Raises:
        ValueError: an argument out of range, or nothing to learn

    Example:
        >>> criterion = DataParams(num_samples=100, lam=0.01)
        >>> model = nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(
        ...     [{"params": model.parameters()}, criterion.param_group(lr=1.0)], lr=0.1
        ... )
        >>> labels, ids = torch.tensor([0, 2]), torch.tensor([7, -1])
        >>> criterion(model(torch.zeros(2, 4)), labels, ids).mean().backward()
        >>> optimizer.step()
        >>> criterion.sigma(labels, ids).shape
        torch.Size([2])
    """

    needs_annotation_ids = True
    log_sample_temperature: nn.Parameter | None
    log_class_temperature: nn.Parameter | None

    def __init__(
        self,
        num_samples: int | None = None,
        num_classes: int | None = None,
        lam: float = 0.0,
        init_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if num_samples is None and num_classes is None:
            raise ValueError("num_samples or num_classes must be given: there is nothing to learn")
        check_domain("lam", lam, not 0 <= lam < math.inf, "finite and at least 0")
        outside = not 1 / 20 <= init_temperature <= 20
        check_domain("init_temperature", init_temperature, outside, "in [1/20, 20]")
        self.lam = lam
        for name, num in (("num_samples", num_samples), ("num_classes", num_classes)):
            check_domain(name, num or 0, num is not None and num < 1, "at least 1")
        start = math.log(init_temperature)
        for name, num in (("log_sample", num_samples), ("log_class", num_classes)):
            parameter = None if num is None else nn.Parameter(torch.full((num,), start))
            self.register_parameter(f"{name}_temperature", parameter)

    def param_group(self, lr: float = 1.0) -> dict[str, Any]:
        """The parameters with the settings of the authors, as a group for ``torch.optim.SGD``.

        Their SGD has lr 0.1 and a momentum of 0.9 that moves a parameter only when its sample is
        in the batch. torch's momentum would keep moving the absent ones, so the group has none,
        and the same sum of steps by lr = 0.1 / (1 - 0.9). No weight decay: that is `lam`.

        Args:
            lr: learning rate; the loss is assumed to be averaged over the batch
        """
        return {"params": list(self.parameters()), "lr": lr, "momentum": 0.0, "weight_decay": 0.0}

    @torch.jit.unused
    def forward(self, logits: Tensor, labels: Tensor, ids: Tensor | None = None) -> Tensor:
        """Cross-entropy of sigma * logits, plus lam * log(temperature)^2 of each parameter in it.

        In training mode with gradients the temperatures are first brought back to [1/20, 20], as
        the authors do after every step.

        Args:
            logits: (R, C)
            labels: (R,) int64 in [0, C)
            ids: (R,) int64 in [0, N), which sample of the training set each is; -1: sigma is 1,
                and no parameter learns from it. May be left out if only classes have parameters.

        Returns:
            (R,) losses in nats

        Raises:
            ValueError: wrong shape or dtype; ids are needed
            RuntimeError: an id is not in [-1, N)
        """
        check_logits(logits, labels, () if ids is None else (("ids", ids),))
        if self.training and torch.is_grad_enabled():
            self._clamp()
        logs = self._log_temperatures(labels, ids)
        losses = data_params(logits, labels, self._confidence(logs, ids), 0.0)
        if self.lam == 0:
            return losses
        return losses + self.lam * sum(log.square() for log in logs)

    def sigma(self, labels: Tensor, ids: Tensor | None = None) -> Tensor:
        """(R,) confidences of samples, without gradient; arguments as in a call."""
        with torch.no_grad():
            logs = self._log_temperatures(labels, ids)
            # As the next step in training will bring them back.
            limit = LARGEST_LOG_TEMPERATURE
            return self._confidence([log.clamp(-limit, limit) for log in logs], ids)

    def extra_repr(self) -> str:
        sizes = {name: len(value) for name, value in self.named_parameters()}
        return ", ".join([*(f"{name}={size}" for name, size in sizes.items()), f"lam={self.lam}"])

    @torch.no_grad()
    def _clamp(self) -> None:
        for parameter in self.parameters():
            parameter.clamp_(-LARGEST_LOG_TEMPERATURE, LARGEST_LOG_TEMPERATURE)

    def _log_temperatures(self, labels: Tensor, ids: Tensor | None) -> list[Tensor]:
        """(R,) log temperatures, one tensor for each kind; 0 where the id is -1."""
        chosen = []
        if self.log_sample_temperature is not None:
            if ids is None:
                raise ValueError("ids must be given: every sample has its own parameter")
            num_samples = len(self.log_sample_temperature)
            outside = (ids < -1) | (ids >= num_samples)
            check_domain("ids", ids, outside, f"in [-1, {num_samples})")
            # The id that stands for -1 gets no gradient: see the where() below.
            chosen.append(self.log_sample_temperature[ids.clamp(min=0)])
        if self.log_class_temperature is not None:
            chosen.append(self.log_class_temperature[labels])
        if ids is None:
            return chosen
        return [torch.where(ids >= 0, log, 0.0) for log in chosen]

    def _confidence(self, logs: list[Tensor], ids: Tensor | None) -> Tensor:
        if len(logs) == 1:
            return (-logs[0]).exp()
        sigma = 1 / (logs[0].exp() + logs[1].exp())
        return sigma if ids is None else torch.where(ids >= 0, sigma, 1.0)
