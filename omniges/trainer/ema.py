"""The exponential moving average of the weights, in float32, updated at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omniges.trainer.schedule import ema_decay

__all__ = ["Ema"]


class Ema:
    """Averages of a module's parameters, by name; they begin as the parameters are."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        parameters = dict(module.named_parameters())
        self._parameters = list(parameters.values())
        self.tensors: Mapping[str, Tensor] = {
            name: parameter.detach().to(torch.float32, copy=True) for name, parameter in parameters.items()
        }
        self._averages = list(self.tensors.values())

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Be as the parameters are."""
        torch._foreach_copy_(self._averages, [p.detach() for p in self._parameters])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the update number `step` (the first is 0): a ← a + (1 − decay)(p − a)."""
        weight = 1.0 - ema_decay(self.decay, step)
        torch._foreach_lerp_(self._averages, [p.float() for p in self._parameters], weight)
