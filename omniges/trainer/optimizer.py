"""AdamW over a model: which weights decay, and its state by parameter name.

The exponential moving average of the weights, in float32, updated at every step.

Learning rate and EMA decay as functions of the step alone, so that neither a clock nor a restart decides them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from omniges.errors import DataError, UsageFault

ScheduleName = Literal["constant", "cosine", "linear"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Linear warm-up to `peak` over `warmup_steps`, then constant, or down to 0 at `total_steps`.

    Raises UsageFault for a schedule that ends without a last step.
    """

    peak: float
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse an end that is not known or lies within the warm-up."""
        if self.schedule == "constant":
            return
        if self.total_steps is None:
            raise UsageFault(
                f"--lr-schedule {self.schedule} comes down to 0 at the last step, which nothing names: give "
                "--max-train-steps or --num-train-epochs, or take --lr-schedule constant"
            )
        if self.total_steps <= self.warmup_steps:
            raise UsageFault(
                f"--lr-warmup-steps {self.warmup_steps}: fewer than the {self.total_steps} steps of the run expected"
            )

    def at(self, step: int) -> float:
        """The rate of the update that makes step + 1 out of step; the first is at step 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.total_steps is None:
            return self.peak
        gone = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.peak * ((1 - gone) if self.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2)


def ema_decay(decay: float, step: int) -> float:
    """Decay of the average at the update that makes step + 1 out of step: min(decay, (1 + step) / (10 + step)).

    So the average is over about the last ninth of a run that is too short for its decay.
    """
    return min(decay, (1 + step) / (10 + step))


_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


def decaying(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay pulls to 0: matrices of linear layers.

    Biases, weights of norms and embeddings are left alone, whatever their shape.
    """
    return {
        f"{name}.weight" if name else "weight" for name, module in model.named_modules() if type(module) is nn.Linear
    }


def make_optimizer(model: nn.Module, *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; the learning rate is set at each step."""
    matrices = decaying(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if name in matrices], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, fused=True)


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as ``NAME.exp_avg``, ``NAME.exp_avg_sq`` and ``NAME.step`` for each parameter."""
    return {
        f"{name}.{part}": state[part]
        for name, parameter, state in _states(model, optimizer)
        if state
        for part in _MOMENTS
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor], where: str) -> None:
    """Put saved state back; raises DataError where it is not this model's."""
    expected = {
        f"{name}.{part}": (parameter.shape if part != "step" else torch.Size())
        for name, parameter, _ in _states(model, optimizer)
        for part in _MOMENTS
    }
    if {name: tensor.shape for name, tensor in saved.items()} != expected:
        raise DataError(f"{where}: the optimizer's state is not of this model's shapes. Choose another checkpoint")
    for name, parameter, state in _states(model, optimizer):
        for part in _MOMENTS:
            # Copies: what was read is mapped from a file that may be pruned.
            state[part] = saved[f"{name}.{part}"].to(parameter.device, torch.float32, copy=True)


def _states(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, optimizer.state[parameter]


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
